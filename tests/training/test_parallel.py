"""Batches that are trained in worker processes; tests/commands/test_resume.py kills the process that started them."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import Mock

import psutil
import pytest

from tests.helpers.checkpoints import CheckpointFolder
from tests.helpers.commands import ROOT
from tests.helpers.forks import FORKS, ForkedProcess, has_ended
from tests.helpers.models import base_of
from tests.helpers.recipes import RECIPES, make_pairs, make_recipes
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


def train(function: TrainFunction, recipes, pairs, **options) -> list[TrainingResult]:
    """Calls a `TrainFunction`: `train_replicas`, or one that has a worker call it."""
    defaults = {"clean_loss_every": 3, "checkpoint": None, "on_epoch": Mock(), "on_teacher_epoch": Mock()}
    return function(recipes, *pairs, **defaults | options)


@pytest.fixture(scope="module")
def pool(request) -> Iterator[TrainFunction]:
    """Two worker processes. Spawned ones are the product's; forked ones start sooner."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            if getattr(request, "param", "forkserver") == "forkserver":
                patch.setattr(multiprocessing, "get_context", lambda _: FORKS)
            function = stack.enter_context(training_pool(MIN_PAIRS_FOR_POOL, 2))
        assert function is not train_replicas
        yield function
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("pool", "name"),
    [
        ("forkserver", "mlp"),
        ("forkserver", "product-neighbors"),
        pytest.param("spawn", "product-neighbors", marks=pytest.mark.slow),
    ],
    indirect=["pool"],
)
def test_workers_train_the_same_bits_as_this_process(pool, name):
    pairs = make_pairs(64, **RECIPES[name])
    batches = [make_recipes([0, 0.75], [seed], **RECIPES[name]) for seed in (0, 2, 4)]
    epochs: dict[int, list[EpochMetrics]] = {0: [], 2: [], 4: []}
    on_teacher_epoch = Mock()

    def train_batch(recipes) -> list[TrainingResult]:
        callbacks = {"on_epoch": epochs[recipes[0].seed].append, "on_teacher_epoch": on_teacher_epoch}
        return train(pool, recipes, pairs, **callbacks)

    for recipes, results in map_threaded(iter(batches), train_batch, 2):
        assert all(map(same_bits, results, train(train_replicas, recipes, pairs)))
        assert [result.recipe for result in results] == recipes
        progress = epochs[recipes[0].seed]
        assert [each.epoch for each in progress] == list(range(1, recipes[0].epochs + 1))
        assert progress[-1].loss.tolist() == [result.history.loss[-1] for result in results]
    assert on_teacher_epoch.called == batches[0][0].needs_projection


def test_a_training_in_a_worker_starts_from_its_base(pool):
    base = base_of(*train_replicas(make_recipes(seeds=[9]), *make_pairs(24)))
    recipes = [base.adapt_recipe(recipe) for recipe in make_recipes(base="x")]
    here, there = (train(function, recipes, make_pairs(24), base=base.network) for function in (train_replicas, pool))
    assert same_bits(*here, *there)


def test_workers_yield_to_this_process(pool):
    workers = [psutil.Process(worker.pid) for worker in multiprocessing.active_children()]
    expected = [min(os.nice(0) + parallel.NICENESS, 19)] * 2
    while (found := [worker.nice() for worker in workers]) != expected:
        assert set(found) <= {os.nice(0), expected[0]}  # a worker that has not begun yet has this process's
        time.sleep(0.01)


def test_a_callback_may_end_a_training_which_is_resumed_later(pool, tmp_path):
    """The worker does not go on before a message has been handled, so it is at most an epoch ahead."""
    pairs = make_pairs(24)
    folder = CheckpointFolder(tmp_path / "trainings", *pairs)
    recipes = make_recipes([0, 0.75], epochs=50)
    reached = []

    def stop_after_first_checkpoint(progress: EpochMetrics) -> None:
        if ".checkpoint" in folder.suffixes():
            reached.append(progress.epoch)
            raise BrokenPipeError("enough")  # as if standard error were closed

    with folder.open(recipes) as checkpoint:
        checkpoint.next_save_seconds = 0  # saves after the first epoch
        with pytest.raises(BrokenPipeError, match="enough"):
            train(pool, recipes, pairs, on_epoch=stop_after_first_checkpoint, checkpoint=checkpoint)
    with folder.open(recipes) as checkpoint:
        assert 0 < checkpoint.resume_state.epoch <= reached[0] + 1
        resumed = train(pool, recipes, pairs, checkpoint=checkpoint)
    assert {result.resumed_from_epoch for result in resumed} == {checkpoint.resume_state.epoch}
    assert all(map(same_bits, resumed, train(train_replicas, recipes, pairs)))


def test_errors_and_warnings_of_a_worker_arrive_here(pool, tmp_path):
    with pytest.raises(ValueError, match="alpha and seed only") as caught:
        train(pool, make_recipes() + make_recipes(dim=4), make_pairs(24))
    assert "in train_replicas" in str(caught.value.__cause__)  # the worker's traceback
    warn, file = Mock(), tmp_path / "file"
    file.touch()
    checkpoint = TrainingCheckpoint(file / "x.checkpoint", make_recipes(), None, warn)
    checkpoint.next_save_seconds = 0  # saves after the first epoch
    assert len(train(pool, make_recipes(), make_pairs(24), checkpoint=checkpoint)) == 1
    ((warning,),) = [call.args for call in warn.call_args_list]
    assert warning.startswith("the training cannot be saved")


@pytest.mark.usefixtures("forked_workers")
def test_a_killed_worker_is_an_input_error_and_a_new_pool_trains_the_next():
    before = multiprocessing.active_children()
    with training_pool(MIN_PAIRS_FOR_POOL, 2) as pool:
        worker = next(each for each in multiprocessing.active_children() if each not in before)
        with pytest.raises(InputError, match=r"a training process was killed.* to resume"):
            train(pool, make_recipes(epochs=10**6), make_pairs(24), on_epoch=lambda _: worker.kill())
    with training_pool(MIN_PAIRS_FOR_POOL, 2) as pool:
        assert pool is not train_replicas
        assert len(train(pool, make_recipes(), make_pairs(24))) == 1


@pytest.mark.parametrize(("num_pairs", "threads"), [(MIN_PAIRS_FOR_POOL - 1, 2), (10 * MIN_PAIRS_FOR_POOL, 1)])
def test_few_pairs_and_a_single_thread_need_no_workers(num_pairs, threads):
    with training_pool(num_pairs, threads) as train:
        assert train is train_replicas


def test_this_process_trains_if_no_process_can_be_started(monkeypatch, tmp_path):
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(tmp_path / "absent"))
    with training_pool(MIN_PAIRS_FOR_POOL, 2) as train:
        assert train is train_replicas


def test_workers_ignore_ctrl_c_and_hangup_and_end_with_their_killed_parent():
    with ForkedProcess(["-c", PROGRAM], os.environ, ROOT, stdin=True) as process:
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        for worker in workers:
            worker.send_signal(signal.SIGINT)
            worker.send_signal(signal.SIGHUP)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "both have trained further\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    while not all(map(has_ended, workers)):
        time.sleep(0.05)
