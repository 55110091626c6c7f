"""Stopping well: signals become an exception, and a run does not outlive the `mlflow run` that started it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.5


class Interrupted(BaseException):
    """The process was told to stop. No `Exception`, so that nothing that handles errors swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class _Shields(threading.local):
    """How many `defer_signals` the thread is in; signals raise in the main thread, and others look for them."""

    count = 0


_shields = _Shields()


_pending: int | None = None


def raise_on_signals() -> None:
    """From now on Ctrl-C, SIGTERM and SIGHUP raise `Interrupted` in the main thread."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup asked for SIGHUP to be ignored
            signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    del frame
    global _pending  # noqa: PLW0603 - a signal handler has no other place
    _pending = number
    check_interrupted()


def check_interrupted() -> None:
    """Raises `Interrupted` if a signal has come; for loops, since an exception raised in a finaliser is lost."""
    if _pending is not None and not _shields.count:
        raise Interrupted(_pending)


@contextmanager
def defer_signals(*, then_stop: bool) -> Iterator[None]:
    """Holds signals back from this thread while a record is being written.

    Args:
        then_stop: Whether a signal held back stops the program afterwards.
    """
    _shields.count += 1
    try:
        yield
    finally:
        _shields.count -= 1
    if then_stop:
        check_interrupted()


def exit_with_parent(run_id: str) -> None:
    """Stops this process when the `mlflow run` above it is gone, however it went.

    `mlflow run` starts us through a shell and hands both of us the run's id in the environment, which it does not have
    itself: the highest ancestor that has it is the child to watch, and a child whose parent dies gets another.

    Args:
        run_id: What MLFLOW_RUN_ID says.
    """
    child = psutil.Process()
    for ancestor in child.parents():
        try:
            if ancestor.environ().get("MLFLOW_RUN_ID") != run_id:
                break
        except psutil.Error:  # another user's process, or one that is gone
            break
        child = ancestor
    parent = child.ppid()

    def watch() -> None:
        wake = threading.Event()
        while not wake.wait(POLL_SECONDS):
            try:
                orphaned = child.ppid() != parent
            except psutil.NoSuchProcess:
                orphaned = True
            if orphaned:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
