"""Results on standard output: headlines, tables that fit the terminal, and next steps."""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from operator import attrgetter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from twinsqueeze.recipe import FLOAT_QUERIES
from twinsqueeze.reporting import formats, report, search_table
from twinsqueeze.reporting.ablation_table import (
    COLUMN_NAMES,
    EVALUATED_SPLITS,
    AblationTable,
    count,
    metric_name,
    selection_metric,
)
from twinsqueeze.reporting.headline import headline, strongest_baselines
from twinsqueeze.reporting.search_table import SearchRow, TextTable, VectorFormat
from twinsqueeze.utils.console import print_result
from twinsqueeze.utils.text import escape_control_chars

if TYPE_CHECKING:  # `compare` needs no PyTorch, which takes a second to import
    from twinsqueeze.evaluation.evaluator import EvaluationResult

MAX_ROWS = 12
MAX_TRAINED_ROWS = 8  # of an ablation
MAX_STEPS = 3
MIN_COLUMNS = 4  # a narrower terminal wraps names
# Scores of a run beside the selection score, and columns of an ablation, by falling importance.
OTHER_SCORES = (
    "neighbor_recall", "recall_at_10", "recall_at_100", "mrr", "mrr_at_10", "recall_at_1", "pearson", "mse", "mae",
)  # fmt: skip
ABLATION_COLUMNS = (
    "model", "alpha", "bytes", "dev {score}", "test {score}", "test neighbor recall", "seeds", "dev {score} gain",
    "test {score} gain",
)  # fmt: skip


def print_run(
    vectors: VectorFormat, results: Mapping[str, "EvaluationResult"], rows: Sequence[SearchRow], *, verbose: bool
) -> None:
    """Print a run's headline and its most important rows; if `verbose`, also all scores."""
    splits, selection = list(results), rows[0].task.selection
    trained = [replace(row, name=_own_name(row, vectors)) for row in rows if row.is_trained]
    ours = next(row for row in trained if not row.search_only)
    print_lines(*headline(vectors, ours, rows, splits), "")
    baselines = strongest_baselines(
        rows,
        list(dict.fromkeys(row.bytes for row in trained)),
        metric_name(splits[0], selection),
        MAX_ROWS - len(trained),
        float_queries=any(row.name.endswith(FLOAT_QUERIES) for row in trained),
    )
    # The size has a column of its own.
    shown = sorted([*trained, *(replace(row, name=row.sizeless_name) for row in baselines)], key=lambda row: -row.bytes)
    columns = [*((split, selection) for split in splits), *((splits[-1], score) for score in OTHER_SCORES)]
    measured = [
        column
        for column in dict.fromkeys(columns)
        if any(isfinite(row.score(metric_name(*column)).mean) for row in shown)
    ]
    header, cells = search_table.format_columns(shown, measured)
    print_table((header, cells), {i for i, row in enumerate(shown) if row.is_trained})
    if verbose:
        _print_all_scores(results, rows)


def _own_name(row: SearchRow, vectors: VectorFormat) -> str:
    return row.name.replace(vectors.name, "this model", 1).removesuffix(", float32")


def _print_all_scores(results: Mapping[str, "EvaluationResult"], rows: Sequence[SearchRow]) -> None:
    """Print two tables per split."""
    task = rows[0].task
    for split, result in results.items():
        print_lines("", f"{split}: {formats.count_scored(result, task)}")
        print_table(search_table.format_run(rows, [split]))
        intervals = [
            f"{COLUMN_NAMES[name]} {formats.format_interval(name, interval, task)}"
            for name, interval in result.intervals.items()
        ]
        print_lines(f"95% intervals over {task.unit}: {', '.join(intervals)}", "", f"{split}: search quality")
        print_table(search_table.format_rows(rows, [split]))


def print_ablation(tables: Sequence[AblationTable], *, verbose: bool) -> None:
    """Print a headline per table, and the most important rows of the first; if `verbose`, all rows of all."""
    for i, table in enumerate(tables):
        notice = [table.notice] if table.notice else []
        print_lines(*([""] if i else []), table.title, *notice, report.conclusion(table), "")
        if not i or verbose:
            shown = replace(table, shows_all=True) if verbose else _key_rows(table)
            _print_ablation_scores(shown)
            if hidden := len(table.rows) - len(shown.rows):
                print_lines(f"{count(hidden, 'more row')} of trained compressors: --verbose prints all.")
            print_lines(*table.notes)
        if verbose:
            rows = search_table.rows_from_tables([shown])
            for split in EVALUATED_SPLITS:
                print_lines("", f"{split}: search quality")
                print_table(search_table.format_rows(rows, [split]))
    sys.stdout.flush()  # before the figures, which take seconds


def _key_rows(table: AblationTable) -> AblationTable:
    """The table with its best rows on dev and the baselines to compare them with."""
    ranked = sorted(table.rows, key=attrgetter("dev_score"), reverse=True)
    rows = [row for row in table.rows if row in ranked[:MAX_TRAINED_ROWS]]
    limit = min(MAX_ROWS - len(rows), MAX_ROWS // 2)
    size = table.best.recipe.bytes_per_vector
    chosen = strongest_baselines(
        search_table.rows_from_tables([table]), [size], selection_metric(table.task), limit, float_queries=False
    )
    names = {row.name for row in chosen}
    baselines = [replace(each, search_only=False) for each in table.baselines if each.name in names]
    return replace(table, rows=rows, baselines=baselines, shows_all=True)


def _print_ablation_scores(table: AblationTable) -> None:
    header, rows = formats.ablation_scores(table)
    names = (name.format(score=COLUMN_NAMES[table.task.selection]) for name in ABLATION_COLUMNS)
    columns = [header.index(name) for name in dict.fromkeys(names)]
    best = {i for i, row in enumerate(table.rows) if row is table.best}
    print_table(([header[i] for i in columns], [[row[i] for i in columns] for row in rows]), best)


def print_table(content: TextTable, highlighted: Collection[int] = ()) -> None:
    """Print a table without the rightmost columns that do not fit."""
    header, rows = content
    console = _console()
    unlimited = console.options.update(width=1000)
    for number in range(len(header), min(len(header), MIN_COLUMNS) - 1, -1):
        table = _make_table(header[:number], [row[:number] for row in rows], highlighted)
        if console.measure(table, options=unlimited).maximum <= console.width:
            break
    console.print(table)


def _make_table(header: Sequence[str], rows: Sequence[Sequence[str]], highlighted: Collection[int]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for i, column in enumerate(header):
        first, _, rest = column.partition(" ")
        name = f"{first}\n{rest}".strip()
        table.add_column(name, justify="right" if i else "left", vertical="bottom", no_wrap=i > 0, overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*map(escape_control_chars, row), style="bold green" if i in highlighted else None)
    return table


def print_lines(*lines: str) -> None:
    """Print lines, wrapped between words."""
    console = _console()
    for line in lines:
        console.print(escape_control_chars(line))


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)  # names may contain brackets and colons


def print_next_steps(steps: Sequence[tuple[str, str]]) -> None:
    """Print the first of the next steps with their exact commands or addresses."""
    shown = steps[:MAX_STEPS]
    width = max(len(step) for step, _ in shown)
    print_result("", "Next:", *(f"  {step:<{width}}  {command}" for step, command in shown))
