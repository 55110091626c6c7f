"""Messages and progress bars for the terminal, and where the library reports them."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from tqdm import tqdm

from twinsqueeze.utils.text import escape_lines

PLAIN_LINES = 10
SECONDS_BETWEEN_LINES = 10
# Fits 80 columns with the values of a training beside it.
BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
# Called with the number done, the total or None, and values to show beside them.
Advance = Callable[[int, int | None, Mapping[str, str]], None]
# Called with a title and a unit; shows the progress while the context is open.
OpenProgress = Callable[[str, str], AbstractContextManager[Advance]]


@contextmanager
def progress(title: str, unit: str) -> Iterator[Advance]:
    """Show progress on standard error: a bar on a terminal, otherwise ten lines, or without a total one every 10 s."""
    bar: Any = None
    started = last_line = time.monotonic()
    lines = 0

    def advance(done: int, total: int | None, values: Mapping[str, str]) -> None:
        nonlocal bar, lines, last_line
        if sys.stderr.isatty():
            if bar is None:
                shape = BAR_FORMAT if total else None
                bar = tqdm(total=total, desc=title, unit=f" {unit}", dynamic_ncols=True, bar_format=shape)
            bar.set_postfix_str(_join(values), refresh=done == bar.n)
            bar.update(done - bar.n)
        elif total is None:
            if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                print(f"{title}: {unit} {done}", file=sys.stderr, flush=True)
        elif done * PLAIN_LINES // total > lines or done == total:
            lines = done * PLAIN_LINES // total
            seconds_left = (time.monotonic() - started) / done * (total - done)
            shown = "".join(f", {value}" for value in (_join(values), f"{seconds_left:.0f} s left") if value)
            print(f"{title}: {unit} {done} of {total}{shown}", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()


def _join(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def info(text: str) -> None:
    """Print a message on standard error, above a progress bar."""
    tqdm.write(escape_lines(text), file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    info(f"WARNING: {text}")


class Reporter(NamedTuple):
    """Where the library reports progress and messages, so that it never prints by itself."""

    progress: OpenProgress
    info: Callable[[str], None]
    warn: Callable[[str], None]


TERMINAL = Reporter(progress, info, warn)
SILENT = Reporter(lambda *_: nullcontext(lambda *_: None), lambda _: None, lambda _: None)


def print_result(*lines: str) -> None:
    """Print lines of a result on standard output."""
    print(*map(escape_lines, lines), sep="\n", flush=True)  # the upload to the store may still take a minute
