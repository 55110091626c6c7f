"""Tables of runs and ablations as text, Markdown, CSV, LaTeX and a self-contained HTML page."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

from twinsqueeze.reporting import search_table
from twinsqueeze.reporting.ablation_table import (
    COLUMN_NAMES,
    EVALUATED_SPLITS,
    PAIR_SCORES,
    AblationTable,
    metric_name,
)
from twinsqueeze.reporting.search_table import TextTable
from twinsqueeze.reporting.statistics import NO_VALUES, MeanDifference, SeedStats
from twinsqueeze.utils.text import escape_control_chars, escape_markdown

if TYPE_CHECKING:  # `compare` needs no PyTorch, which takes a second to import
    from twinsqueeze.evaluation.baselines import BaselineScores
    from twinsqueeze.evaluation.evaluator import EvaluationResult

COMPACT_COLUMNS = ("model", "alpha", "seeds", "MSE", "Spearman", "Spearman gain", "neighbor recall")
# MLflow truncates descriptions to 8,000 characters.
SUMMARY_LENGTH = 7500
EXPLANATION = (
    "Values are means ± sample standard deviations over seeds. Spearman gain: Spearman minus Spearman at alpha 0 with "
    "the same other fields, with a 95% interval by Welch's t-test over unpaired seeds. The best row has the highest "
    "mean Spearman on dev; test scores are not used to select it. Neighbor recall: the share of a sentence's ten "
    "nearest neighbors that remain among its ten nearest after compression. Rows without alpha are baselines (no "
    "labels)."
)


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report with its file name, without suffix, and its caption."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A table of a report and its figures."""

    table: AblationTable
    figures: Sequence[ReportFigure]


def run_scores(
    title: str, size: int, results: Mapping[str, "EvaluationResult"], baselines: Sequence["BaselineScores"]
) -> TextTable:
    """Scores of a run by split, the compressor in the first row and baselines below."""
    columns = (*PAIR_SCORES, "neighbor_recall")
    rows = [(title, size, {split: result.scores for split, result in results.items()})]
    rows += [(baseline.name, baseline.bytes, baseline.scores) for baseline in baselines if not baseline.search_only]
    table = []
    for name, row_size, scores in rows:
        cells = [f"{scores[split][c]:.{4 if c in PAIR_SCORES else 2}f}" for split in results for c in columns]
        table.append([name, f"{row_size:,}", *cells])
    return ["model", "bytes", *search_table.split_columns(results, [COLUMN_NAMES[c] for c in columns])], table


def scores_sentence(split: str, result: "EvaluationResult") -> str:
    """A split's scores with 95% intervals, as a sentence."""
    scores = ", ".join(
        f"{COLUMN_NAMES[name]} {result.scores[name]:.4f} (95% interval {interval.low:.4f} to {interval.high:.4f})"
        for name, interval in result.intervals.items()
    )
    return (
        f"On {split} ({len(result.labels):,} pairs): {scores}; neighbor recall {result.scores['neighbor_recall']:.2f}."
    )


def ablation_scores(table: AblationTable, splits: Sequence[str] = EVALUATED_SPLITS) -> TextTable:
    """Scores of an ablation by split, trained compressors first and baselines below."""
    names = [*(COLUMN_NAMES[score] for score in PAIR_SCORES), "Spearman gain", COLUMN_NAMES["neighbor_recall"]]
    header = ["model", "alpha", "bytes", "seeds", *search_table.split_columns(splits, names)]
    rows = []
    for row in table.rows:
        name = f"{row.name} (best on dev)" if row.best else row.name
        cells = [name, f"{row.recipe.alpha:g}", f"{row.bytes:,}", f"{len(row.runs)}"]
        cells += _score_cells(row.scores, row.gains, splits)
        rows.append([*cells, row.scores["train/loss"].format(), row.scores["train/clean_loss"].format()])
    for baseline in table.score_baselines:
        draws = next(iter(baseline.scores.values())).count
        cells = [baseline.name, "", f"{baseline.bytes:,}", f"{draws} draws" if draws > 1 else ""]
        rows.append([*cells, *_score_cells(baseline.scores, {}, splits), "", ""])
    return [*header, "train loss, noisy", "train loss, clean"], rows


def _score_cells(
    scores: Mapping[str, SeedStats], gains: Mapping[str, MeanDifference], splits: Sequence[str]
) -> list[str]:
    cells = []
    for split in splits:
        cells += [scores.get(metric_name(split, score), NO_VALUES).format() for score in PAIR_SCORES]
        cells.append(gains[split].format() if split in gains else "")
        cells.append(scores.get(metric_name(split, "neighbor_recall"), NO_VALUES).format(2))
    return cells


def compact_scores(table: AblationTable, splits: Sequence[str] = EVALUATED_SPLITS) -> TextTable:
    """The most important columns of `ablation_scores`."""
    header, rows = ablation_scores(table, splits)
    columns = [i for i, name in enumerate(header) if name.endswith(COMPACT_COLUMNS)]
    return [header[i] for i in columns], [[row[i] for i in columns] for row in rows]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of escaped text; all columns but the first are aligned right."""
    lines = [[escape_markdown(cell) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(tables: Sequence[AblationTable], notes: Sequence[str], limit: int = SUMMARY_LENGTH) -> str:
    """The compact tables in Markdown for a run's description; rows beyond `limit` characters are omitted."""
    end = _paragraphs([*map(escape_markdown, notes), EXPLANATION])
    text = ""
    for table in tables:
        start = _paragraphs(_heading(table))
        table_notes = _paragraphs(map(escape_markdown, table.notes))
        header, rows = compact_scores(table)
        shown = list(rows)
        while shown and len(text + start + markdown_table(header, shown) + table_notes + end) > limit:
            shown.pop()
        text += start + markdown_table(header, shown) + "\n\n"
        if omitted := len(rows) - len(shown):
            return text + f"{omitted} more rows: see `compare`.\n\n" + table_notes + end
        text += table_notes
    return text + end


