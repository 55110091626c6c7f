"""Draws figures into files, here or in processes of their own.

The figures of a run take half a second of one core, as much as everything else that is recorded of a replica of a grid,
and they hold Python's lock meanwhile. Processes of their own draw them while this one goes on recording.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib takes a second to import, which is for who draws
    from matplotlib.figure import Figure

# To be drawn by another process it is a `functools.partial` of a module's function and its arrays.
Drawing = Callable[[], "Figure"]
# Draws each into its file. They may be there when the context is entered and are there when it is left.
Draw = Callable[[Mapping[Path, Drawing]], AbstractContextManager[None]]

# For fewer replicas than this, processes would take longer to start than they save.
FEWEST_REPLICAS = 8
# A run has four figures.
MOST_PROCESSES = 4


@contextmanager
def here(drawings: Mapping[Path, Drawing]) -> Iterator[None]:
    """Draws in this process; a `Draw`."""
    for path, drawing in drawings.items():
        _save(drawing, path)
    yield


@contextmanager
def processes(replicas: int) -> Iterator[Draw]:
    """A `Draw` for a grid, with processes that start at once and end with the context or this process.

    Args:
        replicas: How many runs will have their figures drawn; for a few they are drawn here.
    """
    if replicas < FEWEST_REPLICAS:
        yield here
        return
    count = min(os.cpu_count() or 1, MOST_PROCESSES)
    # Not forked: this process has threads, and a fork has their locks without them.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)

    @contextmanager
    def draw(drawings: Mapping[Path, Drawing]) -> Iterator[None]:
        begun = [(_begun(pool, drawing, path), drawing, path) for path, drawing in drawings.items()]
        yield
        for drawn in begun:
            _finish(*drawn)

    try:
        for _ in range(count):
            pool.submit(_nothing)  # a process starts when there is something to do
        yield draw
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begun(pool: ProcessPoolExecutor, drawing: Drawing, path: Path) -> Future[None] | None:
    """A drawing in a process of the pool, None where that can't be."""
    try:
        return pool.submit(_save, drawing, path)
    except BrokenProcessPool:
        return None


def _finish(begun: Future[None] | None, drawing: Drawing, path: Path) -> None:
    """Waits for a drawing, and draws it here if its process is gone: something killed it, perhaps for its memory."""
    try:
        if begun:
            begun.result()
            return
    except BrokenProcessPool:
        pass
    _save(drawing, path)


def _save(drawing: Drawing, path: Path) -> None:
    drawing().savefig(path)


def _nothing() -> None:
    """What a process is started for."""


def _begin() -> None:
    """Begins a process, which leaves Ctrl-C to the one that started it, and ends when that is gone, however it went."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
    # what a drawing will need, while nobody waits for it
    from twinsqueeze import figures  # noqa: F401, PLC0415
