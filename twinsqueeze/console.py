"""What users read: progress while they wait, tables and sentences at the end."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from twinsqueeze import report, search_table
from twinsqueeze.ablation_table import SPLITS, AblationTable
from twinsqueeze.report import NAMES
from twinsqueeze.search_table import SearchRow
from twinsqueeze.texts import printable

if TYPE_CHECKING:  # a comparison needs no PyTorch, which takes a second to import
    from twinsqueeze.baselines import BaselineScores
    from twinsqueeze.evaluation import Assessment
    from twinsqueeze.search_cost import IndexCost

PLAIN_LINES = 10
NARROWEST = 150

SECONDS_A_LINE = 10

Advance = Callable[[int, int | None, Mapping[str, str]], None]


@contextmanager
def progress(title: str, unit: str) -> Iterator[Advance]:
    """A bar on standard error with the time left; where that is no terminal, ten plain lines.

    Yields:
        A function of how many are done, how many there are, and figures to show beside them. Where nobody knows how
        many there are, that is None, and plain lines come every ten seconds.
    """
    bar: Any = None
    started = spoke = time.monotonic()
    said = 0

    def advance(done: int, total: int | None, figures: Mapping[str, str]) -> None:
        nonlocal bar, said, spoke
        if sys.stderr.isatty():
            if bar is None:
                bar = tqdm(total=total, desc=title, unit=f" {unit}", dynamic_ncols=True)
            bar.set_postfix(figures, refresh=done == bar.n)
            bar.update(done - bar.n)
        elif total is None:
            if time.monotonic() - spoke > SECONDS_A_LINE:
                spoke = time.monotonic()
                print(f"{title}: {unit} {done}", file=sys.stderr, flush=True)
        elif done * PLAIN_LINES // total > said or done == total:
            said = done * PLAIN_LINES // total
            left = (time.monotonic() - started) / done * (total - done)
            shown = "".join(f", {name} {value}" for name, value in figures.items())
            print(f"{title}: {unit} {done} of {total}{shown}, {left:.0f} s left", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()


def say(text: str) -> None:
    """A line on standard error, where progress goes."""
    print(_safe(text), file=sys.stderr, flush=True)


def _safe(text: str) -> str:
    """Without commands to the terminal; lines stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def tell(*lines: str) -> None:
    """Lines of a result, on standard output."""
    for line in lines:
        print(_safe(line))


def warn(text: str) -> None:
    """A line that must not be missed, on standard error."""
    say(f"WARNING: {text}")


def rows(
    title: str,
    size: int,
    assessments: Mapping[str, "Assessment"],
    baselines: Sequence["BaselineScores"],
) -> tuple[list[str], list[list[str]]]:
    """The table of a run: the compressor first, what needs no labels below; a header and its rows, as text."""
    splits = list(assessments)
    header = ["model", "bytes"]
    header += [f"{split} {column}" for split in splits for column in (*NAMES.values(), "neighbours")]
    ours = [title, f"{size:,}"]
    for split in splits:
        ours += _cells(assessments[split].scores)
    table = [ours]
    for baseline in (baseline for baseline in baselines if not baseline.only_search):
        row = [baseline.name, f"{baseline.bytes:,}"]
        for split in splits:
            row += _cells(baseline.scores[split])
        table.append(row)
    return header, table


def _cells(scores: Mapping[str, float]) -> list[str]:
    return [f"{scores[name]:.4f}" for name in NAMES] + [f"{scores['neighbours_kept']:.2f}"]


def print_results(
    title: str,
    size: int,
    assessments: Mapping[str, "Assessment"],
    baselines: Sequence["BaselineScores"],
    search: Sequence[SearchRow],
) -> None:
    """Prints small tables on standard output: of a split's scores, and of what search keeps there."""
    console = _console()
    for split, assessment in assessments.items():
        header, table = rows(title, size, {split: assessment}, baselines)
        title_text = f"{split}: {len(assessment.labels):,} pairs"
        console.print(_grid(title_text, [column.removeprefix(f"{split} ") for column in header], table))
        shown = ", ".join(
            f"{NAMES[name]} {interval.low:.4f} to {interval.high:.4f}"
            for name, interval in assessment.intervals.items()
        )
        console.print(f"95% intervals over pairs: {shown}\n", soft_wrap=True)
        _print_search(console, search, split)


def print_costs(costs: Sequence["IndexCost"]) -> None:
    """Prints what searches cost, if any were timed, on standard output."""
    if costs:
        console = _console()
        console.print(_grid("what search costs, a query at a time", *search_table.costs_as_text(costs)))
        console.print()


def print_table(table: AblationTable) -> None:
    """Prints an ablation's table on standard output, a part a split."""
    console = _console()
    console.print(_safe(table.title), soft_wrap=True)
    if table.notice:
        console.print(_safe(table.notice), soft_wrap=True)
    for split in SPLITS:
        header, rows = report.brief(table, [split])
        console.print(_grid(split, [column.removeprefix(f"{split} ") for column in header], rows))
    found = search_table.of_table(table)
    for split in SPLITS:
        _print_search(console, found, split)
    for note in table.notes:
        console.print(_safe(note), soft_wrap=True)
    console.print()
    sys.stdout.flush()  # figures take their time, and the table is there


def _print_search(console: Console, rows: Sequence[SearchRow], split: str) -> None:
    header, shown = search_table.as_text(rows, [split])
    header = [column.removeprefix(f"{split} ") for column in header]
    console.print(_grid(f"{split}: what search keeps", header, shown))
    console.print()


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)  # a name in brackets is no colour
    console.width = max(console.width, NARROWEST)  # a narrow terminal breaks lines, where rich would cut figures off
    return console


def _grid(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    grid = Table(title=title, title_justify="left", box=None)
    for i, column in enumerate(header):
        grid.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(printable, row))
    return grid


def print_next(steps: Sequence[tuple[str, str]]) -> None:
    """Prints what to do next and the exact command or address for it, on standard output."""
    width = max(len(what) for what, _ in steps)
    print("Next:")
    for what, how in steps:
        print(_safe(f"  {what:<{width}}  {how}"))


def sentence(split: str, assessment: "Assessment") -> str:
    """A split's scores in words."""
    parts = [
        f"{NAMES[name]} {assessment.scores[name]:.4f} (95% interval {interval.low:.4f} to {interval.high:.4f})"
        for name, interval in assessment.intervals.items()
    ]
    kept = assessment.scores["neighbours_kept"]
    return (
        f"On {split} ({len(assessment.labels):,} pairs): {', '.join(parts)}; "
        f"{kept:.0%} of a sentence's ten nearest neighbours are kept."
    )
