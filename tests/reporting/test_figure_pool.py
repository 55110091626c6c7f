import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from unittest.mock import Mock

import matplotlib.image
import numpy as np
import psutil
import pytest

from twinsqueeze.reporting import figure_pool, run_plots
from twinsqueeze.utils import worker_pool

LOSSES = {"train": np.linspace(1e-6, 1, 500), "dev": np.linspace(1e-4, 0.5, 300)}
HISTOGRAM = partial(run_plots.plot_pair_losses, {"": LOSSES})
PROGRAM = """
import multiprocessing, sys, time
from pathlib import Path
from functools import partial
import numpy as np
from twinsqueeze.reporting import figure_pool, run_plots
histogram = partial(run_plots.plot_pair_losses, {"": {"dev": np.linspace(1e-4, 1, 9)}})
with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as render:
    with render({Path(sys.argv[1]): histogram}):
        pass
    try:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        with render({Path(sys.argv[2]): histogram}):
            pass
"""


def pixels(path):
    return matplotlib.image.imread(path)


@pytest.fixture(scope="module")
def render():
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as found:
        yield found


@pytest.fixture
def program(tmp_path):
    """A process in its own session that has rendered a figure in workers and sleeps, and its workers' ids."""
    command = [sys.executable, "-c", PROGRAM, tmp_path / "first.png", tmp_path / "second.png"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        process.kill()


def test_workers_render_the_same_figure(render, tmp_path):
    with figure_pool.render({tmp_path / "inline.png": HISTOGRAM}):
        pass
    with render({tmp_path / f"{i}.png": HISTOGRAM for i in range(5)}):
        pass
    expected = pixels(tmp_path / "inline.png")
    assert expected.std() > 0
    assert all(np.array_equal(pixels(tmp_path / f"{i}.png"), expected) for i in range(5))


def test_figures_are_rendered_while_the_context_lasts(tmp_path):
    with figure_pool.WorkerPool(1, figure_pool._import_plots) as pool:
        future = pool.submit(figure_pool._render_png, HISTOGRAM)
        pool.submit = Mock(return_value=future)
        with figure_pool.render({tmp_path / "x.png": HISTOGRAM}, pool):
            deadline = time.monotonic() + 60
            while not future.done():  # this process only waits
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert (tmp_path / "x.png").read_bytes() == future.result()


def test_an_error_of_a_plot_function_is_raised(render, tmp_path):
    with pytest.raises(ValueError, match="empty"), render({tmp_path / "x.png": partial(max, ())}):
        pass


def test_figures_of_few_runs_are_rendered_inline(tmp_path):
    before = set(multiprocessing.active_children())
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL - 1) as render, render({tmp_path / "x.png": HISTOGRAM}):
        assert set(multiprocessing.active_children()) == before
    assert (tmp_path / "x.png").exists()


def test_figures_of_killed_workers_are_rendered_inline(tmp_path):
    before = set(multiprocessing.active_children())
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as render:
        with render({tmp_path / "first.png": HISTOGRAM}):
            pass
        with render({tmp_path / "second.png": HISTOGRAM}):
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
                process.join()
        with render({tmp_path / "third.png": HISTOGRAM}):
            pass
    found = [pixels(tmp_path / f"{name}.png") for name in ("first", "second", "third")]
    assert all(np.array_equal(image, found[0]) for image in found)


@pytest.mark.parametrize("refused", ["the pool", "a process"])
def test_figures_are_rendered_inline_if_no_process_can_be_started(refused, tmp_path, monkeypatch):
    if refused == "the pool":
        monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", Mock(side_effect=OSError(30, "Read-only file system")))
    else:
        monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(tmp_path / "absent"))
    before = set(multiprocessing.active_children())
    with figure_pool.render({tmp_path / "inline.png": HISTOGRAM}):
        pass
    for i in range(10):  # the error depends on when the executor notices the dead process
        with (
            figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as render,
            render({tmp_path / f"{i}.png": HISTOGRAM}),
        ):
            pass
        assert np.array_equal(pixels(tmp_path / f"{i}.png"), pixels(tmp_path / "inline.png"))
    assert set(multiprocessing.active_children()) <= before


def test_no_figure_is_written_after_an_error(render, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(12)]
    with pytest.raises(KeyError), render(dict.fromkeys(files, HISTOGRAM)):
        raise KeyError
    time.sleep(1)
    assert not list(tmp_path.iterdir())


def test_workers_do_not_outlive_a_killed_process(program):
    process, pids = program
    workers = [psutil.Process(pid) for pid in pids]
    assert workers
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert all(worker.status() == psutil.STATUS_ZOMBIE for worker in alive)  # if no init process reaps orphans


def test_workers_ignore_ctrl_c(program, tmp_path):
    process, _ = program
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert np.array_equal(pixels(tmp_path / "second.png"), pixels(tmp_path / "first.png"))