def _heading(table: AblationTable, level: str = "") -> list[str]:
    notice = [f"**{escape_markdown(table.notice)}**"] if table.notice else []
    return [level + escape_markdown(table.title), *notice]


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"{text}\n\n" for text in texts)


def to_markdown(tables: Sequence[AblationTable], notes: Sequence[str]) -> str:
    """Scores and search quality of all tables, with their notes."""
    texts = []
    for table in tables:
        search = search_table.format_rows(search_table.rows_from_table(table))
        texts += [*_heading(table, "## "), markdown_table(*ablation_scores(table))]
        texts += ["### Search quality", markdown_table(*search), *map(escape_markdown, table.notes)]
    texts += [*map(escape_markdown, notes), EXPLANATION, search_table.EXPLANATION]
    return _paragraphs(texts).rstrip("\n") + "\n"


def to_dataframe(tables: Sequence[AblationTable]) -> pd.DataFrame:
    """All rows of all tables with unrounded scores and the ids of their runs."""
    records = []
    for table in tables:
        shared = {"data": table.title, "dataset_digest": table.comparison_key.dataset_digest}
        for row in table.rows:
            record: dict[str, object] = shared | {"model": row.name, "best": row.best, "bytes": row.bytes}
            record |= {name: getattr(row.recipe, name) for name in ("alpha", "dim", "epochs", "batch_size", "lr")}
            record |= {"seeds": len(row.runs), **_means_and_deviations(row.scores)}
            for split, gain in row.gains.items():
                column = f"{split}/spearman_gain"
                record |= {column: gain.mean, f"{column}_low": gain.low, f"{column}_high": gain.high}
            records.append(record | {"runs": " ".join(run.run_id for run in row.runs)})
        for baseline in table.baselines:
            record = shared | {"model": baseline.name, "best": False, "bytes": baseline.bytes, "dim": baseline.dim}
            records.append(record | _means_and_deviations(baseline.scores))
    integers = ("bytes", "dim", "epochs", "batch_size", "seeds")
    return pd.DataFrame(records).astype(dict.fromkeys(integers, "Int64"))  # int64 cannot hold the baselines' gaps


def _means_and_deviations(scores: Mapping[str, SeedStats]) -> dict[str, object]:
    columns: dict[str, object] = {}
    for name, stats in scores.items():
        columns |= {name: stats.mean, f"{name}_sd": stats.deviation}
    return columns


def to_latex(tables: Sequence[AblationTable]) -> str:
    """A tabular of scores and one of search quality for every table and split."""
    texts = ["% Needs \\usepackage{booktabs}."]
    for table in tables:
        search_rows = search_table.rows_from_table(table)
        title = escape_control_chars(table.title)  # a newline would end the comment
        for split in EVALUATED_SPLITS:
            texts.append(f"% {title}: {split}\n{_tabular(*ablation_scores(table, [split]))}")
            search = _tabular(*search_table.format_rows(search_rows, [split]))
            texts.append(f"% {title}: {split}, search quality\n{search}")
    return "\n".join(texts)


def _tabular(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    frame = pd.DataFrame([[escape_control_chars(cell) for cell in row] for row in rows], columns=list(header))
    style = frame.style.format(escape="latex").hide(axis="index")
    text: str = style.to_latex(hrules=True, column_format="l" + "r" * (len(header) - 1))
    return text.replace("±", "$\\pm$")


def to_html(sections: Sequence[Section], notes: Sequence[str], origin: str) -> str:
    """A self-contained HTML page.

    Args:
        sections: Tables with their figures.
        notes: Notes on the whole report, a sentence each.
        origin: Sentence about the runs and the date of the report.
    """
    template = files("twinsqueeze.reporting").joinpath("report.html.jinja").read_text(encoding="utf-8")
    functions = {"ablation_scores": ablation_scores, "search_table": search_table, "data_url": _data_url}
    page = Environment(autoescape=True).from_string(template, functions)
    return page.render(sections=sections, notes=notes, origin=origin, explanation=EXPLANATION)


def _data_url(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_report(folder: Path, sections: Sequence[Section], notes: Sequence[str], origin: str) -> None:
    """Write table.md, table.tex, table.csv, report.html and a PNG per figure."""
    tables = [section.table for section in sections]
    (folder / "table.md").write_text(to_markdown(tables, notes), encoding="utf-8")
    (folder / "table.tex").write_text(to_latex(tables), encoding="utf-8")
    to_dataframe(tables).to_csv(folder / "table.csv", index=False)
    for i, section in enumerate(sections, 1):
        prefix = f"{i}-" if len(sections) > 1 else ""
        for shown in section.figures:
            shown.figure.savefig(folder / f"{prefix}{shown.name}.png", dpi=150)
    (folder / "report.html").write_text(to_html(sections, notes, origin), encoding="utf-8")
