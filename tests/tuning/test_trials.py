"""Trials that are trained, on vectors."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from tests.helpers.pairs import random_queries
from twinsqueeze import experiment, experiment_data
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import NEIGHBORS
from twinsqueeze.training import grid_trainer, parallel
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.tuning import trials
from twinsqueeze.tuning.space import load_space
from twinsqueeze.tuning.study import StudyOptions, open_study
from twinsqueeze.tuning.trials import TrialTrainer, run_trials, trials_per_round

SMALL = {
    "recipe": "vectors", "dim": 8, "subvector_dim": 4, "codes_per_subvector": 1, "epochs": 4, "batch_size": 64,
    "num_candidates": 40, "encoder": "none", "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    np.save(path, random_queries(500, 24, seed=0).embeddings)
    return experiment_data.prepare_data(load_dataset(str(path)), None, "cpu")


@pytest.fixture
def search(tmp_path, monkeypatch, data):
    """Searches some fields to the end; returns the results."""
    monkeypatch.setenv("TWINSQUEEZE_STATE", str(tmp_path))

    def run(num_trials=8, seeds=(0,), grid=True, fixed=(), **fields):
        (tmp_path / "space.yaml").write_text(json.dumps(SMALL | dict(fixed) | {"search": fields}))
        space = load_space(str(tmp_path / "space.yaml"), NEIGHBORS)

        @contextmanager
        def open_checkpoint(batch):
            yield TrainingCheckpoint(None, batch, None, print)

        combinations = space.combinations(num_trials) if grid else None
        options = StudyOptions(0, trials_per_round(space, data, len(seeds)), combinations)
        with open_study("study", space, options, resume=True) as study:
            list(run_trials(study, num_trials, TrialTrainer(data, seeds, 10, open_checkpoint)))
            return study

    return run


def without_preset(fields):
    return {name: value for name, value in fields.items() if name != "recipe"}


def exhaustive(data, seeds=(0,), fixed=(), **fields) -> list[float]:
    """The dev scores of every recipe, mean over seeds, each trained alone."""
    values = []
    for combination in zip(*fields.values(), strict=True):
        values_of = SMALL | dict(fixed) | dict(zip(fields, combination, strict=True))
        recipes = [Recipe.preset(values_of["recipe"], **without_preset(values_of), seed=seed) for seed in seeds]
        results = [experiment.train(recipe, data) for recipe in recipes]
        values.append(np.mean([result.history.dev["neighbor_recall"][-1] for result in results]))
    return values


def test_the_best_of_one_field_is_that_of_an_exhaustive_grid(search, data):
    lrs, fixed = [1e-6, 1e-3, 1e-2, 3.0], {"init": "random"}
    study = search(fixed=fixed, lr=lrs)
    expected = exhaustive(data, fixed=fixed, lr=lrs)
    assert [trial.value for trial in study.trials] == pytest.approx(expected, abs=1e-12)
    assert study.best.params == {"lr": lrs[int(np.argmax(expected))]}
    assert 0 < np.argmax(expected) < 3  # it is no end of the range


def test_trials_that_differ_in_alpha_train_as_batches_of_all_seeds(search, data, monkeypatch):
    trained = []
    monkeypatch.setattr(
        trials, "train_batches", lambda batches, **options: trained.extend(batches) or train(batches, **options)
    )
    train = grid_trainer.train_batches
    alphas = [0, 0.5, 1, 1.5]
    study = search(alpha=alphas, seeds=(3, 4))
    assert [{(recipe.alpha, recipe.seed) for recipe in batch.recipes} for batch in trained] == [
        {(alpha, seed) for alpha in some for seed in (3, 4)} for some in ((0, 0.5), (1, 1.5))
    ]
    expected = exhaustive(data, (3, 4), alpha=alphas)
    assert [trial.value for trial in study.trials] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("min_pairs", [10**12, 0], ids=["threads", "processes"])
def test_trials_that_are_far_behind_are_pruned(search, forked_workers, monkeypatch, min_pairs):
    """Six trainings that learn, and two that begin with random weights and hardly move."""
    monkeypatch.setattr(parallel, "MIN_PAIRS_FOR_POOL", min_pairs)
    good = [{"init": "pca", "lr": lr} for lr in (1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3)]
    bad = [{"init": "random", "lr": lr} for lr in (1e-6, 2e-6)]
    *others, first, second = search(start=good + bad).trials
    assert [trial.state for trial in others[:5]] == ["complete"] * 5
    for last in (first, second):
        assert (last.state, len(last.history)) == ("pruned", 1)
        assert last.curve == {25: last.value}
        assert not last.scores


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"neighbor_temperature": [0.05, 1e-40]}, "the training diverged: the loss of epoch"),
        ({"subvector_dim": [4, 8], "dim": [8, 12]}, "quantizer must be none or sign, or product for"),
    ],
)
def test_recipes_that_cannot_be_trained_are_failed_trials(search, fields, reason):
    *others, last = search(**fields).trials
    assert {trial.state for trial in others} == {"complete"}
    assert last.state == "failed"
    assert last.reason.startswith(reason)


def test_a_recipe_is_trained_once(search, monkeypatch):
    """Proposals from two values must repeat."""
    recipes = []
    train = grid_trainer.train_batches

    def note(batches, **options):
        recipes.extend(recipe.lr for batch in batches for recipe in batch.recipes)
        return train(batches, **options)

    monkeypatch.setattr(trials, "train_batches", note)
    study = search(7, grid=False, lr=[1e-3, 4e-3])
    assert sorted(recipes) == [1e-3, 4e-3]
    assert len(study.trials) == 7
    assert len({(trial.params["lr"], trial.value) for trial in study.trials}) == 2


def test_seeds_are_averaged_and_stay_together(search, data):
    study = search(lr=[4e-3], seeds=(0, 1, 2))
    assert study.trials[0].value == pytest.approx(exhaustive(data, (0, 1, 2), lr=[4e-3])[0], abs=1e-12)
    assert study.trials[0].scores["neighbor_recall"] == pytest.approx(study.trials[0].value, abs=1e-12)
