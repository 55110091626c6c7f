"""Tables and sentences for the terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from twinsqueeze.reporting import formats, search_table
from twinsqueeze.reporting.ablation_table import EVALUATED_SPLITS, AblationTable
from twinsqueeze.reporting.formats import COLUMN_NAMES
from twinsqueeze.reporting.search_table import SearchRow
from twinsqueeze.utils.text import escape_control_chars

if TYPE_CHECKING:  # a comparison needs no PyTorch, which takes a second to import
    from twinsqueeze.evaluation.baselines import BaselineScores
    from twinsqueeze.evaluation.evaluator import EvaluationResult

from twinsqueeze.utils.console import _escape

NARROWEST = 150


def rows(
    title: str,
    size: int,
    assessments: Mapping[str, "EvaluationResult"],
    baselines: Sequence["BaselineScores"],
) -> tuple[list[str], list[list[str]]]:
    """The table of a run: the compressor first, what needs no labels below; a header and its rows, as text."""
    splits = list(assessments)
    header = ["model", "bytes"]
    header += [f"{split} {column}" for split in splits for column in (*COLUMN_NAMES.values(), "neighbor recall")]
    ours = [title, f"{size:,}"]
    for split in splits:
        ours += _cells(assessments[split].scores)
    table = [ours]
    for baseline in (baseline for baseline in baselines if not baseline.search_only):
        row = [baseline.name, f"{baseline.bytes:,}"]
        for split in splits:
            row += _cells(baseline.scores[split])
        table.append(row)
    return header, table


def _cells(scores: Mapping[str, float]) -> list[str]:
    return [f"{scores[name]:.4f}" for name in COLUMN_NAMES] + [f"{scores['neighbor_recall']:.2f}"]


def print_results(
    title: str,
    size: int,
    assessments: Mapping[str, "EvaluationResult"],
    baselines: Sequence["BaselineScores"],
    search: Sequence[SearchRow],
) -> None:
    """Prints small tables on standard output: of a split's scores, and of what search keeps there."""
    console = _console()
    for split, assessment in assessments.items():
        header, table = rows(title, size, {split: assessment}, baselines)
        title_text = f"{split}: {len(assessment.labels):,} pairs"
        console.print(_make_table(title_text, [column.removeprefix(f"{split} ") for column in header], table))
        shown = ", ".join(
            f"{COLUMN_NAMES[name]} {interval.low:.4f} to {interval.high:.4f}"
            for name, interval in assessment.intervals.items()
        )
        console.print(f"95% intervals over pairs: {shown}\n", soft_wrap=True)
        _print_search(console, search, split)


def print_table(table: AblationTable) -> None:
    """Prints an ablation's table on standard output, a part a split."""
    console = _console()
    console.print(_escape(table.title), soft_wrap=True)
    if table.notice:
        console.print(_escape(table.notice), soft_wrap=True)
    for split in EVALUATED_SPLITS:
        header, rows = formats.key_columns(table, [split])
        console.print(_make_table(split, [column.removeprefix(f"{split} ") for column in header], rows))
    found = search_table.rows_from_table(table)
    for split in EVALUATED_SPLITS:
        _print_search(console, found, split)
    for note in table.notes:
        console.print(_escape(note), soft_wrap=True)
    console.print()
    sys.stdout.flush()  # figures take their time, and the table is there


def _print_search(console: Console, rows: Sequence[SearchRow], split: str) -> None:
    header, shown = search_table.as_text(rows, [split])
    header = [column.removeprefix(f"{split} ") for column in header]
    console.print(_make_table(f"{split}: what search keeps", header, shown))
    console.print()


def _make_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    grid = Table(title=title, title_justify="left", box=None)
    for i, column in enumerate(header):
        grid.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(escape_control_chars, row))
    return grid


def print_next_steps(steps: Sequence[tuple[str, str]]) -> None:
    """Prints what to do next and the exact command or address for it, on standard output."""
    width = max(len(what) for what, _ in steps)
    print("Next:")
    for what, how in steps:
        print(_escape(f"  {what:<{width}}  {how}"))


def scores_sentence(split: str, assessment: "EvaluationResult") -> str:
    """A split's scores in words."""
    parts = [
        f"{COLUMN_NAMES[name]} {assessment.scores[name]:.4f} (95% interval {interval.low:.4f} to {interval.high:.4f})"
        for name, interval in assessment.intervals.items()
    ]
    kept = assessment.scores["neighbor_recall"]
    return (
        f"On {split} ({len(assessment.labels):,} pairs): {', '.join(parts)}; "
        f"{kept:.0%} of a sentence's ten nearest neighbours are kept."
    )


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)  # a name in brackets is no colour
    console.width = max(console.width, NARROWEST)  # a narrow terminal breaks lines, where rich would cut figures off
    return console
