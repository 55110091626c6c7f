"""Trainings that are gone on with in this process; tests/test_resume.py kills real ones."""

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

from tests.conftest import random_pairs
from twinsqueeze.commands.resume import plan_with_checkpoints
from twinsqueeze.recipe import Recipe
from twinsqueeze.training import checkpointing, loop
from twinsqueeze.training.checkpointing import CheckpointStore, TrainerState, TrainingCheckpoint
from twinsqueeze.training.loop import TrainingResult, train_replicas
from twinsqueeze.utils.disk_cache import write_atomic

EPOCHS = 4
LINEAR = {"architecture": "linear", "loss": "pearson", "weight_decay": 0.01, "lr_schedule": "cosine"}
RECIPES = {
    "published": {},
    "ten numbers": {"dim": 10, "lr": 1e-3},
    "signs": LINEAR | {"quantizer": "sign", "neighbor_weight": 0.1},
    "codes": LINEAR | {"quantizer": "product", "neighbor_weight": 1, "init": "pca", "dim": 12, "subvector_dim": 6},
    "heads": LINEAR
    | {"quantizer": "product", "neighbor_weight": 1, "init": "teacher", "teacher": "projection", "dim": 12},
    "teachers": LINEAR | {"neighbor_weight": 1, "num_neighbors": 2, "teacher": "projection"},
    "wide": LINEAR
    | {
        "architecture": "residual",
        "neighbor_weight": 1,
        "num_neighbors": 2,
        "init": "teacher",
        "teacher": "projection",
    },
}


def recipes_of(fields=None, alphas=(0.75,), seeds=(3,), epochs=EPOCHS) -> list[Recipe]:
    fields = {"dim": 8, "device": "cpu", "epochs": epochs} | (fields or {})
    return [Recipe.parse(fields | {"alpha": a, "seed": s}) for a, s in product(alphas, seeds)]


class EveryEpoch(TrainingCheckpoint):
    """Keeps every state there is, as the bytes that would be in the file."""

    def __init__(self, recipes) -> None:
        super().__init__(None, recipes)
        self.kept: list[bytes] = []

    def offer(self, state: Callable[[], TrainerState]) -> None:
        self.kept.append(self._bytes(state()))


def same_bits(a: TrainingResult, b: TrainingResult) -> bool:
    def everything(fitted: TrainingResult) -> list[np.ndarray]:
        history = fitted.history
        tensors = [tensor.numpy() for tensor in fitted.compressor.state_dict().values()]
        return [*tensors, history.loss, history.clean_loss, *history.dev.values()]

    pairs = zip(everything(a), everything(b), strict=True)
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)


class Room:
    """A folder of snapshots, and what was said about them."""

    def __init__(self, folder, train, dev) -> None:
        self.folder, self.train, self.dev = folder, train, dev
        self.said: list[str] = []

    def store(self, train=None, dev=None, **facts) -> CheckpointStore:
        return CheckpointStore(
            train or self.train, dev or self.dev, {"threads": 2} | facts, self.said.append, self.folder
        )

    def leave(self, recipes: list[Recipe], epoch: int = 2) -> TrainerState:
        """Leaves what a killed process would."""
        state = TrainerState({"x": torch.arange(50.0)}, {"epoch": epoch})
        with self.store().open(recipes, resume=True) as snapshot:
            write_atomic(snapshot.path, snapshot._bytes(state))
        return state

    def files(self) -> list[str]:
        return sorted(path.suffix for path in self.folder.iterdir())


@pytest.fixture
def room(tmp_path, small_train, small_dev):
    return Room(tmp_path / "trainings", small_train, small_dev)


