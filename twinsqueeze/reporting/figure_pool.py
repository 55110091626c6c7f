"""Draws figures into files, here or in processes of their own.

The figures of a run take half a second of one core, as much as everything else that is recorded of a replica of a grid,
and they hold Python's lock meanwhile. Processes of their own draw them while this one goes on recording.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twinsqueeze.utils.processes import SPAWN_ERRORS, DaemonSpawnContext, end_with_parent, spawning

if TYPE_CHECKING:  # matplotlib takes a second to import, which is for who draws
    from matplotlib.figure import Figure

# To be drawn by another process it is a `functools.partial` of a module's function and its arrays.
Drawing = Callable[[], "Figure"]
# Draws each into its file. They may be there when the context is entered and are there when it is left.
Draw = Callable[[Mapping[Path, Drawing]], AbstractContextManager[None]]
# For fewer replicas than this, processes would take longer to start than they save.
MIN_RUNS_FOR_POOL = 8
# A run has four figures.
MOST_PROCESSES = 4
# For one figure, which takes a fifth of a second; after that it is drawn here.
PATIENCE_SECONDS = 300.0


@contextmanager
def render_inline(drawings: Mapping[Path, Drawing]) -> Iterator[None]:
    """Draws in this process; a `Draw`."""
    for path, drawing in drawings.items():
        _save(drawing, path)
    yield


@contextmanager
def render_pool(replicas: int) -> Iterator[Draw]:
    """A `Draw` for a grid, with processes that start at once, and end with the context or with this process.

    Args:
        replicas: How many runs will have their figures drawn. For a few, and where there can be no processes, they are
            drawn here.
    """
    with ExitStack() as stack:
        pool = _pool(stack) if replicas >= MIN_RUNS_FOR_POOL else None
        yield partial(_draw, pool) if pool else render_inline


def _pool(stack: ExitStack) -> ProcessPoolExecutor | None:
    """The processes, which end with the stack, or None where they can't be had."""
    count = min(os.cpu_count() or 1, MOST_PROCESSES)
    try:
        pool = ProcessPoolExecutor(count, DaemonSpawnContext(), _begin)
        # Waits until they have ended: Python does so at its own end at the latest, and then, before 3.12, may complain
        # that a pipe of theirs is closed.
        stack.callback(pool.shutdown, cancel_futures=True)
        with spawning():
            for _ in range(count):
                pool.submit(_nothing)  # a process starts when there is something to do
    except SPAWN_ERRORS:
        return None
    return pool


@contextmanager
def _draw(pool: ProcessPoolExecutor, drawings: Mapping[Path, Drawing]) -> Iterator[None]:
    with spawning():
        begun = {path: _begun(pool, drawing, path) for path, drawing in drawings.items()}
    try:
        yield
        for path, drawing in drawings.items():
            _finish(begun[path], drawing, path)
    except BaseException:
        # nobody writes on into a folder that is given up
        futures = [future for future in begun.values() if future and not future.cancel()]
        wait(futures, PATIENCE_SECONDS)
        raise


def _begun(pool: ProcessPoolExecutor, drawing: Drawing, path: Path) -> Future[None] | None:
    """A drawing in a process of the pool, None where that can't be."""
    try:
        return pool.submit(_save, drawing, path)
    except SPAWN_ERRORS:
        return None


def _finish(begun: Future[None] | None, drawing: Drawing, path: Path) -> None:
    """Waits for a drawing, and draws it here if a process of the pool is gone, which ends the pool."""
    try:
        if begun:
            begun.result(PATIENCE_SECONDS)
            return
    except (BrokenProcessPool, TimeoutError):
        pass
    _save(drawing, path)


def _save(drawing: Drawing, path: Path) -> None:
    drawing().savefig(path)


def _nothing() -> None:
    """What a process is started for."""


def _begin() -> None:
    end_with_parent()
    # what a drawing will need, while nobody waits for it
    from twinsqueeze.reporting import run_plots  # noqa: F401, PLC0415 - as above
