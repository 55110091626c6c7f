"""Trainings that are resumed in this process; tests/commands/test_resume.py kills real ones."""

import os
import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.checkpoints import CheckpointFolder, RecordingCheckpoint
from tests.helpers.pairs import random_pairs
from tests.helpers.recipes import RECIPES, make_pairs, make_recipes
from tests.helpers.results import same_bits
from twinsqueeze.commands.resume import plan_with_checkpoints
from twinsqueeze.training import checkpointing, loop
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.training.trainer import TrainingState
from twinsqueeze.utils.compute import resolve_device


@pytest.fixture
def folder(tmp_path, small_train, small_dev):
    return CheckpointFolder(tmp_path / "trainings", small_train, small_dev)


@pytest.mark.parametrize(
    ("name", "alphas", "seeds"),
    [
        *((name, [0, 0.75], [5, 3]) for name in ("mlp", "product-neighbors", "search")),
        *(pytest.param(name, [0, 0.75], [5, 3], marks=pytest.mark.slow) for name in ("infonce-sign", "residual")),
        *(pytest.param(name, [0.75], [3], marks=pytest.mark.slow) for name in ("mlp", "product-neighbors", "search")),
    ],
)
def test_a_training_resumes_bit_for_bit_from_every_epoch(name, alphas, seeds, tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, *make_pairs(64, **RECIPES[name]))
    recipes = make_recipes(alphas, seeds, **RECIPES[name])
    uninterrupted = train_replicas(recipes, *folder.pairs, clean_loss_every=3)
    saving = RecordingCheckpoint(recipes)
    saved = train_replicas(recipes, *folder.pairs, clean_loss_every=3, checkpoint=saving)
    assert all(map(same_bits, uninterrupted, saved))
    epochs = recipes[0].epochs
    assert len(saving.contents) == epochs + 1  # also before the first epoch, when teachers are trained

    monkeypatch.setattr(loop, "make_teachers", lambda *_: pytest.fail("teachers are trained again"))
    losses = np.stack([result.history.loss for result in uninterrupted], axis=1)
    for epoch, content in enumerate(saving.contents):
        folder.write(recipes[::-1], content)  # in any order
        seen = []
        resumed = folder.train(recipes, clean_loss_every=3, on_epoch=seen.append)
        assert all(map(same_bits, uninterrupted, resumed)), epoch
        assert {result.resumed_from_epoch for result in resumed} == {epoch}
        assert [metrics.epoch for metrics in seen] == list(range(1, epochs + 1))
        assert np.array_equal(np.sort([metrics.loss for metrics in seen]), np.sort(losses))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_on_cuda_is_that_of_the_cpu_and_resumes(folder):
    assert resolve_device("auto").type == "cuda"
    on_cpu, recipes = (make_recipes([0.0, 0.75], [3, 5], device=device) for device in ("cpu", "cuda"))
    saving = RecordingCheckpoint(recipes)
    results = [train_replicas(on_cpu, *folder.pairs), train_replicas(recipes, *folder.pairs, checkpoint=saving)]
    folder.write(recipes, saving.contents[2])
    for cpu, cuda, resumed in zip(*results, folder.train(recipes), strict=True):
        np.testing.assert_allclose(cuda.history.loss, cpu.history.loss, rtol=1e-3)
        np.testing.assert_allclose(resumed.history.loss, cuda.history.loss, rtol=1e-5)
        assert resumed.resumed_from_epoch == 2


def test_a_diverged_training_resumes_and_ends_at_the_same_epoch(folder):
    recipes = make_recipes(lr=1e30, epochs=50)
    saving = RecordingCheckpoint(recipes)
    (uninterrupted,) = train_replicas(recipes, *folder.pairs, checkpoint=saving)
    assert len(saving.contents) == len(uninterrupted.history.loss) < 50  # none after the last epoch, whose loss is NaN
    folder.write(recipes, saving.contents[-1])
    assert same_bits(uninterrupted, *folder.train(recipes))


def test_a_checkpoint_is_found_until_it_is_discarded(folder):
    recipes = make_recipes([0, 1], [3, 4])
    folder.write(recipes, epoch=3)
    (folder.path / f"{folder.store().path(recipes).name}.x.part").touch()  # unfinished, of a killed process
    (interrupted,) = folder.store().interrupted()
    assert {recipe.digest for recipe in interrupted.recipes} == {recipe.digest for recipe in recipes}
    assert interrupted.epoch == 3
    with folder.open(recipes) as checkpoint:
        assert folder.suffixes() == [".checkpoint", ".lock"]
        assert np.array_equal(checkpoint.resume_state.arrays["x"], np.arange(50.0))
        checkpoint.discard()
    assert folder.suffixes() == []
    assert folder.store().interrupted() == []
    folder.write(recipes)
    with folder.open(recipes, resume=False) as checkpoint:
        assert checkpoint.resume_state is None
    assert folder.suffixes() == []
    assert folder.warnings == []


