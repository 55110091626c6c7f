"""Tables of runs and ablations as text, Markdown, CSV and LaTeX."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from twinsqueeze.reporting import search_table
from twinsqueeze.reporting.ablation_table import (
    COLUMN_NAMES,
    EVALUATED_SPLITS,
    AblationTable,
    Row,
    capitalized_name,
    metric_name,
    num_digits,
)
from twinsqueeze.reporting.search_table import TextTable
from twinsqueeze.reporting.statistics import NO_VALUES, MeanDifference, SeedStats
from twinsqueeze.task import Task
from twinsqueeze.utils.text import escape_control_chars, escape_markdown

if TYPE_CHECKING:  # `compare` needs no PyTorch, which takes a second to import
    from twinsqueeze.evaluation.bootstrap import Interval
    from twinsqueeze.evaluation.evaluator import EvaluationResult

COMPACT_COLUMNS = ("model", "alpha", "seeds", "MSE", "neighbor recall")


def count_scored(result: "EvaluationResult", task: Task) -> str:
    """What a result's scores are averaged over, such as "1,500 pairs"."""
    number = len(result.labels) or len(next(iter(result.query_scores.values())))
    return f"{number:,} {task.unit}"


def format_interval(name: str, interval: "Interval", task: Task) -> str:
    """The ends of a score's interval, such as "0.8123 to 0.8345"."""
    digits = num_digits(task, name)
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def scores_sentence(split: str, result: "EvaluationResult", task: Task) -> str:
    """A split's scores with 95% intervals, as a sentence."""
    named = {
        name: f"{COLUMN_NAMES[name]} {result.scores[name]:.{num_digits(task, name)}f}" for name in task.main_scores
    }
    scores = ", ".join(
        f"{named[name]} (95% interval {format_interval(name, interval, task)})"
        for name, interval in result.intervals.items()
    )
    others = "".join(f"; {text}" for name, text in named.items() if name not in task.interval_scores)
    return f"On {split} ({count_scored(result, task)}): {scores}{others}."


def ablation_scores(table: AblationTable, splits: Sequence[str] = EVALUATED_SPLITS) -> TextTable:
    """Scores of an ablation by split, trained compressors first and baselines below."""
    names = [COLUMN_NAMES[score] for score in table.task.main_scores]
    names.insert(len(table.task.curve_scores), f"{COLUMN_NAMES[table.task.selection]} gain")
    header = ["model", "alpha", "bytes", "seeds", *search_table.split_columns(splits, names)]
    rows = []
    for row in table.rows:
        name = f"{row.name} (best on dev)" if row is table.best else row.name
        cells = [name, f"{row.recipe.alpha:g}", f"{row.recipe.bytes_per_vector:,}", _count_seeds(row, splits)]
        cells += _score_cells(row.scores, row.gains, table.task, splits)
        rows.append([*cells, row.scores["train/loss"].format(), row.scores["train/clean_loss"].format()])
    for baseline in table.score_baselines:
        draws = next(iter(baseline.scores.values())).count
        cells = [baseline.name, "", f"{baseline.bytes:,}", f"{draws} draws" if draws > 1 else ""]
        rows.append([*cells, *_score_cells(baseline.scores, {}, table.task, splits), "", ""])
    return [*header, "train loss, noisy", "train loss, clean"], rows


def _count_seeds(row: Row, splits: Sequence[str]) -> str:
    """The number of seeds, by split if it differs."""
    counts = {split: row.seeds(split) for split in splits}
    if len(set(counts.values())) == 1:
        return f"{counts[splits[0]]}"
    return ", ".join(f"{count} {split}" for split, count in counts.items())


def _score_cells(
    scores: Mapping[str, SeedStats], gains: Mapping[str, MeanDifference], task: Task, splits: Sequence[str]
) -> list[str]:
    """The main scores of every split, and the gain behind those that are measured after every epoch."""
    cells = []
    for split in splits:
        stats = {score: scores.get(metric_name(split, score), NO_VALUES) for score in task.main_scores}
        values = [stats[score].format(num_digits(task, score)) for score in task.main_scores]
        values.insert(len(task.curve_scores), gains[split].format() if split in gains else "")
        cells += values
    return cells