@pytest.mark.parametrize("fields", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(("alphas", "seeds"), [([0.75], [3]), ([0.0, 0.75], [5, 3])], ids=["alone", "in a grid"])
def test_a_training_goes_on_bit_for_bit_from_every_epoch(fields, alphas, seeds, room, monkeypatch):
    train = random_pairs(pairs=150, sentences=120, dimension=64, seed=1)
    dev = random_pairs(pairs=60, sentences=70, dimension=64, seed=2)
    recipes = recipes_of(fields, alphas, seeds)
    if "nearest" in fields:
        train = replace(train, unpaired=random_pairs(pairs=2, sentences=50, dimension=64, seed=3).embeddings)
    whole = train_replicas(recipes, train, dev, clean_loss_every=3)
    watching = EveryEpoch(recipes)
    watched = train_replicas(recipes, train, dev, clean_loss_every=3, snapshot=watching)
    assert all(map(same_bits, whole, watched))
    assert len(watching.kept) == EPOCHS + 1  # also before the first epoch, when heads are trained

    monkeypatch.setattr(loop, "train_heads", lambda *_: pytest.fail("heads are trained again"))
    for epoch, content in enumerate(watching.kept):
        store = room.store(train, dev)
        with store.open(recipes, resume=True) as snapshot:
            write_atomic(snapshot.path, content)
        with store.open(recipes[::-1], resume=True) as snapshot:
            assert snapshot.left.epoch == epoch
            seen = []
            resumed = train_replicas(recipes, train, dev, clean_loss_every=3, snapshot=snapshot, on_epoch=seen.append)
        assert all(map(same_bits, whole, resumed)), epoch
        assert {fitted.resumed_from_epoch for fitted in resumed} == {epoch}
        assert [progress.epoch for progress in seen] == list(range(1, EPOCHS + 1))
        losses = np.stack([fitted.history.loss for fitted in whole]).T
        assert [sorted(progress.loss) for progress in seen] == [sorted(loss) for loss in losses]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_on_cuda_goes_on(small_train, small_dev, room):
    recipes = recipes_of({"device": "cuda"}, [0.0, 0.75], [3, 5])
    watching = EveryEpoch(recipes)
    whole = train_replicas(recipes, small_train, small_dev, snapshot=watching)
    with room.store().open(recipes, resume=True) as snapshot:
        write_atomic(snapshot.path, watching.kept[2])
    with room.store().open(recipes, resume=True) as snapshot:
        resumed = train_replicas(recipes, small_train, small_dev, snapshot=snapshot)
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(a.history.loss, b.history.loss, rtol=1e-5)
        assert b.resumed_from_epoch == 2


def test_a_diverged_training_ends_where_it_did(small_train, small_dev, room):
    """NaN is gone on with as it was, and no state is kept behind the last epoch."""
    recipes = recipes_of({"lr": 1e30}, epochs=50)
    watching = EveryEpoch(recipes)
    (whole,) = train_replicas(recipes, small_train, small_dev, snapshot=watching)
    assert len(watching.kept) == len(whole.history.loss) < 50
    with room.store().open(recipes, resume=True) as snapshot:
        write_atomic(snapshot.path, watching.kept[-1])
    with room.store().open(recipes, resume=True) as snapshot:
        (resumed,) = train_replicas(recipes, small_train, small_dev, snapshot=snapshot)
    assert same_bits(whole, resumed)


def test_what_is_left_is_found_until_it_is_discarded(room):
    recipes = recipes_of(alphas=[0, 1], seeds=[3, 4])
    state = room.leave(recipes, epoch=3)
    assert room.files() == [".lock", ".snapshot"]
    (left,) = room.store().left()
    assert {recipe.digest for recipe in left.recipes} == {recipe.digest for recipe in recipes}
    assert left.state.epoch == 3
    with room.store().open(recipes, resume=True) as snapshot:
        assert torch.equal(snapshot.left.tensors["x"], state.tensors["x"])
        snapshot.discard()
    assert room.files() == []
    assert room.store().left() == []
    room.leave(recipes)
    with room.store().open(recipes, resume=False) as snapshot:
        assert snapshot.left is None
    assert room.files() == []
    assert room.said == []


def test_nothing_is_found_that_would_end_otherwise(room, monkeypatch):
    recipes = recipes_of()
    room.leave(recipes)
    other = random_pairs(pairs=150, sentences=120, dimension=24, seed=7)
    stores = [
        room.store(threads=1),
        room.store(train=other),
        room.store(dev=other),
        room.store(clean_loss_every=10),
    ]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    stores.append(room.store())
    monkeypatch.undo()
    code = room.folder.parent / "code"
    code.mkdir()
    (code / "snapshots.py").write_text("other code")
    monkeypatch.setattr(checkpointing, "__file__", str(code / "snapshots.py"))
    stores.append(room.store())
    monkeypatch.undo()
    for store in stores:
        assert store.left() == []
        with store.open(recipes, resume=True) as snapshot:
            assert snapshot.left is None
    for others in (recipes_of(epochs=5), recipes_of(seeds=[3, 4]), recipes_of({"lr": 1e-3})):
        with room.store().open(others, resume=True) as snapshot:
            assert snapshot.left is None
    assert len(room.store().left()) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_was_cut_off_or_changed_is_said_once_and_begun_anew(room, data):
    recipes = recipes_of()
    room.leave(recipes)
    (path,) = room.folder.glob("*.snapshot")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    else:
        place = data.draw(st.integers(0, len(content) - 1), label="place")
        content[place] ^= data.draw(st.integers(1, 255), label="flip")
    path.write_bytes(content)
    room.said.clear()
    assert room.store().left() == []
    with room.store().open(recipes, resume=True) as snapshot:
        assert snapshot.left is None
    (said,) = room.said
    assert "damaged" in said
    assert "begins anew" in said


def test_two_processes_do_not_share_a_training(room):
    recipes = recipes_of()
    room.leave(recipes)
    (lock,) = room.folder.glob("*.lock")
    holding = (
        "import sys, time, filelock as f; l = f.FileLock(sys.argv[1]); l.acquire(); print(flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", holding, str(lock)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert room.store().left() == []
        with room.store().open(recipes, resume=False) as snapshot:
            assert snapshot.left is None
            snapshot.offer(lambda: pytest.fail("it is written"))
            snapshot.discard()
        assert "another process trains the same" in room.said[0]
        other.kill()
    with room.store().open(recipes, resume=True) as snapshot:
        assert snapshot.left.epoch == 2


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch, writing: float) -> None:
        self.now = 100.0
        self.writes: list[float] = []
        self.writing = writing
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(checkpointing, "write_checked", self.write)

    def write(self, path, payload) -> None:
        self.writes.append(self.now)
        self.now += self.writing


@pytest.mark.parametrize("writing", [0.001, 0.1, 2.0])
def test_snapshots_take_two_hundredths_of_the_time_on_any_disk(room, monkeypatch, writing):
    state = TrainerState({"x": torch.zeros(10**6)}, {"epoch": 0})
    clock = Clock(monkeypatch, writing)
    monkeypatch.setattr(TrainingCheckpoint, "_bytes", lambda self, state: b"")
    with room.store().open(recipes_of(), resume=True) as snapshot:
        snapshot.begin()
        for _ in range(3000):
            clock.now += 0.2
            snapshot.offer(lambda: state)
            # the first is reckoned with a disk of 100 MB/s, and the next ones make up for what it took longer
            assert len(clock.writes) < 2 or snapshot.seconds <= 0.02 * (clock.now - 100)
        assert snapshot.seconds == pytest.approx(len(clock.writes) * writing)
    assert clock.writes[0] - 100 == pytest.approx(2.6, abs=0.2)
    assert len(clock.writes) >= 0.8 * min(3000, 0.02 * 600 / writing)


def test_a_disk_that_is_full_costs_no_training(small_train, small_dev, room, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    recipes = recipes_of()
    (whole,) = train_replicas(recipes, small_train, small_dev)
    monkeypatch.setattr(os, "fsync", full)
    with room.store().open(recipes, resume=True) as snapshot:
        snapshot._share = float("inf")
        (fitted,) = train_replicas(recipes, small_train, small_dev, snapshot=snapshot)
    assert same_bits(whole, fitted)
    (said,) = room.said
    assert "No space left" in said
    assert room.files() == []


def test_a_folder_that_cannot_be_made_costs_no_training(small_train, small_dev, room):
    room.folder.write_text("in the way")
    recipes = recipes_of()
    with room.store().open(recipes, resume=True) as snapshot:
        (fitted,) = train_replicas(recipes, small_train, small_dev, snapshot=snapshot)
    assert fitted.diverged_at is None
    assert "not kept against interruptions" in room.said[0]


def test_what_nobody_comes_back_to_is_removed(room):
    old, young, ours = recipes_of(seeds=[1]), recipes_of(seeds=[2]), recipes_of(seeds=[3])
    for recipes in (old, ours, young):
        room.leave(recipes)
    for path in room.folder.iterdir():
        if path.stem != room.store()._path(young).stem:
            os.utime(path, (time.time() - 31 * 86400,) * 2)
    (room.folder / f"{room.store()._path(ours).name}.x.part").touch()
    with room.store().open(ours, resume=True) as snapshot:
        assert snapshot.left.epoch == 2
    assert {left.recipes[0].seed for left in room.store().left()} == {2, 3}
    assert room.files() == [".lock", ".lock", ".snapshot", ".snapshot"]


def test_a_batch_is_gone_on_with_as_it_was_where_that_is_less_work(room):
    """As after a kill while a batch's runs were recorded: what is left to do is no batch that was trained."""
    grid = recipes_of(alphas=[0, 1], seeds=[0, 1, 2], epochs=10)
    todo = [recipe.model_copy(update={"dataset": "data"}) for recipe in grid[4:]]

    def cut(epoch: int, *, resume: bool = True) -> list[set[tuple[float, int]]]:
        room.leave(grid, epoch)
        made = plan_with_checkpoints(todo, room.store(), resume=resume)
        assert {recipe.dataset for batch in made for recipe in batch} == {"data"}
        return [{(recipe.alpha, recipe.seed) for recipe in batch} for batch in made]

    everything = {(recipe.alpha, recipe.seed) for recipe in grid}
    assert cut(9) == cut(10) == [everything]
    assert cut(6) == cut(9, resume=False) == [{(1, 1), (1, 2)}]
    room.leave(grid, 10)
    more = [*todo, *recipes_of(alphas=[3], seeds=[0])]
    assert [len(batch) for batch in plan_with_checkpoints(more, room.store(), resume=True)] == [6, 1]
    assert plan_with_checkpoints([], room.store(), resume=True) == []
    assert len(room.store().left()) == 1
    cut(1)  # what is no use any more is not kept
    assert room.store().left() == []
