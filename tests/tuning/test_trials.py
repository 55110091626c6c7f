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
from twinsqueeze.training import grid_trainer
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.tuning import trials
from twinsqueeze.tuning.space import load_space
from twinsqueeze.tuning.study import StudyOptions, open_study
from twinsqueeze.tuning.trials import TrialTrainer, run_trials, trials_per_round

SMALL = {
    "dim": 8, "subvector_dim": 4, "codes_per_subvector": 1, "epochs": 4, "batch_size": 64,
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

    def run(num_trials=8, seeds=(0,), grid=True, **fields):
        content = {"recipe": "vectors", **SMALL, "search": fields}
        (tmp_path / "space.yaml").write_text(json.dumps(content))
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


@pytest.fixture
def trained(monkeypatch) -> list[list[Recipe]]:
    """The recipes of the batches that are trained."""
    batches_of_recipes = []

    def train_batches(batches, **options):
        batches_of_recipes.extend(batch.recipes for batch in batches)
        return grid_trainer.train_batches(batches, **options)

    monkeypatch.setattr(trials, "train_batches", train_batches)
    return batches_of_recipes


def test_trials_train_in_batches_and_have_the_scores_of_each_recipe_alone(search, data, trained):
    alphas = [0, 0.5, 1, 1.5]
    study = search(alpha=alphas, seeds=(3, 4))
    assert [{(recipe.alpha, recipe.seed) for recipe in batch} for batch in trained] == [
        {(alpha, seed) for alpha in some for seed in (3, 4)} for some in ((0, 0.5), (1, 1.5))
    ]
    expected = []
    for alpha in alphas:
        recipes = [Recipe.preset("vectors", **SMALL, alpha=alpha, seed=seed) for seed in (3, 4)]
        results = [experiment.train(recipe, data) for recipe in recipes]
        expected.append(np.mean([result.history.dev["neighbor_recall"][-1] for result in results]))
    assert [trial.value for trial in study.trials] == pytest.approx(expected, abs=1e-12)
    assert [trial.scores["neighbor_recall"] for trial in study.trials] == pytest.approx(expected, abs=1e-12)
    assert study.best.params == {"alpha": alphas[int(np.argmax(expected))]}


def test_trials_that_are_far_behind_are_pruned(search):
    """Six trainings that learn, and two that begin with random weights and hardly move."""
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


def test_a_recipe_is_trained_once(search, trained):
    """Proposals from two values must repeat."""
    study = search(7, grid=False, lr=[1e-3, 4e-3])
    assert sorted(recipe.lr for batch in trained for recipe in batch) == [1e-3, 4e-3]
    assert len(study.trials) == 7
    assert len({(trial.params["lr"], trial.value) for trial in study.trials}) == 2
