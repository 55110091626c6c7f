"""Batches that are trained in worker processes; tests/commands/test_resume.py kills the process that started them."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

import psutil
import pytest

from tests.helpers.results import same_bits
from tests.training.test_checkpointing import CheckpointFolder, make_recipes
from twinsqueeze.errors import InputError
from twinsqueeze.training import parallel
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import EpochMetrics, train_replicas
from twinsqueeze.training.parallel import MIN_PAIRS_FOR_POOL, TrainFunction, training_pool
from twinsqueeze.utils.compute import map_threaded

LINEAR = {"architecture": "linear", "loss": "pearson"}
TEACHER = LINEAR | {"init": "teacher", "teacher": "projection", "neighbor_weight": 1}
PRODUCT = TEACHER | {"quantizer": "product"}
SIGN = LINEAR | {"quantizer": "sign"}
NEIGHBORS = TEACHER | {"num_neighbors": 3}
ENDLESS = 10**6
PROGRAM = """
import multiprocessing, sys, threading, time
from tests.helpers.pairs import random_pairs
from tests.training.test_checkpointing import make_recipes
from twinsqueeze.training.parallel import MIN_PAIRS_FOR_POOL, training_pool
pairs = random_pairs(pairs=150, sentences=120, dimension=24, seed=1)
recipes = make_recipes(epochs=10**6)
started = threading.Event()
with training_pool(MIN_PAIRS_FOR_POOL, 2) as train:
    def run():
        train(recipes, pairs, pairs, clean_loss_every=1, on_epoch=lambda _: started.set(), on_teacher_epoch=print,
              checkpoint=None)
    threading.Thread(target=run, daemon=True).start()
    started.wait()
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def ignore(*_: object) -> None:
    pass


def run_training(
    train: TrainFunction,
    recipes,
    train_pairs,
    dev_pairs,
    *,
    on_epoch: Callable[[EpochMetrics], None] = ignore,
    on_teacher_epoch=ignore,
    checkpoint=None,
):
    return train(
        recipes,
        train_pairs,
        dev_pairs,
        clean_loss_every=3,
        on_epoch=on_epoch,
        on_teacher_epoch=on_teacher_epoch,
        checkpoint=checkpoint,
    )


def workers() -> set[BaseProcess]:
    return set(multiprocessing.active_children())


@pytest.fixture
def pool_train() -> Iterator[TrainFunction]:
    before = workers()
    with training_pool(MIN_PAIRS_FOR_POOL, 2) as train:
        yield train
    assert workers() <= before


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="published"),
        pytest.param(PRODUCT, id="product", marks=pytest.mark.slow),
        pytest.param(SIGN, id="sign", marks=pytest.mark.slow),
        pytest.param(NEIGHBORS, id="neighbors", marks=pytest.mark.slow),
    ],
)
def test_workers_train_the_same_bits_as_this_process(fields, small_train, small_dev):
    batches = [make_recipes(fields, [0, 0.75], [seed, seed + 1]) for seed in (0, 2, 4)]
    epochs: dict[int, list[EpochMetrics]] = {0: [], 2: [], 4: []}
    teacher_epochs: list[tuple[int, int]] = []
    expected = [train_replicas(recipes, small_train, small_dev, clean_loss_every=3) for recipes in batches]
    before = workers()
    with training_pool(MIN_PAIRS_FOR_POOL, 2) as pool_train:
        started = [psutil.Process(child.pid) for child in workers() - before]

        def train_batch(recipes):
            return run_training(
                pool_train,
                recipes,
                small_train,
                small_dev,
                on_epoch=epochs[recipes[0].seed].append,
                on_teacher_epoch=lambda *done: teacher_epochs.append(done),
            )

        for (recipes, results), wanted in zip(map_threaded(iter(batches), train_batch, 2), expected, strict=True):
            assert all(map(same_bits, results, wanted))
            assert [result.recipe for result in results] == recipes
            progress = epochs[recipes[0].seed]
            assert [each.epoch for each in progress] == list(range(1, recipes[0].epochs + 1))
            assert progress[-1].loss.tolist() == [result.history.loss[-1] for result in results]
        assert len(started) == 2
        assert {process.nice() for process in started} == {min(os.nice(0) + parallel.NICENESS, 19)}
    assert bool(teacher_epochs) == ("init" in fields)


