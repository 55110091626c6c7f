"""Results on standard output: tables and next steps."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from twinsqueeze.reporting import formats, search_table
from twinsqueeze.reporting.ablation_table import COLUMN_NAMES, EVALUATED_SPLITS, AblationTable
from twinsqueeze.reporting.search_table import SearchRow
from twinsqueeze.utils.console import print_result
from twinsqueeze.utils.text import escape_control_chars

if TYPE_CHECKING:  # `compare` needs no PyTorch, which takes a second to import
    from twinsqueeze.evaluation.evaluator import EvaluationResult


def print_results(results: Mapping[str, "EvaluationResult"], rows: Sequence[SearchRow]) -> None:
    """Print a run's scores and search quality, two tables per split."""
    for split, result in results.items():
        _print_table(f"{split}: {len(result.labels):,} pairs", *search_table.format_run(rows, [split]))
        intervals = [f"{COLUMN_NAMES[name]} {i.low:.4f} to {i.high:.4f}" for name, i in result.intervals.items()]
        print_result(f"95% intervals over pairs: {', '.join(intervals)}", "")
        _print_table(f"{split}: search quality", *search_table.format_rows(rows, [split]))
        print()


def print_table(table: AblationTable) -> None:
    """Print an ablation's scores and search quality, a table each per split."""
    print_result(table.title, *([table.notice] if table.notice else []))
    for split in EVALUATED_SPLITS:
        _print_table(split, *formats.compact_scores(table, [split]))
    rows = search_table.rows_from_tables([table])
    for split in EVALUATED_SPLITS:
        _print_table(f"{split}: search quality", *search_table.format_rows(rows, [split]))
        print()
    print_result(*table.notes, "")
    sys.stdout.flush()  # before the figures, which take seconds


def _print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=None)
    for i, column in enumerate(header):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape_control_chars, row))
    console = Console(highlight=False, markup=False, emoji=False)  # names may contain brackets and colons
    console.width = max(console.width, 150)  # a narrower terminal wraps lines; rich would truncate cells instead
    console.print(table)


def print_next_steps(steps: Sequence[tuple[str, str]]) -> None:
    """Print next steps with their exact commands or addresses."""
    width = max(len(step) for step, _ in steps)
    print_result("Next:", *(f"  {step:<{width}}  {command}" for step, command in steps))
