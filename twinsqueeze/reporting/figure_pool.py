"""Renders figures as PNG files: half a second per run, for a grid in worker processes while this one logs the runs."""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twinsqueeze.utils.worker_pool import WorkerPool

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

# A plot function without arguments: a `functools.partial` of a module's function, so that workers can unpickle it.
Drawing = Callable[[], "Figure"]
# Renders each drawing into its PNG file before the context ends.
Draw = Callable[[Mapping[Path, Drawing]], AbstractContextManager[None]]
MIN_RUNS_FOR_POOL = 8  # for fewer runs, workers take longer to start than they save


@contextmanager
def render(drawings: Mapping[Path, Drawing], pool: WorkerPool | None = None) -> Iterator[None]:
    """Renders drawings when the context ends, or in a pool's workers while it lasts; a `Draw`."""
    futures = {path: pool.submit(_render_png, drawing) for path, drawing in drawings.items()} if pool else {}
    try:
        yield
        for path, drawing in drawings.items():
            path.write_bytes(_wait_for_png(futures.get(path), drawing))
    finally:
        for future in futures.values():
            future.cancel()


@contextmanager
def render_pool(num_runs: int) -> Iterator[Draw]:
    """Yields a `Draw` for the figures of `num_runs` runs, with worker processes if the runs are many."""
    if num_runs < MIN_RUNS_FOR_POOL:
        yield render
        return
    with WorkerPool(min(os.cpu_count() or 1, 4), _import_plots) as pool:  # a run has four figures
        yield partial(render, pool=pool)


def _wait_for_png(future: Future[bytes] | None, drawing: Drawing) -> bytes:
    with suppress(BrokenProcessPool):
        if future:
            return future.result()
    return _render_png(drawing)


def _render_png(drawing: Drawing) -> bytes:
    file = io.BytesIO()
    drawing().savefig(file, format="png")
    return file.getvalue()


def _import_plots() -> None:
    from twinsqueeze.reporting import run_plots  # noqa: F401, PLC0415 - matplotlib is imported in the workers
