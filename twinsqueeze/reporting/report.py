"""The report of `compare`: its tables in every format, its figures, and a self-contained HTML page."""

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from twinsqueeze.recipe import FLOAT_QUERIES
from twinsqueeze.reporting import formats, method_plots, search_table
from twinsqueeze.reporting.ablation_table import (
    COLUMN_NAMES,
    EVALUATED_SPLITS,
    AblationTable,
    BaselineRow,
    capitalized_name,
    count,
    metric_name,
    num_digits,
    selection_metric,
)
from twinsqueeze.reporting.search_table import TextTable
from twinsqueeze.reporting.statistics import NO_VALUES

MAX_NAMED = 3  # baselines in the conclusion
MAX_DESCRIPTION_LENGTH = 8000  # MLflow truncates longer ones


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report with its file name, without suffix, and its caption."""

    name: str
    caption: str
    figure: Figure

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


Section = tuple[AblationTable, list[ReportFigure]]  # a table of a report and its figures


def conclusion(table: AblationTable) -> str:
    """Sentences on the best compressor: its scores, what its noise adds, and the baselines that are ahead of it."""
    best, score, metric = table.best, table.task.selection, selection_metric(table.task)
    size = best.recipe.bytes_per_vector
    scores = [
        f"{best.scores[metric_name(split, score)].format()} on {split} ({count(best.seeds(split), 'seed')})"
        for split in EVALUATED_SPLITS
        if best.seeds(split)
    ]
    sentences = [
        f"Best on dev: {best.name} at alpha {best.recipe.alpha:g}, {size:,} bytes per vector: "
        f"{COLUMN_NAMES[score]} {' and '.join(scores)}."
    ]
    if best.gains:
        gains = [f"{gain.format()} on {split}" for split, gain in best.gains.items()]
        sentences.append(f"{capitalized_name(score)} gain over alpha 0: {' and '.join(gains)}.")
    small = [row for row in _symmetric(table) if row.bytes <= size]
    ahead = [row for row in small if row.scores[metric].mean > best.dev_score]
    ahead.sort(key=lambda row: row.scores[metric].mean, reverse=True)
    if ahead:
        names = ", ".join(f"{row.name} {row.scores[metric].mean:.4f}" for row in ahead[:MAX_NAMED])
        sentences.append(f"Better on dev among baselines of at most {size:,} bytes: {names}.")
    elif small:
        sentences.append(f"No baseline of at most {size:,} bytes is better on dev.")
    return " ".join(sentences)


def best_scores(table: AblationTable) -> dict[str, float]:
    """The best compressor's mean selection score by split, as metrics of the run that compares."""
    score = table.task.selection
    return {
        f"summary/best_{split}_{score}": table.best.scores[metric_name(split, score)].mean for split in EVALUATED_SPLITS
    }


def summary(tables: Sequence[AblationTable], notes: Sequence[str]) -> str:
    """The conclusions and the compact tables in Markdown for a run's description."""
    text = formats.render("summary.md.jinja", tables=tables, notes=notes, conclusions=map(conclusion, tables))
    return formats.truncate_lines(text, MAX_DESCRIPTION_LENGTH, "There are more rows: see `compare`.")


def key_results(table: AblationTable) -> TextTable:
    """The best compressor beside a baseline of each series of figures: the best on dev of its size or less."""
    best, task, metric = table.best, table.task, selection_metric(table.task)
    columns = dict.fromkeys([("dev", task.selection), ("test", task.selection), ("test", "neighbor_recall")])
    header = ["vectors", "bytes", *(f"{split} {COLUMN_NAMES[score]}" for split, score in columns)]
    rows = [(f"{best.name}, alpha {best.recipe.alpha:g}", best.recipe.bytes_per_vector, best.scores)]
    for label in method_plots.SERIES:
        series = [row for row in _symmetric(table) if method_plots.find_series(row.family) == label]
        series = [row for row in series if row.name == label] or series  # uncompressed: float32
        if series:
            small = [row for row in series if row.bytes <= best.recipe.bytes_per_vector]
            shown = (
                max(small, key=lambda row: row.scores[metric].mean) if small else min(series, key=lambda row: row.bytes)
            )
            rows.append((shown.name, shown.bytes, shown.scores))
    metrics = {metric_name(split, score): num_digits(task, score) for split, score in columns}
    return header, [
        [name, f"{size:,}", *(scores.get(metric, NO_VALUES).format(digits) for metric, digits in metrics.items())]
        for name, size, scores in rows
    ]


def _symmetric(table: AblationTable) -> list[BaselineRow]:
    metric = selection_metric(table.task)
    return [row for row in table.baselines if metric in row.scores and FLOAT_QUERIES not in row.name]


def split_scores(table: AblationTable, split: str) -> TextTable:
    """The scores of one split, without the train losses."""
    header, rows = formats.ablation_scores(table, [split])
    return header[:-2], [row[:-2] for row in rows]


def to_html(sections: Sequence[Section], notes: Sequence[str], origin: str) -> str:
    """A self-contained HTML page; `origin` is a sentence about the runs and the date of the report."""
    environment = formats.template_environment()
    functions = (conclusion, key_results, split_scores, b64encode)
    environment.globals |= {function.__name__: function for function in functions}
    environment.globals |= {"search_table": search_table, "splits": EVALUATED_SPLITS}
    return environment.get_template("report.html.jinja").render(sections=sections, notes=notes, origin=origin)


def write_report(folder: Path, sections: Sequence[Section], notes: Sequence[str], origin: str) -> None:
    """Write table.md, table.tex, table.csv, report.html and a PNG per figure."""
    tables = [table for table, _ in sections]
    (folder / "table.md").write_text(formats.to_markdown(tables, notes), encoding="utf-8")
    (folder / "table.tex").write_text(formats.to_latex(tables), encoding="utf-8")
    formats.to_dataframe(tables).to_csv(folder / "table.csv", index=False)
    for i, (_, figures) in enumerate(sections, 1):
        prefix = f"{i}-" if len(sections) > 1 else ""
        for shown in figures:
            (folder / f"{prefix}{shown.name}.png").write_bytes(shown.png)
    (folder / "report.html").write_text(to_html(sections, notes, origin), encoding="utf-8")
