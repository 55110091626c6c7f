"""Turns signals into an exception."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.5


class Interrupted(BaseException):
    """A signal has stopped the program. It is no `Exception`, so that no error handler swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class _Deferral(threading.local):
    depth = 0


# The number of `defer_signals` contexts that the thread is in, and the last signal.
_deferral = _Deferral()
_pending: int | None = None


def raise_on_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP raise `Interrupted` in the main thread."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _handle)


def _handle(number: int, _frame: FrameType | None) -> None:
    global _pending  # noqa: PLW0603 - a signal handler has no other place
    _pending = number
    check_interrupted()


def check_interrupted() -> None:
    """Raise `Interrupted` if a signal has arrived. Loops in other threads than the main one must call it."""
    if _pending is not None and not _deferral.depth:
        raise Interrupted(_pending)


@contextmanager
def defer_signals(*, then_stop: bool) -> Iterator[None]:
    """Keep signals from interrupting this thread while it writes; `then_stop` raises `Interrupted` afterwards."""
    _deferral.depth += 1
    try:
        yield
    finally:
        _deferral.depth -= 1
    if then_stop:
        check_interrupted()
