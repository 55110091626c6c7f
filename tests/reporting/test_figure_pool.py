import multiprocessing
import os
from functools import partial
from unittest.mock import Mock

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from twinsqueeze.reporting import figure_pool, run_plots
from twinsqueeze.utils import worker_pool

SQUARE = partial(Figure, figsize=(0.2, 0.2), facecolor="red")


@pytest.fixture(scope="module")
def render():
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as found:
        yield found


def is_square(path) -> bool:
    """Whether a file shows the square."""
    return (matplotlib.image.imread(path) == (1, 0, 0, 1)).all()


def workers() -> set:
    return set(multiprocessing.active_children())


def test_workers_render_the_same_figures_while_the_context_lasts(render, tmp_path, monkeypatch):
    pool, futures = render.keywords["pool"], []
    submit = pool.submit
    monkeypatch.setattr(pool, "submit", lambda *arguments: futures.append(submit(*arguments)) or futures[-1])
    histogram = partial(run_plots.plot_run_losses, {"dev": np.linspace(1e-4, 0.5, 300)})
    with render({tmp_path / f"{i}.png": histogram for i in range(3)}):
        contents = [future.result() for future in futures]  # this process only waits
    assert [(tmp_path / f"{i}.png").read_bytes() for i in range(3)] == contents
    with figure_pool.render({tmp_path / "here.png": histogram}):
        pass
    here, *others = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("here", 0, 1, 2))
    assert np.std(here) > 0
    assert all(np.array_equal(here, other) for other in others)


def test_no_figure_is_written_after_an_error(render, tmp_path):
    with pytest.raises(ValueError, match="empty"), render({tmp_path / "0.png": partial(max, ())}):
        pass
    with pytest.raises(KeyError), render({tmp_path / f"{i}.png": SQUARE for i in range(12)}):
        raise KeyError
    with render({tmp_path / "last.png": SQUARE}):  # after all that a worker still had to do
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["last.png"]


def test_figures_of_few_runs_are_rendered_in_this_process(tmp_path):
    before = workers()
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL - 1) as render, render({tmp_path / "x.png": SQUARE}):
        assert workers() == before
    assert is_square(tmp_path / "x.png")


def test_figures_of_killed_workers_are_rendered_in_this_process(tmp_path):
    before = workers()
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as render:
        with render({tmp_path / "first.png": SQUARE}):
            for process in workers() - before:
                process.kill()
                process.join()
        with render({tmp_path / "second.png": SQUARE}):
            pass
    assert all(is_square(tmp_path / f"{name}.png") for name in ("first", "second"))


@pytest.mark.parametrize("refused", ["the pool", "a process"])
def test_figures_are_rendered_in_this_process_if_no_other_can_be_started(refused, tmp_path, monkeypatch):
    if refused == "the pool":
        monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", Mock(side_effect=OSError(30, "Read-only file system")))
    else:
        monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(tmp_path / "absent"))
    before = workers()
    for i in range(10):  # the error depends on when the executor notices the dead process
        with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as render, render({tmp_path / f"{i}.png": SQUARE}):
            pass
        assert is_square(tmp_path / f"{i}.png")
    assert workers() <= before
