"""A pool of worker processes that never outlive this process."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection, Pipe
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.resource_tracker import ensure_running
from typing import Any

from twinsqueeze.utils.signals import POLL_SECONDS, check_interrupted, defer_signals

# Raised where processes cannot be started: no shared memory, no room, or (ValueError) one died while the next started.
_SPAWN_ERRORS = (OSError, NotImplementedError, BrokenProcessPool, ValueError)


class WorkerPool(AbstractContextManager["WorkerPool"]):
    """Worker processes. If they cannot be started, or one is killed, every call raises `BrokenProcessPool`.

    Args:
        workers: Number of processes. They start in the background.
        warm_up: A module-level function that every worker calls first, such as one with slow imports.
        niceness: Added to the niceness of the workers.
    """

    def __init__(self, workers: int, warm_up: Callable[[], None], niceness: int = 0) -> None:
        self._executor: ProcessPoolExecutor | None = None
        try:
            self._executor = ProcessPoolExecutor(workers, _DaemonSpawnContext(), _initialize_worker, (niceness,))
            with _signals_blocked():
                self._warm_ups = [self._executor.submit(warm_up) for _ in range(workers)]
        except _SPAWN_ERRORS as error:
            self._warm_ups = [_failed(error)]

    def __exit__(self, *_: object) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def wait_until_ready(self) -> bool:
        """Waits for the workers to start; returns whether they did."""
        return not any(future.exception() for future in self._warm_ups)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Schedules `function(*arguments)`, which is a module-level function and picklable arguments."""
        try:
            return self._executor.submit(function, *arguments) if self._executor else self._warm_ups[0]
        except _SPAWN_ERRORS as error:
            return _failed(error)

    def call(self, function: Callable[..., Any], *arguments: Any, on_message: Callable[..., None]) -> Any:
        """Runs `function(send, *arguments)` in a worker and returns its result.

        Args:
            function: A module-level function. What it passes to `send(*message)` arrives at `on_message`.
            arguments: Anything that can be pickled.
            on_message: Called in this thread. After an error that it raises, `send` raises as well.
        """
        reader, writer = Pipe(duplex=False)
        with reader, writer:
            # Pickled here: multiprocessing would pass tensors as shared memory, of which containers have little.
            future = self.submit(_call, writer, pickle.dumps((function, arguments)))
            while True:
                check_interrupted()
                if reader.poll(POLL_SECONDS):
                    if (message := reader.recv()) is None:
                        break
                    on_message(*message)
                elif future.done():
                    break
            return pickle.loads(future.result())  # noqa: S301 - from a worker of this process


class _DaemonSpawnContext(SpawnContext):
    """Starts daemons, which end with this process, and spawns them: a fork would copy locks that other threads hold."""

    def Process(self, *arguments: Any, **options: Any) -> SpawnProcess:  # type: ignore[override] # noqa: N802
        return SpawnProcess(*arguments, **options, daemon=True)


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


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(BrokenProcessPool(f"worker processes cannot be started: {error}"))
    return future


def _initialize_worker(niceness: int) -> None:
    os.nice(niceness)
    threading.Thread(target=_exit_with_parent, name="parent watch", daemon=True).start()


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _call(writer: Connection, payload: bytes) -> bytes:
    function, arguments = pickle.loads(payload)  # noqa: S301 - from the parent process
    try:
        return pickle.dumps(function(lambda *message: writer.send(message), *arguments))
    finally:
        writer.send(None)
