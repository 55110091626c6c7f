"""Batches that are trained in processes of their own; tests/test_resume.py kills the one that started them."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

import psutil
import pytest

from tests.test_snapshots import Room, recipes_of, same_bits
from twinsqueeze.errors import InputError
from twinsqueeze.training import worker_pool
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import EpochMetrics, train_replicas
from twinsqueeze.training.worker_pool import FEWEST_PAIRS, TrainFunction
from twinsqueeze.utils.threads import map_threaded

HEADS = {"architecture": "linear", "loss": "pearson", "init": "teacher", "teacher": "projection", "neighbor_weight": 1}
CODES = HEADS | {"quantizer": "product"}
SIGNS = {"architecture": "linear", "loss": "pearson", "quantizer": "sign"}
DRAWN = HEADS | {"num_neighbors": 3}
ENDLESS = 10**6
PROGRAM = """
import multiprocessing, sys, threading, time
from tests.conftest import random_pairs
from tests.test_snapshots import recipes_of
from twinsqueeze import fitting
from twinsqueeze.training.checkpointing import Snapshot
pairs = random_pairs(pairs=150, sentences=120, dimension=24, seed=1)
recipes = recipes_of(epochs=10**6)
begun = threading.Event()
with fitting.processes(fitting.FEWEST_PAIRS, 2) as fit:
    def train():
        fit(recipes, pairs, pairs, clean_every=1, on_epoch=lambda _: begun.set(), on_heads=print,
            snapshot=Snapshot(None, recipes))
    threading.Thread(target=train, daemon=True).start()
    begun.wait()
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def nothing(*_: object) -> None:
    pass


def train(
    fit: TrainFunction,
    recipes,
    train,
    dev,
    *,
    on_epoch: Callable[[EpochMetrics], None] = nothing,
    on_teacher_epoch=nothing,
    snapshot=None,
):
    snapshot = snapshot or TrainingCheckpoint(None, recipes)
    return fit(
        recipes, train, dev, clean_loss_every=3, on_epoch=on_epoch, on_teacher_epoch=on_teacher_epoch, snapshot=snapshot
    )


def children() -> set[BaseProcess]:
    return {child for child in multiprocessing.active_children() if child.name == "training"}


@pytest.fixture
def fit_there() -> Iterator[TrainFunction]:
    before = children()
    with worker_pool.training_pool(FEWEST_PAIRS, 2) as found:
        yield found
    assert children() == before


@pytest.mark.parametrize("fields", [{}, CODES, SIGNS, DRAWN], ids=["published", "codes", "signs", "drawn"])
def test_processes_train_the_same_bits_as_this_one(fields, fit_there, small_train, small_dev):
    sets = [recipes_of(fields, [0, 0.75], [seed, seed + 1]) for seed in (0, 2, 4)]
    told: dict[int, list[EpochMetrics]] = {0: [], 2: [], 4: []}
    heads: list[tuple[int, int]] = []

    def there(recipes):
        on_epoch = told[recipes[0].seed].append
        return train(
            fit_there,
            recipes,
            small_train,
            small_dev,
            on_epoch=on_epoch,
            on_teacher_epoch=lambda *done: heads.append(done),
        )

    expected = [train_replicas(recipes, small_train, small_dev, clean_loss_every=3) for recipes in sets]
    before = children()
    for (recipes, trained), wanted in zip(map_threaded(iter(sets), there, 2), expected, strict=True):
        assert all(map(same_bits, trained, wanted))
        assert [fitted.recipe for fitted in trained] == recipes
        progress = told[recipes[0].seed]
        assert [each.epoch for each in progress] == list(range(1, recipes[0].epochs + 1))
        assert progress[-1].loss.tolist() == [fitted.history.loss[-1] for fitted in trained]
    started = [psutil.Process(child.pid) for child in children() - before]
    assert len(started) == 2
    assert {process.nice() for process in started} == {min(os.nice(0) + worker_pool.LESS_URGENT, 19)}
    assert bool(heads) == ("start" in fields)


