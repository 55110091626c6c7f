"""A pool of worker processes that never outlive this process."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection, Pipe
from multiprocessing.resource_tracker import ensure_running
from typing import Any

from twinsqueeze.utils.signals import POLL_SECONDS, check_interrupted, defer_signals

# Raised where processes cannot be started: no shared memory, no room, or (ValueError) one died while the next started.
_SPAWN_ERRORS = (OSError, NotImplementedError, BrokenProcessPool, ValueError)


class WorkerPool(AbstractContextManager["WorkerPool"]):
    """Worker processes, which start in the background and call `warm_up`, such as a function with slow imports.

    They call module-level functions with picklable arguments. If they cannot be started, or one is killed, every call
    raises `BrokenProcessPool`.
    """

    def __init__(self, workers: int, warm_up: Callable[[], None], niceness: int = 0) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._options = workers, multiprocessing.get_context("spawn"), _initialize_worker, (niceness,)
        with _signals_blocked():
            self._warm_ups = [self.submit(warm_up) for _ in range(workers)]

    def __exit__(self, *_: object) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def kill(self) -> None:
        """Kills the workers; calls that have not ended raise `BrokenProcessPool`."""
        workers = self._executor._processes if self._executor else {}
        for process in list(workers.values()):
            process.kill()

    def wait_until_ready(self) -> bool:
        """Waits for the workers to start; returns whether they did."""
        return not any(future.exception() for future in self._warm_ups)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Schedules `function(*arguments)`."""
        try:
            self._executor = self._executor or ProcessPoolExecutor(*self._options)
            return self._executor.submit(function, *arguments)
        except _SPAWN_ERRORS as error:
            failed: Future[Any] = Future()
            failed.set_exception(BrokenProcessPool(f"worker processes cannot be started: {error}"))
            return failed

    def call(self, function: Callable[..., Any], *arguments: Any, on_message: Callable[..., None]) -> Any:
        """Runs `function(send, *arguments)` in a worker, whose `send(*message)` calls `on_message` in this thread.

        A worker is at most one message ahead. After an error of `on_message`, the next `send` raises as well.
        """
        ours, theirs = Pipe()
        with ours, theirs:
            future = self.submit(_call, theirs, function, arguments)
            ours.send(None)
            while not future.done() or ours.poll():
                check_interrupted()
                if ours.poll(POLL_SECONDS):
                    if (message := ours.recv()) is None:
                        break
                    on_message(*message)
                    ours.send(None)
            return future.result()


def _call(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    def send(*message: Any) -> None:
        connection.recv()  # the message before has been handled
        connection.send(message)

    try:
        return function(send, *arguments)
    finally:
        connection.send(None)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks SIGINT and SIGHUP in the workers that are started: this process handles them."""
    with defer_signals(then_stop=True):
        ensure_running()  # the resource tracker would unblock the signals if it started later
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialize_worker(niceness: int) -> None:
    os.nice(niceness)
    threading.Thread(target=_exit_with_parent, name="parent watch", daemon=True).start()


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
