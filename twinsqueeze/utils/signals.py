"""Turns signals into an exception, and ends this process with the `mlflow run` that started it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

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


def exit_with_parent(run_id: str) -> None:
    """Send this process SIGTERM when the `mlflow run` that started it is gone, even by SIGKILL.

    `mlflow run` starts a shell with MLFLOW_RUN_ID in its environment, and the shell starts us. The highest ancestor
    with that variable is the child of `mlflow run`, and gets another parent when `mlflow run` is gone.
    """
    child = psutil.Process()
    with suppress(psutil.Error):  # an ancestor of another user, or gone
        for ancestor in child.parents():
            if ancestor.environ().get("MLFLOW_RUN_ID") != run_id:
                break
            child = ancestor
    parent_id = child.ppid()

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            while child.ppid() == parent_id:
                time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
