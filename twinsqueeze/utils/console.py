"""Messages and progress bars."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from twinsqueeze.utils.text import escape_control_chars

PLAIN_LINES = 10
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


def info(text: str) -> None:
    """A line on standard error, where progress goes."""
    print(_escape(text), file=sys.stderr, flush=True)


def _escape(text: str) -> str:
    """Without commands to the terminal; lines stay lines."""
    return "\n".join(map(escape_control_chars, text.split("\n")))


def print_result(*lines: str) -> None:
    """Lines of a result, on standard output."""
    for line in lines:
        print(_escape(line))


def warn(text: str) -> None:
    """A line that must not be missed, on standard error."""
    info(f"WARNING: {text}")
