"""README.md and docs/ show commands, files and results that exist."""

import os
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from scripts import docs_macros, make_docs, make_overview
from tests.helpers.commands import ROOT
from twinsqueeze.cli import cli

PAGES = [*make_docs.pages(), ROOT / "CONTRIBUTING.md", ROOT / "RELIABILITY.md"]
GUIDES = [page for page in PAGES if page.parent.name == "guides"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SITE = "https://twinsqueeze.github.io/twinsqueeze/"
COMMAND = re.compile(r"(?:python -m twinsqueeze|^twinsqueeze|(mlflow) run \.)(?: ([^|&;>\n]*))?", re.MULTILINE)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code(page: Path) -> str:
    """The shell commands of a page, one a line."""
    return "\n".join(re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)).replace("\\\n", " ")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_and_their_options_exist(page):
    for by_mlflow, arguments in COMMAND.findall(code(page)):
        words = shlex.split(arguments)
        if by_mlflow:
            name = words[words.index("-e") + 1] if "-e" in words else "main"
            given = {f"--{value.partition('=')[0]}" for flag, value in pairwise(words) if flag == "-P"}
        else:
            name = next((word for word in words if not word.startswith("-")), None)
            given = {word for word in words if word.startswith("--")} - {"--help"}
        if name:
            known = {spelling for option in cli.commands[name].params for spelling in option.opts}
            assert given <= known, f"{name} {arguments}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_and_modules_of_the_repository_exist(page):
    text = page.read_text(encoding="utf-8").replace("{{ repository }}", docs_macros.repository())
    named = re.findall(r"(?<![\w/$])((?:experiments|scripts|tests|examples|benchmarks|twinsqueeze)/[\w./-]*\w)", text)
    linked = re.findall(rf"{docs_macros.repository()}/(?:blob|tree)/main/([^)#\s]+)", text)
    assert [name for name in {*named, *linked} - {"experiments/results"} if not (ROOT / name).exists()] == []
    modules = [ROOT / name.replace(".", "/") for name in re.findall(r"-m ((?:benchmarks|scripts)\.\w+)", text)]
    assert [path for path in modules if not (path.is_dir() or path.with_suffix(".py").exists())] == []


def test_every_promise_has_a_test_that_exists():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    rows = re.findall(r"^\|(.*)\|(.*)\|$", (ROOT / "RELIABILITY.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"`(\w+)`", "".join(tests for _, tests in rows))
    assert len(named) > 50
    assert [name for name in named if f"def test_{name}" not in code] == []


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_a_guide_begins_with_a_command_and_its_output(page):
    first = re.search(r"```.*", page.read_text(encoding="utf-8"), re.DOTALL)[0]
    block = make_docs.BLOCK.match(first)
    assert block
    assert block["output"].strip()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=page_id)
def test_a_page_that_github_cannot_fill_in_leads_to_the_site(page):
    text = page.read_text(encoding="utf-8")
    address = SITE + page.relative_to(ROOT / "docs").with_suffix("").as_posix().removesuffix("index")
    assert bool(re.search(r"\{\{|^:::|--8<--", text, re.MULTILINE)) == (
        f"Read it at {address.rstrip('/')}/ #}}" in text
    )


def test_the_table_and_the_picture_of_the_readme_show_the_results():
    assert make_docs.with_table(README) == README
    axes = Figure().subplots()
    make_overview.draw_quality(axes)
    ours = next(line for line in axes.lines if line.get_color() == make_overview.OURS)
    shown = dict(zip(*ours.get_data(), strict=True))
    assert f"| **`best`** | 32 | {shown[32]:.4f} ±" in README
    assert f"| **`best-16`** | 16 | {shown[16]:.4f} ±" in README


def test_the_readme_has_the_test_command_for_ci_and_absolute_links_to_pages():
    command = 'pip install -r requirements.txt -e ".[test]" && python -m pytest'
    assert f"```sh\n{command}\n```" in README.partition("## Test it\n")[2]
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert all(link.startswith("https://") for link in links)
    pages = {link.removeprefix(SITE).partition("#")[0].strip("/") for link in links if link.startswith(SITE)}
    assert [page for page in pages if not (ROOT / "docs" / f"{page}.md").exists()] == []


def test_environment_variables_are_described():
    code = "".join(path.read_text("utf-8") for path in ROOT.glob("twinsqueeze/**/*.py"))
    page = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`(TWINSQUEEZE_[A-Z_]+)`", page))
    assert described - {"TWINSQUEEZE_STSB"} == set(re.findall(r"\"(TWINSQUEEZE_[A-Z_]+)\"", code))


def test_a_result_is_the_one_of_the_table():
    """Against the table that `compare` formats itself."""
    table = (ROOT / "experiments" / "results" / "neftune" / "table.md").read_text(encoding="utf-8")
    best = next(line for line in table.split("\n") if "(best on dev)" in line)
    columns = ("dev/spearman", "dev/spearman_gain", "test/spearman", "test/spearman_gain")
    assert all(f"| {docs_macros.score('neftune', 'mlp32', column, alpha=0.75)} |" in best for column in columns)
    assert "| 0.28 ± " in best
    assert docs_macros.score("neftune", "mlp32", "test/neighbor_recall", alpha=0.75) == "0.28"


def test_a_table_of_the_log_is_shown_as_it_is():
    table = docs_macros.log_table("does the recipe hold on pairs that no choice was made on?")
    assert table.startswith("| | bytes | fold 0 | fold 1 |\n|---|---:|---:|---:|\n| encoder | 1,536 | 0.8405 |")
    assert table.count("\n") == 5
    with pytest.raises(KeyError, match="no table below 'which'"):
        docs_macros.log_table("which")


@pytest.mark.parametrize(
    ("shown", "stale"),
    [("4 words in 12.5 s\n", False), ("3 pages\n", True), ("3 words in 0.25 s\n\ndev 0.8131\n", False)],
)
def test_an_output_is_current_if_its_words_are(shown, stale, tmp_path, monkeypatch):
    monkeypatch.setattr(make_docs, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    text = "# Page\n\n```sh\necho 3 words in 0.25 s\n```\n\n```text\n{}```\n\nEnd.\n"
    page.write_text(text.format(shown))
    runner = make_docs.Runner(tmp_path, dict(os.environ))
    assert bool(make_docs.update(page, runner, check=True)) == stale
    assert page.read_text() == text.format(shown)
    make_docs.update(page, runner, check=False)
    assert page.read_text() == text.format("3 words in 0.25 s\n")