def test_what_is_told_may_end_a_training_and_the_next_goes_on_with_it(fit_there, small_train, small_dev, tmp_path):
    room = Room(tmp_path / "trainings", small_train, small_dev)
    recipes = recipes_of(alphas=[0, 0.75], epochs=2000)
    reached = []

    def stop_when_kept(progress: EpochMetrics) -> None:
        if room.folder.exists() and ".snapshot" in room.files():
            reached.append(progress.epoch)
            raise BrokenPipeError("enough")  # as when nobody reads what is said of the progress

    with room.store().open(recipes, resume=True) as snapshot, pytest.raises(BrokenPipeError, match="enough"):
        train(fit_there, recipes, small_train, small_dev, on_epoch=stop_when_kept, snapshot=snapshot)
    with room.store().open(recipes, resume=True) as snapshot:
        assert 0 < snapshot.left.epoch <= reached[0] + 1
        resumed = train(fit_there, recipes, small_train, small_dev, snapshot=snapshot)
    assert {fitted.resumed_from_epoch for fitted in resumed} == {snapshot.left.epoch}
    assert all(map(same_bits, resumed, train_replicas(recipes, small_train, small_dev, clean_loss_every=3)))


def test_what_goes_wrong_there_is_raised_here(fit_there, small_train, small_dev):
    mixed = [*recipes_of(), *recipes_of({"dim": 4})]
    with pytest.raises(ValueError, match="alpha and seed only") as caught:
        train(fit_there, mixed, small_train, small_dev)
    assert "in _train_next" in caught.value.__notes__[0]
    assert len(train(fit_there, recipes_of(), small_train, small_dev)) == 1


def test_what_is_said_there_is_said_here(fit_there, small_train, small_dev, tmp_path):
    said: list[str] = []
    recipes = recipes_of()
    (tmp_path / "file").touch()
    snapshot = TrainingCheckpoint(tmp_path / "file" / "x.snapshot", recipes, say=said.append, share=1e9)
    trained = train(fit_there, recipes, small_train, small_dev, snapshot=snapshot)
    assert len(trained) == 1
    (warning,) = said
    assert warning.startswith("the training can't be kept against interruptions: ")


def test_a_killed_process_is_told_of_and_another_one_trains_the_next(fit_there, small_train, small_dev):
    before = children()

    def kill(_: EpochMetrics) -> None:
        for child in children() - before:
            child.kill()

    with pytest.raises(InputError, match=r"trained 2 of the recipes is gone \(exit code -9\), .* it goes on"):
        train(fit_there, recipes_of(alphas=[0, 1], epochs=ENDLESS), small_train, small_dev, on_epoch=kill)
    assert len(train(fit_there, recipes_of(), small_train, small_dev)) == 1


def test_where_there_can_be_no_processes_the_thread_trains(fit_there, small_train, small_dev, monkeypatch, tmp_path):
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(tmp_path / "absent"))
    (trained,) = train(fit_there, recipes_of(), small_train, small_dev)
    assert same_bits(trained, train_replicas(recipes_of(), small_train, small_dev, clean_loss_every=3)[0])


@pytest.mark.parametrize(("pairs", "threads"), [(FEWEST_PAIRS - 1, 2), (10 * FEWEST_PAIRS, 1)])
def test_a_few_pairs_and_a_single_thread_train_here(pairs, threads):
    with worker_pool.training_pool(pairs, threads) as found:
        assert found is train_replicas


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_they_do_not_outlive_the_process_that_started_them(number):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        found = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(found) == 1
        process.send_signal(number)
        process.wait(60)
    _, left = psutil.wait_procs(found, timeout=30)
    assert all(child.status() == psutil.STATUS_ZOMBIE for child in left)  # where nobody reaps orphans


def test_ctrl_c_is_for_the_process_that_started_them():
    """Which is a fresh one: multiprocessing unblocks signals when it starts its first."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        (training,) = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        for number in (signal.SIGINT, signal.SIGHUP):
            training.send_signal(number)
            with pytest.raises(psutil.TimeoutExpired):
                training.wait(1)
        training.terminate()
        training.wait(60)
        process.kill()
