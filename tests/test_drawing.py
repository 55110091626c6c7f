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

LOSSES = {"train": np.linspace(1e-6, 1, 500), "dev": np.linspace(1e-4, 0.5, 300)}
HISTOGRAM = partial(run_plots.plot_pair_losses, LOSSES)
PROGRAM = """
import multiprocessing, sys, time
from pathlib import Path
from functools import partial
import numpy as np
from twinsqueeze import drawing, figures
with drawing.processes(drawing.FEWEST_REPLICAS) as draw:
    with draw({Path(sys.argv[1]): partial(figures.pair_loss_distribution, {"dev": np.linspace(1e-4, 1, 9)})}):
        pass
    try:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        with draw({Path(sys.argv[2]): partial(figures.pair_loss_distribution, {"dev": np.linspace(1e-4, 1, 9)})}):
            pass
"""


def pixels(path):
    return matplotlib.image.imread(path)


@pytest.fixture(scope="module")
def draw():
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as found:
        yield found


@pytest.fixture
def begun(tmp_path):
    """A program in a session of its own that has drawn a figure in processes and waits, and their ids."""
    program = [sys.executable, "-c", PROGRAM, tmp_path / "first.png", tmp_path / "second.png"]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        process.kill()


def test_other_processes_draw_the_same(draw, tmp_path):
    with figure_pool.render_inline({tmp_path / "here.png": HISTOGRAM}):
        pass
    with draw({tmp_path / f"{i}.png": HISTOGRAM for i in range(5)}):
        pass
    expected = pixels(tmp_path / "here.png")
    assert expected.std() > 0
    assert all(np.array_equal(pixels(tmp_path / f"{i}.png"), expected) for i in range(5))


def test_they_draw_while_the_context_lasts(draw, tmp_path):
    with draw({tmp_path / "x.png": HISTOGRAM}):
        deadline = time.monotonic() + 60
        while not (tmp_path / "x.png").exists():  # this process does nothing for it
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_a_drawing_raises_is_raised(draw, tmp_path):
    with pytest.raises(ValueError, match="empty"), draw({tmp_path / "x.png": partial(max, ())}):
        pass


def test_a_few_are_drawn_here(tmp_path):
    before = set(multiprocessing.active_children())
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL - 1) as draw, draw({tmp_path / "x.png": HISTOGRAM}):
        assert set(multiprocessing.active_children()) == before
    assert (tmp_path / "x.png").exists()


def test_killed_processes_cost_no_figure(tmp_path):
    before = set(multiprocessing.active_children())
    with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as draw:
        with draw({tmp_path / "first.png": HISTOGRAM}):
            pass
        with draw({tmp_path / "second.png": HISTOGRAM}):
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
                process.join()
        with draw({tmp_path / "third.png": HISTOGRAM}):
            pass
    found = [pixels(tmp_path / f"{name}.png") for name in ("first", "second", "third")]
    assert all(np.array_equal(image, found[0]) for image in found)


@pytest.mark.parametrize("refused", ["the pool", "a process"])
def test_where_there_can_be_no_processes_figures_are_drawn_here(refused, tmp_path, monkeypatch):
    if refused == "the pool":
        monkeypatch.setattr(figure_pool, "ProcessPoolExecutor", Mock(side_effect=OSError(30, "Read-only file system")))
    else:
        monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(tmp_path / "absent"))
    before = set(multiprocessing.active_children())
    with figure_pool.render_inline({tmp_path / "here.png": HISTOGRAM}):
        pass
    for i in range(10):  # how it shows that a process is dead depends on when it is seen
        with figure_pool.render_pool(figure_pool.MIN_RUNS_FOR_POOL) as draw, draw({tmp_path / f"{i}.png": HISTOGRAM}):
            pass
        assert np.array_equal(pixels(tmp_path / f"{i}.png"), pixels(tmp_path / "here.png"))
    assert set(multiprocessing.active_children()) <= before


def test_nothing_is_drawn_any_more_into_what_was_given_up(draw, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(12)]
    with pytest.raises(KeyError), draw(dict.fromkeys(files, HISTOGRAM)):
        raise KeyError
    there = set(tmp_path.iterdir())
    assert len(there) < len(files)
    time.sleep(1)
    assert set(tmp_path.iterdir()) == there


def test_they_do_not_outlive_a_killed_process(begun):
    process, pids = begun
    children = [psutil.Process(pid) for pid in pids]
    assert children
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(children, timeout=30)
    assert all(child.status() == psutil.STATUS_ZOMBIE for child in left)  # where nobody reaps orphans


def test_ctrl_c_is_for_the_process_that_started_them(begun, tmp_path):
    process, _ = begun
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert np.array_equal(pixels(tmp_path / "second.png"), pixels(tmp_path / "first.png"))