def compact_scores(table: AblationTable, splits: Sequence[str] = EVALUATED_SPLITS) -> TextTable:
    """The most important columns of `ablation_scores`."""
    header, rows = ablation_scores(table, splits)
    selection = COLUMN_NAMES[table.task.selection]
    names = (*COMPACT_COLUMNS, selection, f"{selection} gain")
    columns = [i for i, name in enumerate(header) if name.endswith(names)]
    return [header[i] for i in columns], [[row[i] for i in columns] for row in rows]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of escaped text; all columns but the first are aligned right."""
    lines = [[escape_markdown(cell) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def truncate_lines(text: str, limit: int, note: str) -> str:
    """The text, or as many of its lines as fit into `limit` characters with a note below them."""
    if len(text) <= limit:
        return text
    return text[: limit - len(note) - 2].rpartition("\n")[0] + f"\n\n{note}"


def to_markdown(tables: Sequence[AblationTable], notes: Sequence[str]) -> str:
    """Scores and search quality of all tables, with their notes."""
    return render("table.md.jinja", tables=tables, notes=notes)


def render(template: str, **values: object) -> str:
    """A template with values, in Markdown."""
    environment = template_environment()
    environment.filters["md"] = escape_markdown
    functions = (ablation_scores, compact_scores, markdown_table)
    environment.globals |= {function.__name__: function for function in functions} | {"search_table": search_table}
    return environment.get_template(template).render(values)


def template_environment() -> Environment:
    """The templates of reports; values are escaped in HTML alone."""
    environment = Environment(
        loader=PackageLoader("twinsqueeze.reporting"),
        autoescape=select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"capitalized_name": capitalized_name, "score_names": COLUMN_NAMES}
    return environment


def to_dataframe(tables: Sequence[AblationTable]) -> pd.DataFrame:
    """All rows of all tables with unrounded scores and the ids of their runs."""
    records = []
    for table in tables:
        shared = {"data": table.title, "dataset_digest": table.comparison_key.dataset_digest}
        for row in table.rows:
            record = shared | {"model": row.name, "best": row is table.best, "bytes": row.recipe.bytes_per_vector}
            record |= {name: getattr(row.recipe, name) for name in ("alpha", "dim", "epochs", "batch_size", "lr")}
            record |= {"seeds": len(row.runs)} | {f"{split}/seeds": row.seeds(split) for split in EVALUATED_SPLITS}
            record |= _means_and_deviations(row.scores)
            for split, gain in row.gains.items():
                column = f"{metric_name(split, table.task.selection)}_gain"
                record |= {column: gain.mean, f"{column}_low": gain.low, f"{column}_high": gain.high}
            records.append(record | {"runs": " ".join(run.run_id for run in row.runs)})
        for baseline in table.baselines:
            record = shared | {"model": baseline.name, "best": False, "bytes": baseline.bytes, "dim": baseline.dim}
            records.append(record | _means_and_deviations(baseline.scores))
    integers = ("bytes", "dim", "epochs", "batch_size", "seeds", *(f"{split}/seeds" for split in EVALUATED_SPLITS))
    return pd.DataFrame(records).astype(dict.fromkeys(integers, "Int64"))  # int64 cannot hold the baselines' gaps


def _means_and_deviations(scores: Mapping[str, SeedStats]) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name, stats in scores.items():
        columns |= {name: stats.mean, f"{name}_sd": stats.deviation}
    return columns


def to_latex(tables: Sequence[AblationTable]) -> str:
    """A tabular of scores and one of search quality for every table and split."""
    texts = ["% Needs \\usepackage{booktabs}."]
    for table in tables:
        search_rows = search_table.rows_from_tables([table])
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
