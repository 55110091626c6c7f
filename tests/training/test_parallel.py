"""Batches that are trained in worker processes; tests/commands/test_resume.py kills the process that started them."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from unittest.mock import Mock

import psutil
import pytest

from tests.helpers.checkpoints import CheckpointFolder
from tests.helpers.commands import ROOT
from tests.helpers.forks import FORKS, ForkedProcess, has_ended
from tests.helpers.models import base_of
from tests.helpers.recipes import each_recipe, make_pairs, make_recipes
from tests.helpers.results import same_bits
from twinsqueeze.errors import InputError
from twinsqueeze.training import parallel
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import EpochMetrics, TrainingResult, train_replicas
from twinsqueeze.training.parallel import MIN_PAIRS_FOR_POOL, TrainFunction, training_pool
from twinsqueeze.utils.compute import map_threaded

# Trains without end in two workers. Prints their ids, and after each line of input that both have trained further.
PROGRAM = """
import multiprocessing, sys, threading, time
from collections import Counter
from multiprocessing import resource_tracker
from tests.helpers.recipes import make_pairs, make_recipes
from twinsqueeze.training.parallel import MIN_PAIRS_FOR_POOL, training_pool
resource_tracker._resource_tracker._fd = None  # as in a process that was not forked: it has started no other process
pairs, epochs = make_pairs(24), Counter()
with training_pool(MIN_PAIRS_FOR_POOL, 2) as train:
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    def run(seed):
        train(make_recipes(seeds=[seed], epochs=10**6), *pairs, clean_loss_every=10**6, checkpoint=None,
              on_epoch=lambda _: epochs.update([seed]), on_teacher_epoch=print)
    threads = [threading.Thread(target=run, args=[seed], daemon=True) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        wanted = epochs + Counter({0: 3, 1: 3})
        while any(epochs[seed] < wanted[seed] for seed in (0, 1)):
            assert all(thread.is_alive() for thread in threads)
            time.sleep(0.01)
        print("both have trained further", flush=True)
"""


@dataclass
class Pool:
    """Two worker processes, or this process."""

    function: TrainFunction
    workers: list[psutil.Process]

    def train(self, recipes, pairs, **options) -> list[TrainingResult]:
        callbacks = {"on_epoch": lambda _: None, "on_teacher_epoch": lambda *_: None}
        options = {"clean_loss_every": 3, "checkpoint": None} | callbacks | options
        return self.function(recipes, *pairs, **options)


HERE = Pool(train_replicas, [])


@contextmanager
def start_pool() -> Iterator[Pool]:
    before = set(multiprocessing.active_children())
    with training_pool(MIN_PAIRS_FOR_POOL, 2) as train:
        workers = set(multiprocessing.active_children()) - before
        yield Pool(train, [psutil.Process(worker.pid) for worker in workers])
    assert not workers & set(multiprocessing.active_children())


@pytest.fixture(scope="module", params=["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def pool(request) -> Iterator[Pool]:
    """Spawned workers are the product's; forked ones start sooner."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            if request.param == "forkserver":
                patch.setattr(multiprocessing, "get_context", lambda _: FORKS)
            started = stack.enter_context(start_pool())
        yield started


def test_a_training_in_a_worker_starts_from_its_base(pool):
    base = base_of(*train_replicas(make_recipes(seeds=[9]), *make_pairs(24)))
    recipes = [base.adapt_recipe(recipe) for recipe in make_recipes(base="x")]
    trained = [each.train(recipes, make_pairs(24), base=base.network)[0] for each in (HERE, pool)]
    assert same_bits(*trained)


@pytest.mark.parametrize(
    ("pool", "dimension", "fields"),
    [
        pytest.param("spawn" if case.marks else "forkserver", *case.values, id=case.id, marks=case.marks)
        for case in each_recipe()
    ],
    indirect=["pool"],
)
def test_workers_train_the_same_bits_as_this_process(dimension, fields, pool):
    pairs = make_pairs(dimension, **fields)
    batches = [make_recipes([0, 0.75], [seed, seed + 1], **fields) for seed in (0, 2, 4)]
    epochs: dict[int, list[EpochMetrics]] = {0: [], 2: [], 4: []}
    on_teacher_epoch = Mock()

    def train_batch(recipes) -> list[TrainingResult]:
        return pool.train(recipes, pairs, on_epoch=epochs[recipes[0].seed].append, on_teacher_epoch=on_teacher_epoch)

    for recipes, results in map_threaded(iter(batches), train_batch, 2):
        assert all(map(same_bits, results, HERE.train(recipes, pairs)))
        assert [result.recipe for result in results] == recipes
        progress = epochs[recipes[0].seed]
        assert [each.epoch for each in progress] == list(range(1, recipes[0].epochs + 1))
        assert progress[-1].loss.tolist() == [result.history.loss[-1] for result in results]
    assert on_teacher_epoch.called == batches[0][0].needs_projection


def test_workers_yield_to_this_process(pool):
    expected = [min(os.nice(0) + parallel.NICENESS, 19)] * 2
    while (found := [worker.nice() for worker in pool.workers]) != expected:
        assert set(found) <= {os.nice(0), expected[0]}  # a worker that has not begun yet has this process's
        time.sleep(0.01)


def test_a_callback_may_end_a_training_which_is_resumed_later(pool, tmp_path):
    """The worker does not go on before a message has been handled, so it is at most an epoch ahead."""
    pairs = make_pairs(24)
    folder = CheckpointFolder(tmp_path / "trainings", *pairs)
    recipes = make_recipes([0, 0.75], epochs=200)
    reached = []

    def stop_after_first_checkpoint(progress: EpochMetrics) -> None:
        if ".checkpoint" in folder.suffixes():
            reached.append(progress.epoch)
            raise BrokenPipeError("enough")  # as if standard error were closed

    with folder.open(recipes) as checkpoint:
        checkpoint.next_save_seconds = 0  # saves after the first epoch
        with pytest.raises(BrokenPipeError, match="enough"):
            pool.train(recipes, pairs, on_epoch=stop_after_first_checkpoint, checkpoint=checkpoint)
    with folder.open(recipes) as checkpoint:
        assert 0 < checkpoint.resume_state.epoch <= reached[0] + 1
        resumed = pool.train(recipes, pairs, checkpoint=checkpoint)
    assert {result.resumed_from_epoch for result in resumed} == {checkpoint.resume_state.epoch}
    assert all(map(same_bits, resumed, HERE.train(recipes, pairs)))


def test_an_error_in_a_worker_is_raised_here(pool, small_train, small_dev):
    pairs = small_train, small_dev
    with pytest.raises(ValueError, match="alpha and seed only") as caught:
        pool.train(make_recipes() + make_recipes(dim=4), pairs)
    assert "in train_replicas" in str(caught.value.__cause__)  # the worker's traceback
    assert len(pool.train(make_recipes(), pairs)) == 1


def test_warnings_of_a_worker_arrive_here(pool, small_train, small_dev, tmp_path):
    warnings: list[str] = []
    (tmp_path / "file").touch()
    checkpoint = TrainingCheckpoint(tmp_path / "file" / "x.checkpoint", make_recipes(), None, warnings.append)
    checkpoint.next_save_seconds = 0  # saves after the first epoch
    assert len(pool.train(make_recipes(), (small_train, small_dev), checkpoint=checkpoint)) == 1
    (warning,) = warnings
    assert warning.startswith("the training cannot be saved")


def test_a_killed_worker_is_an_input_error_and_a_new_pool_trains_the_next(small_train, small_dev, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)
    pairs = small_train, small_dev

    def kill_worker(_: EpochMetrics) -> None:
        with suppress(psutil.NoSuchProcess):  # an epoch may end before the pool knows
            pool.workers[0].kill()

    with start_pool() as pool, pytest.raises(InputError, match=r"a training process was killed.* to resume"):
        pool.train(make_recipes(epochs=10**6), pairs, on_epoch=kill_worker)
    with start_pool() as pool:
        assert pool.function is not train_replicas
        assert len(pool.train(make_recipes(), pairs)) == 1


@pytest.mark.parametrize(("num_pairs", "threads"), [(MIN_PAIRS_FOR_POOL - 1, 2), (10 * MIN_PAIRS_FOR_POOL, 1)])
def test_few_pairs_and_a_single_thread_need_no_workers(num_pairs, threads):
    with training_pool(num_pairs, threads) as train:
        assert train is train_replicas


def test_this_process_trains_if_no_process_can_be_started(monkeypatch, tmp_path):
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(tmp_path / "absent"))
    with training_pool(MIN_PAIRS_FOR_POOL, 2) as train:
        assert train is train_replicas


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_workers_ignore_ctrl_c_and_hangup_and_end_with_their_parent(number):
    with ForkedProcess(["-c", PROGRAM], os.environ, ROOT, stdin=True) as process:
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        for worker in workers:
            worker.send_signal(signal.SIGINT)
            worker.send_signal(signal.SIGHUP)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "both have trained further\n"
        process.send_signal(number)
        assert process.wait() == -number
    while not all(map(has_ended, workers)):
        time.sleep(0.05)