def test_a_callback_may_end_a_training_which_is_resumed_later(pool_train, small_train, small_dev, tmp_path):
    """The worker does not go on before a message has been handled, so it is at most an epoch ahead."""
    folder = CheckpointFolder(tmp_path / "trainings", small_train, small_dev)
    recipes = make_recipes(alphas=[0, 0.75], epochs=200)
    reached = []

    def stop_after_first_checkpoint(progress: EpochMetrics) -> None:
        if ".checkpoint" in folder.suffixes():
            reached.append(progress.epoch)
            raise BrokenPipeError("enough")  # as if standard error were closed

    with folder.store().open(recipes, resume=True) as checkpoint:
        checkpoint.next_save_seconds = 0  # saves after the first epoch
        with pytest.raises(BrokenPipeError, match="enough"):
            run_training(
                pool_train, recipes, small_train, small_dev, on_epoch=stop_after_first_checkpoint, checkpoint=checkpoint
            )
    with folder.store().open(recipes, resume=True) as checkpoint:
        assert 0 < checkpoint.resume_state.epoch <= reached[0] + 1
        resumed = run_training(pool_train, recipes, small_train, small_dev, checkpoint=checkpoint)
    assert {result.resumed_from_epoch for result in resumed} == {checkpoint.resume_state.epoch}
    assert all(map(same_bits, resumed, train_replicas(recipes, small_train, small_dev, clean_loss_every=3)))


def test_an_error_in_a_worker_is_raised_here(pool_train, small_train, small_dev):
    mixed = [*make_recipes(), *make_recipes({"dim": 4})]
    with pytest.raises(ValueError, match="alpha and seed only") as caught:
        run_training(pool_train, mixed, small_train, small_dev)
    assert "in train_replicas" in str(caught.value.__cause__)  # the worker's traceback
    assert len(run_training(pool_train, make_recipes(), small_train, small_dev)) == 1


def test_warnings_of_a_worker_arrive_here(pool_train, small_train, small_dev, tmp_path):
    warnings: list[str] = []
    recipes = make_recipes()
    (tmp_path / "file").touch()
    checkpoint = TrainingCheckpoint(tmp_path / "file" / "x.checkpoint", recipes, None, warnings.append)
    checkpoint.next_save_seconds = 0  # saves after the first epoch
    results = run_training(pool_train, recipes, small_train, small_dev, checkpoint=checkpoint)
    assert len(results) == 1
    (warning,) = warnings
    assert warning.startswith("the training cannot be saved")


def test_a_killed_worker_is_an_input_error_and_a_new_pool_trains_the_next(small_train, small_dev):
    before = workers()

    def kill(_: EpochMetrics) -> None:
        for child in workers() - before:
            child.kill()

    recipes = make_recipes(alphas=[0, 1], epochs=ENDLESS)
    with (
        training_pool(MIN_PAIRS_FOR_POOL, 2) as pool_train,
        pytest.raises(InputError, match=r"a training process was killed.* to resume"),
    ):
        run_training(pool_train, recipes, small_train, small_dev, on_epoch=kill)
    with training_pool(MIN_PAIRS_FOR_POOL, 2) as pool_train:
        assert pool_train is not train_replicas
        assert len(run_training(pool_train, make_recipes(), small_train, small_dev)) == 1


def test_the_thread_trains_if_no_process_can_be_started(small_train, small_dev, monkeypatch, tmp_path):
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(tmp_path / "absent"))
    with training_pool(MIN_PAIRS_FOR_POOL, 2) as train:
        (result,) = run_training(train, make_recipes(), small_train, small_dev)
    assert same_bits(result, train_replicas(make_recipes(), small_train, small_dev, clean_loss_every=3)[0])


@pytest.mark.parametrize(("num_pairs", "threads"), [(MIN_PAIRS_FOR_POOL - 1, 2), (10 * MIN_PAIRS_FOR_POOL, 1)])
def test_few_pairs_and_a_single_thread_need_no_workers(num_pairs, threads):
    with training_pool(num_pairs, threads) as train:
        assert train is train_replicas


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_their_parent(number):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        found = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(found) == 2
        process.send_signal(number)
        process.wait(60)
    _, alive = psutil.wait_procs(found, timeout=30)
    assert all(child.status() == psutil.STATUS_ZOMBIE for child in alive)  # if no init process reaps orphans


def test_workers_ignore_ctrl_c_and_hangup():
    """In a fresh process, since multiprocessing unblocks signals when it starts its first process."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for worker in [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]:
            for number in (signal.SIGINT, signal.SIGHUP):
                worker.send_signal(number)
                with pytest.raises(psutil.TimeoutExpired):
                    worker.wait(1)
        process.kill()
