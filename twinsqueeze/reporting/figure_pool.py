"""Renders figures as PNG files, in this process or in worker processes.

The figures of a run take half a second of one core. Workers render those of a grid while this process logs its runs.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twinsqueeze.utils.worker_pool import WorkerPool

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

# A plot function without arguments: a `functools.partial` of a module's function, so that workers can unpickle it.
Drawing = Callable[[], "Figure"]
# Renders each drawing into its PNG file before the context ends, perhaps while it lasts.
Draw = Callable[[Mapping[Path, Drawing]], AbstractContextManager[None]]
# For fewer runs, workers take longer to start than they save.
MIN_RUNS_FOR_POOL = 8
# A run has four figures.
MAX_WORKERS = 4


@contextmanager
def render_inline(drawings: Mapping[Path, Drawing]) -> Iterator[None]:
    """Renders in this process; a `Draw`."""
    for path, drawing in drawings.items():
        path.write_bytes(_render(drawing))
    yield


@contextmanager
def render_pool(num_runs: int) -> Iterator[Draw]:
    """Yields a `Draw` for the figures of `num_runs` runs, with worker processes if the runs are many."""
    if num_runs < MIN_RUNS_FOR_POOL:
        yield render_inline
        return
    with WorkerPool(min(os.cpu_count() or 1, MAX_WORKERS), _import_plots) as pool:
        yield partial(_render_in_workers, pool)


@contextmanager
def _render_in_workers(pool: WorkerPool, drawings: Mapping[Path, Drawing]) -> Iterator[None]:
    futures = {path: pool.submit(_render, drawing) for path, drawing in drawings.items()}
    try:
        yield
        for path, drawing in drawings.items():
            path.write_bytes(_wait_for_png(futures[path], drawing))
    finally:
        for future in futures.values():
            future.cancel()


def _wait_for_png(future: Future[bytes], drawing: Drawing) -> bytes:
    """Waits for a figure; renders it here if no worker can."""
    try:
        return future.result()
    except BrokenProcessPool:
        return _render(drawing)


def _render(drawing: Drawing) -> bytes:
    file = io.BytesIO()
    drawing().savefig(file, format="png")
    return file.getvalue()


def _import_plots() -> None:
    from twinsqueeze.reporting import run_plots  # noqa: F401, PLC0415 - matplotlib is imported in the workers
