"""Trainings that are resumed in this process; tests/commands/test_resume.py kills real ones."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.pairs import random_pairs
from tests.helpers.results import same_bits
from twinsqueeze.commands.resume import plan_with_checkpoints
from twinsqueeze.recipe import Recipe
from twinsqueeze.training import checkpointing, loop
from twinsqueeze.training.checkpointing import CheckpointStore, TrainingCheckpoint
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.training.trainer import TrainingState
from twinsqueeze.utils.disk_cache import write_atomic

EPOCHS = 4
LINEAR = {"architecture": "linear", "loss": "pearson", "weight_decay": 0.01, "lr_schedule": "cosine"}
TEACHER = {"init": "teacher", "teacher": "projection", "neighbor_weight": 1}
RECIPES = {
    "published": {},
    "ten dimensions": {"dim": 10, "lr": 1e-3},
    "sign": LINEAR | {"quantizer": "sign", "neighbor_weight": 0.1},
    "product": LINEAR | {"quantizer": "product", "neighbor_weight": 1, "init": "pca", "dim": 12, "subvector_dim": 6},
    "product, teacher": LINEAR | TEACHER | {"quantizer": "product", "dim": 12},
    "teacher": LINEAR | {"neighbor_weight": 1, "num_neighbors": 2, "teacher": "projection"},
    "residual": LINEAR | TEACHER | {"architecture": "residual", "num_neighbors": 2},
}


def make_recipes(fields=None, alphas=(0.75,), seeds=(3,), epochs=EPOCHS) -> list[Recipe]:
    fields = {"dim": 8, "device": "cpu", "epochs": epochs} | (fields or {})
    return [Recipe.parse(fields | {"alpha": a, "seed": s}) for a, s in product(alphas, seeds)]


class EveryEpoch(TrainingCheckpoint):
    """Collects the content of the checkpoint at every epoch."""

    def __init__(self, recipes) -> None:
        super().__init__(None, recipes, None, print)
        self.contents: list[bytes] = []

    def maybe_save(self, get_state: Callable[[], TrainingState]) -> None:
        self.contents.append(self.serialize(get_state()))


class CheckpointFolder:
    """A folder of checkpoints, and the warnings about them."""

    def __init__(self, path, train, dev) -> None:
        self.path, self.train, self.dev = path, train, dev
        self.warnings: list[str] = []

    def store(self, train=None, dev=None, **environment) -> CheckpointStore:
        environment = {"threads": 2} | environment
        return CheckpointStore(train or self.train, dev or self.dev, environment, self.warnings.append, self.path)

    def write(self, recipes: list[Recipe], epoch: int = 2) -> TrainingState:
        """Writes a checkpoint as an interrupted process would leave it."""
        state = TrainingState({"x": np.arange(50.0)}, {"epoch": epoch})
        with self.store().open(recipes, resume=True) as checkpoint:
            write_atomic(checkpoint.path, checkpoint.serialize(state))
        return state

    def suffixes(self) -> list[str]:
        return sorted(path.suffix for path in self.path.iterdir())


@pytest.fixture
def folder(tmp_path, small_train, small_dev):
    return CheckpointFolder(tmp_path / "trainings", small_train, small_dev)


@pytest.mark.parametrize("fields", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(("alphas", "seeds"), [([0.75], [3]), ([0.0, 0.75], [5, 3])], ids=["alone", "in a grid"])
def test_a_training_resumes_bit_for_bit_from_every_epoch(fields, alphas, seeds, folder, monkeypatch):
    train = random_pairs(pairs=150, sentences=120, dimension=64, seed=1)
    dev = random_pairs(pairs=60, sentences=70, dimension=64, seed=2)
    recipes = make_recipes(fields, alphas, seeds)
    if "num_neighbors" in fields:
        train = replace(train, unpaired=random_pairs(pairs=2, sentences=50, dimension=64, seed=3).embeddings)
    uninterrupted = train_replicas(recipes, train, dev, clean_loss_every=3)
    saving = EveryEpoch(recipes)
    saved = train_replicas(recipes, train, dev, clean_loss_every=3, checkpoint=saving)
    assert all(map(same_bits, uninterrupted, saved))
    assert len(saving.contents) == EPOCHS + 1  # also before the first epoch, when teachers are trained

    monkeypatch.setattr(loop, "train_teachers", lambda *_: pytest.fail("teachers are trained again"))
    for epoch, content in enumerate(saving.contents):
        store = folder.store(train, dev)
        with store.open(recipes, resume=True) as checkpoint:
            write_atomic(checkpoint.path, content)
        with store.open(recipes[::-1], resume=True) as checkpoint:
            assert checkpoint.resume_state.epoch == epoch
            seen = []
            resumed = train_replicas(
                recipes, train, dev, clean_loss_every=3, checkpoint=checkpoint, on_epoch=seen.append
            )
        assert all(map(same_bits, uninterrupted, resumed)), epoch
        assert {result.resumed_from_epoch for result in resumed} == {epoch}
        assert [progress.epoch for progress in seen] == list(range(1, EPOCHS + 1))
        losses = np.stack([result.history.loss for result in uninterrupted]).T
        assert [sorted(progress.loss) for progress in seen] == [sorted(loss) for loss in losses]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_on_cuda_resumes(small_train, small_dev, folder):
    recipes = make_recipes({"device": "cuda"}, [0.0, 0.75], [3, 5])
    saving = EveryEpoch(recipes)
    uninterrupted = train_replicas(recipes, small_train, small_dev, checkpoint=saving)
    with folder.store().open(recipes, resume=True) as checkpoint:
        write_atomic(checkpoint.path, saving.contents[2])
    with folder.store().open(recipes, resume=True) as checkpoint:
        resumed = train_replicas(recipes, small_train, small_dev, checkpoint=checkpoint)
    for a, b in zip(uninterrupted, resumed, strict=True):
        np.testing.assert_allclose(a.history.loss, b.history.loss, rtol=1e-5)
        assert b.resumed_from_epoch == 2


def test_a_diverged_training_resumes_and_ends_at_the_same_epoch(small_train, small_dev, folder):
    """No state is saved after the last epoch, whose loss is NaN."""
    recipes = make_recipes({"lr": 1e30}, epochs=50)
    saving = EveryEpoch(recipes)
    (uninterrupted,) = train_replicas(recipes, small_train, small_dev, checkpoint=saving)
    assert len(saving.contents) == len(uninterrupted.history.loss) < 50
    with folder.store().open(recipes, resume=True) as checkpoint:
        write_atomic(checkpoint.path, saving.contents[-1])
    with folder.store().open(recipes, resume=True) as checkpoint:
        (resumed,) = train_replicas(recipes, small_train, small_dev, checkpoint=checkpoint)
    assert same_bits(uninterrupted, resumed)


def test_a_checkpoint_is_found_until_it_is_discarded(folder):
    recipes = make_recipes(alphas=[0, 1], seeds=[3, 4])
    state = folder.write(recipes, epoch=3)
    assert folder.suffixes() == [".checkpoint", ".lock"]
    (interrupted,) = folder.store().interrupted()
    assert {recipe.digest for recipe in interrupted.recipes} == {recipe.digest for recipe in recipes}
    assert interrupted.epoch == 3
    with folder.store().open(recipes, resume=True) as checkpoint:
        assert np.array_equal(checkpoint.resume_state.arrays["x"], state.arrays["x"])
        checkpoint.discard()
    assert folder.suffixes() == []
    assert folder.store().interrupted() == []
    folder.write(recipes)
    with folder.store().open(recipes, resume=False) as checkpoint:
        assert checkpoint.resume_state is None
    assert folder.suffixes() == []
    assert folder.warnings == []


def test_no_checkpoint_is_found_that_would_give_other_bits(folder, monkeypatch):
    recipes = make_recipes()
    folder.write(recipes)
    other = random_pairs(pairs=150, sentences=120, dimension=24, seed=7)
    stores = [
        folder.store(threads=1),
        folder.store(train=other),
        folder.store(dev=other),
        folder.store(clean_loss_every=10),
    ]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    stores.append(folder.store())
    monkeypatch.undo()
    code = folder.path.parent / "code"
    (code / "model").mkdir(parents=True)
    (code / "model" / "compressor.py").write_text("other code")
    monkeypatch.setattr(checkpointing, "PACKAGE_DIR", code)
    stores.append(folder.store())
    monkeypatch.undo()
    for store in stores:
        assert store.interrupted() == []
        with store.open(recipes, resume=True) as checkpoint:
            assert checkpoint.resume_state is None
    for others in (make_recipes(epochs=5), make_recipes(seeds=[3, 4]), make_recipes({"lr": 1e-3})):
        with folder.store().open(others, resume=True) as checkpoint:
            assert checkpoint.resume_state is None
    assert len(folder.store().interrupted()) == 1


def test_the_code_of_the_whole_package_is_in_the_digest():
    assert (checkpointing.PACKAGE_DIR / "model" / "compressor.py").is_file()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_reported_once_and_removed(folder, data):
    recipes = make_recipes()
    folder.write(recipes)
    (path,) = folder.path.glob("*.checkpoint")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncated"):
        content = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    else:
        place = data.draw(st.integers(0, len(content) - 1), label="place")
        content[place] ^= data.draw(st.integers(1, 255), label="flip")
    path.write_bytes(content)
    folder.warnings.clear()
    assert folder.store().interrupted() == []
    with folder.store().open(recipes, resume=True) as checkpoint:
        assert checkpoint.resume_state is None
    (warning,) = folder.warnings
    assert "damaged" in warning
    assert "starts again" in warning


def test_two_processes_do_not_share_a_checkpoint(folder):
    recipes = make_recipes()
    folder.write(recipes)
    (lock,) = folder.path.glob("*.lock")
    holding = (
        "import sys, time, filelock as f; l = f.FileLock(sys.argv[1]); l.acquire(); print(flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", holding, str(lock)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert folder.store().interrupted() == []
        with folder.store().open(recipes, resume=False) as checkpoint:
            assert checkpoint.resume_state is None
            checkpoint.maybe_save(lambda: pytest.fail("it is written"))
            checkpoint.discard()
        assert "another process trains the same" in folder.warnings[0]
        other.kill()
    with folder.store().open(recipes, resume=True) as checkpoint:
        assert checkpoint.resume_state.epoch == 2


class FakeClock:
    """A clock that only advances by `now`, and by the duration of writes."""

    def __init__(self, monkeypatch, write_seconds: float) -> None:
        self.now = 100.0
        self.writes: list[float] = []
        self.write_seconds = write_seconds
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(checkpointing, "write_atomic", self.write)

    def write(self, path, payload) -> None:
        self.writes.append(self.now)
        self.now += self.write_seconds


@pytest.mark.parametrize("write_seconds", [0.001, 0.1, 2.0])
def test_saving_takes_two_percent_of_the_time_on_any_disk(folder, monkeypatch, write_seconds):
    clock = FakeClock(monkeypatch, write_seconds)
    monkeypatch.setattr(TrainingCheckpoint, "serialize", lambda self, state: b"")
    with folder.store().open(make_recipes(), resume=True) as checkpoint:
        checkpoint.maybe_save(lambda: TrainingState({}, {"epoch": 0}))
        for _ in range(3000):
            clock.now += 0.2
            checkpoint.maybe_save(lambda: TrainingState({}, {"epoch": 0}))
            # after a slow first write, the next one waits longer
            assert len(clock.writes) < 2 or checkpoint.save_seconds <= 0.02 * (clock.now - 100)
        assert checkpoint.save_seconds == pytest.approx(len(clock.writes) * write_seconds)
    assert clock.writes[0] - 100 == pytest.approx(1.0, abs=0.2)
    assert len(clock.writes) >= 0.8 * min(3000, 0.02 * 600 / write_seconds)


def test_a_full_disk_does_not_stop_a_training(small_train, small_dev, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    recipes = make_recipes()
    (unsaved,) = train_replicas(recipes, small_train, small_dev)
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(checkpointing, "MAX_OVERHEAD", float("inf"))
    with folder.store().open(recipes, resume=True) as checkpoint:
        (result,) = train_replicas(recipes, small_train, small_dev, checkpoint=checkpoint)
    assert same_bits(unsaved, result)
    (warning,) = folder.warnings
    assert "No space left" in warning
    assert folder.suffixes() == []


def test_a_folder_that_cannot_be_created_does_not_stop_a_training(small_train, small_dev, folder):
    folder.path.write_text("a file")
    recipes = make_recipes()
    with folder.store().open(recipes, resume=True) as checkpoint:
        (result,) = train_replicas(recipes, small_train, small_dev, checkpoint=checkpoint)
    assert result.diverged_at is None
    assert "an interruption would lose this training" in folder.warnings[0]


def test_unfinished_files_of_killed_processes_are_removed(folder):
    recipes = make_recipes()
    folder.write(recipes)
    (folder.path / f"{folder.store().path(recipes).name}.x.part").touch()
    with folder.store().open(recipes, resume=True) as checkpoint:
        assert checkpoint.resume_state.epoch == 2
    assert folder.suffixes() == [".checkpoint", ".lock"]


def test_an_interrupted_batch_is_resumed_as_a_whole(folder):
    """As after a kill while the runs of a batch were logged: some of its recipes remain."""
    grid = make_recipes(alphas=[0, 1], seeds=[0, 1, 2], epochs=10)
    todo = [recipe.model_copy(update={"dataset": "data"}) for recipe in grid[4:]]

    def plan(recipes: list[Recipe], *, resume: bool = True) -> list[set[tuple[float, int]]]:
        batches = plan_with_checkpoints(recipes, folder.store(), resume=resume)
        assert {recipe.dataset for batch in batches for recipe in batch} <= {"data"}
        return [{(recipe.alpha, recipe.seed) for recipe in batch} for batch in batches]

    folder.write(grid, 9)
    everything = {(recipe.alpha, recipe.seed) for recipe in grid}
    assert plan(todo) == [everything]
    assert plan(todo, resume=False) == [{(1, 1), (1, 2)}]
    assert plan([*todo, todo[0].model_copy(update={"alpha": 3.0})]) == [everything, {(3.0, todo[0].seed)}]
    assert plan([]) == []
    assert plan([todo[0].model_copy(update={"alpha": 3.0})]) == [{(3.0, todo[0].seed)}]
    assert len(folder.store().interrupted()) == 1
