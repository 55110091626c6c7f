"""Names with anything in them, in every form that users read."""

import io
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from tests.helpers.trained_runs import KEY, trained
from twinsqueeze.model.checkpoint import CheckpointMetadata
from twinsqueeze.model.sentence_transformer import TextModelInfo
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry.model_card import render_model_card
from twinsqueeze.reporting import formats, report, search_table, terminal
from twinsqueeze.reporting.ablation_table import AblationTable, BaselineRow, build_tables
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.utils import console
from twinsqueeze.utils.text import escape_control_chars, escape_markdown

# What terminals, browsers, Markdown, LaTeX, Matplotlib and rich each take for more than text.
HOSTILE = (
    "\x1b[31mred\x07 \u202egnp.exe\u202c שלום \U0001f600 <script>alert(1)</script> ![x](http://evil/x.png) "
    "| a | b |\n# head\n\\input{/etc/passwd} $\\bad$ %c &amp; #1 {x} ~ ^ [/bold] [red] `code` **b** :smile:"
)
COMMANDS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def table() -> AblationTable:
    """A table in which whatever others could have named is called so."""
    run = replace(trained(0.8, alpha=0, encoder=HOSTILE), dataset=HOSTILE, notice=HOSTILE)
    names = [f"{split}/{name}" for split in ("dev", "test") for name in ("spearman", "neighbor_recall")]
    scores = dict.fromkeys(names, SeedStats(0.5, 0.1, 2))
    (found,) = build_tables([run], {KEY: [BaselineRow(HOSTILE, 32, 128, scores, False)]})
    return found


def test_markdown_holds_names_as_text(table):
    recipe = Recipe(encoder=HOSTILE, dataset=HOSTILE)
    names = dict.fromkeys(["dataset", "dataset_digest", "encoder_fingerprint", "version"], HOSTILE)
    metadata = CheckpointMetadata(recipe=recipe, score_max=None, **names)
    tables = [formats.to_markdown([table], [HOSTILE]), report.summary([table], [HOSTILE])]
    text_model = TextModelInfo(256, {HOSTILE: HOSTILE}, HOSTILE, {HOSTILE: 3})
    for text in [*tables, render_model_card(metadata, 384, text_model)]:
        assert not COMMANDS.search(text)
        assert "\n# head" not in text
        assert not re.search(r"(?<!\\)(<script|\[x)", text)
    for text in tables:
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
        assert len(widths) <= 2  # of the table of scores and that of search
        assert "שלום" in text
        assert "\U0001f600" in text


def test_html_holds_names_as_text(table):
    page = report.to_html([(table, [report.ReportFigure("x", HOSTILE, Figure())])], [HOSTILE], HOSTILE)
    assert page.count("<script") == 1  # of the report
    assert page.count("<img") == 1
    assert "http://evil/x.png" in page  # as text
    assert not re.search(r"""(src|href)=["']?http://evil""", page)
    assert "&lt;script&gt;" in page


def test_latex_holds_names_as_text(table):
    text = formats.to_latex([table])
    outside = [line for line in text.splitlines() if not line.startswith("%")]
    assert not COMMANDS.search(text)
    assert not any("\\input" in line for line in outside)
    assert all(not re.search(r"(?<!\\)[$#%&](?=bad|1|c )", line) for line in outside)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs LaTeX")
def test_latex_compiles(table, tmp_path):
    plain = formats.to_latex([table]).encode("ascii", "ignore").decode()
    document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{plain}\\end{{document}}"
    (tmp_path / "x.tex").write_text(document)
    done = subprocess.run(["pdflatex", "-halt-on-error", "x.tex"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.filterwarnings("ignore:Glyph")
def test_pictures_are_drawn_whatever_names_are(table):
    search_table.quality_figure(search_table.rows_from_tables([table]))().savefig(io.BytesIO())


def test_the_terminal_gets_no_commands(table, workplace, capsys):
    terminal.print_ablation([table], verbose=True)
    console.print_result(HOSTILE)
    console.warn(HOSTILE)
    terminal.print_next_steps([("look", HOSTILE)])
    output, errors = capsys.readouterr()
    failed = workplace.command("compare", HOSTILE)
    assert failed.returncode == 2
    for text in (output, errors, failed.stderr):
        assert "gnp.exe" in text
        assert not COMMANDS.search(text)
    assert "[/bold] [red]" in output
    assert ":smile:" in output


def test_text_is_kept_as_far_as_it_is_harmless():
    assert escape_control_chars("שלום \U0001f600 naïve") == "שלום \U0001f600 naïve"
    assert escape_control_chars("a\nb\x1b\u202e") == r"a\nb\x1b\u202e"
    assert escape_markdown("all-MiniLM-L6-v2, batch_size 32 (5%)") == "all-MiniLM-L6-v2, batch_size 32 (5%)"