def test_no_checkpoint_is_found_that_would_give_other_bits(folder, monkeypatch):
    recipes = make_recipes()
    folder.write(recipes)
    train, dev = folder.pairs
    other = random_pairs(pairs=150, sentences=120, dimension=24, seed=7)
    stores = [folder.store(threads=1), folder.store(clean_loss_every=10)]
    stores += [folder.store(other, dev), folder.store(train, other)]
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
        stores.append(folder.store())
    assert (checkpointing.PACKAGE_DIR / "model" / "compressor.py").is_file()
    (folder.path / "model").mkdir()
    (folder.path / "model" / "compressor.py").write_text("other code")
    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "PACKAGE_DIR", folder.path)
        stores.append(folder.store())
    opened = [(store, recipes) for store in stores]
    opened += [(folder.store(), make_recipes(**other)) for other in ({"epochs": 5}, {"seeds": [3, 4]}, {"lr": 1e-3})]
    for store, wanted in opened:
        assert store.interrupted() == [] or wanted != recipes
        with store.open(wanted, resume=True) as checkpoint:
            assert checkpoint.resume_state is None
    assert len(folder.store().interrupted()) == 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_reported_once_and_removed(folder, data):
    recipes, store = make_recipes(), folder.store()
    folder.write(recipes)
    content = bytearray(store.path(recipes).read_bytes())
    if data.draw(st.booleans(), label="truncated"):
        content = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    else:
        place = data.draw(st.integers(0, len(content) - 1), label="place")
        content[place] ^= data.draw(st.integers(1, 255), label="flip")
    store.path(recipes).write_bytes(content)
    folder.warnings.clear()
    assert store.interrupted() == []
    with store.open(recipes, resume=True) as checkpoint:
        assert checkpoint.resume_state is None
    (warning,) = folder.warnings
    assert "damaged" in warning
    assert "starts again" in warning


def test_two_trainings_do_not_share_a_checkpoint(folder):
    recipes = make_recipes()
    folder.write(recipes)
    with folder.open(recipes):
        assert folder.store().interrupted() == []
        with folder.open(recipes, resume=False) as checkpoint:
            assert checkpoint.resume_state is None
            checkpoint.maybe_save(lambda: pytest.fail("it is written"))
            checkpoint.discard()
        assert "another process trains the same" in folder.warnings[0]
    with folder.open(recipes) as checkpoint:
        assert checkpoint.resume_state.epoch == 2


@pytest.mark.parametrize("write_seconds", [0.001, 0.1, 2.0])
def test_saving_takes_two_percent_of_the_time_on_any_disk(folder, monkeypatch, write_seconds):
    now = 100.0  # advances only between epochs, and by the duration of writes
    writes: list[float] = []

    def write(*_: object) -> None:
        nonlocal now
        writes.append(now)
        now += write_seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(checkpointing, "write_atomic", write)
    monkeypatch.setattr(TrainingCheckpoint, "serialize", lambda self, state: b"")
    with folder.open(make_recipes()) as checkpoint:
        checkpoint.maybe_save(lambda: TrainingState({}, {}))
        for _ in range(3000):
            now += 0.2
            checkpoint.maybe_save(lambda: TrainingState({}, {}))
            # after a slow first write, the next one waits longer
            assert len(writes) < 2 or checkpoint.save_seconds <= 0.02 * (now - 100)
        assert checkpoint.save_seconds == pytest.approx(len(writes) * write_seconds)
    assert writes[0] - 100 == pytest.approx(1.0, abs=0.2)
    assert len(writes) >= 0.8 * min(3000, 0.02 * 600 / write_seconds)


@pytest.mark.parametrize("disk_is_full", [True, False], ids=["full disk", "a file in the folder's place"])
def test_a_checkpoint_that_cannot_be_written_does_not_stop_a_training(folder, monkeypatch, disk_is_full):
    (unsaved,) = train_replicas(make_recipes(), *folder.pairs)
    monkeypatch.setattr(checkpointing, "MAX_OVERHEAD", float("inf"))
    if disk_is_full:
        monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    else:
        folder.path.write_text("a file")
    (result,) = folder.train(make_recipes())
    assert same_bits(unsaved, result)
    (warning,) = folder.warnings
    assert ("No space left" if disk_is_full else "an interruption would lose this training") in warning
    assert not disk_is_full or folder.suffixes() == []


def test_an_interrupted_batch_is_resumed_as_a_whole(folder):
    """As after a kill while the runs of a batch were logged: some of its recipes remain."""
    grid = make_recipes([0, 1], [0, 1, 2], epochs=10)
    todo = [recipe.model_copy(update={"dataset": "data"}) for recipe in grid[4:]]
    other = todo[0].model_copy(update={"alpha": 3.0})
    folder.write(grid, epoch=9)
    everything = {(recipe.alpha, recipe.seed) for recipe in grid}
    for recipes, resume, expected in [
        (todo, True, [everything]),
        (todo, False, [{(1, 1), (1, 2)}]),
        ([*todo, other], True, [everything, {(3, 1)}]),
        ([], True, []),
        ([other], True, [{(3, 1)}]),
    ]:
        batches = plan_with_checkpoints(recipes, folder.store(), resume=resume)
        assert {recipe.dataset for batch in batches for recipe in batch} <= {"data"}
        assert [{(recipe.alpha, recipe.seed) for recipe in batch} for batch in batches] == expected
    assert len(folder.store().interrupted()) == 1
