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

HISTOGRAM = partial(run_plots.plot_run_losses, {"dev": np.linspace(1e-4, 0.5, 300)})
SQUARE = partial(Figure, figsize=(0.2, 0.2), facecolor="red")


def pixels(path):
    return matplotlib.image.imread(path).tolist()


@pytest.fixture(scope="module")
def render():
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as found:
        yield found


@pytest.fixture
def expected(tmp_path):
    """The pixels of the square, rendered in this process."""
    with figure_pool.render({tmp_path / "expected.png": SQUARE}):
        pass
    return pixels(tmp_path / "expected.png")


def test_workers_render_the_same_figure(render, tmp_path):
    with figure_pool.render({tmp_path / "inline.png": HISTOGRAM}):
        pass
    with render({tmp_path / f"{i}.png": HISTOGRAM for i in range(3)}):
        pass
    expected = pixels(tmp_path / "inline.png")
    assert np.std(expected) > 0
    assert all(pixels(tmp_path / f"{i}.png") == expected for i in range(3))


def test_figures_are_rendered_while_the_context_lasts(render, tmp_path, monkeypatch):
    pool, futures = render.keywords["pool"], []
    submit = pool.submit
    monkeypatch.setattr(pool, "submit", lambda *arguments: futures.append(submit(*arguments)) or futures[-1])
    with render({tmp_path / "x.png": SQUARE}):
        content = futures[0].result()  # this process only waits
    assert (tmp_path / "x.png").read_bytes() == content


def test_an_error_of_a_plot_function_is_raised(render, tmp_path):
    with pytest.raises(ValueError, match="empty"), render({tmp_path / "x.png": partial(max, ())}):
        pass


def test_figures_of_few_runs_are_rendered_inline(tmp_path, expected):
    before = set(multiprocessing.active_children())
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL - 1) as render, render({tmp_path / "x.png": SQUARE}):
        assert set(multiprocessing.active_children()) == before
    assert pixels(tmp_path / "x.png") == expected


def test_figures_of_killed_workers_are_rendered_inline(tmp_path, expected):
    before = set(multiprocessing.active_children())
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as render:
        with render({tmp_path / "first.png": SQUARE}):
            pass
        with render({tmp_path / "second.png": SQUARE}):
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
                process.join()
        with render({tmp_path / "third.png": SQUARE}):
            pass
    assert all(pixels(tmp_path / f"{name}.png") == expected for name in ("first", "second", "third"))


@pytest.mark.parametrize("refused", ["the pool", "a process"])
def test_figures_are_rendered_inline_if_no_process_can_be_started(refused, tmp_path, expected, monkeypatch):
    if refused == "the pool":
        monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", Mock(side_effect=OSError(30, "Read-only file system")))
    else:
        monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(tmp_path / "absent"))
    before = set(multiprocessing.active_children())
    for i in range(10):  # the error depends on when the executor notices the dead process
        path = tmp_path / f"{i}.png"
        with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as render, render({path: SQUARE}):
            pass
        assert pixels(path) == expected
    assert set(multiprocessing.active_children()) <= before


def test_no_figure_is_written_after_an_error(render, tmp_path):
    absent, last = tmp_path / "absent", tmp_path / "last.png"
    absent.mkdir()
    with pytest.raises(KeyError), render({absent / f"{i}.png": HISTOGRAM for i in range(12)}):
        raise KeyError
    with render({last: HISTOGRAM}):  # after all that a worker still had to do
        pass
    assert last.exists()
    assert not list(absent.iterdir())
