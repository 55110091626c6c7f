from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from tests.helpers.pairs import random_pairs
from tests.helpers.recipes import LINEAR, PRODUCT, RECIPES, SIGN, TEACHER, make_pairs, make_recipes
from tests.helpers.reference_training import ReferenceTraining
from tests.helpers.results import same_bits
from twinsqueeze.evaluation.evaluator import Evaluator, pair_losses
from twinsqueeze.training import setup
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.training.setup import TrainingSetup, initial_model
from twinsqueeze.training.teacher import TEACHER_RECIPES
from twinsqueeze.utils.compute import BLAS_LOCK, map_threaded

CPU = torch.device("cpu")
NEIGHBORS = {"neighbor_weight": 0.3, "neighbor_temperature": 0.1}
LINEAR_SHORT = LINEAR | {"label_transform": "linear", "lr": 1e-3, "weight_decay": 0.05}
TEACHER_SHORT = TEACHER | LINEAR_SHORT | NEIGHBORS


@pytest.mark.parametrize(
    ("place", "fields", "unpaired"),
    [
        (0, {}, 0),
        (2, {}, 0),
        (1, {}, 0),
        (3, {}, 0),
        (3, {"batch_size": 10**6, "dim": 10}, 0),  # larger than the data
        (3, LINEAR_SHORT, 0),
        (3, LINEAR_SHORT | NEIGHBORS, 0),
        (3, LINEAR_SHORT | NEIGHBORS | {"num_neighbors": 2}, 0),
        (3, LINEAR_SHORT | NEIGHBORS | {"num_neighbors": 2}, 90),
        (3, LINEAR_SHORT | SIGN, 0),
        (3, LINEAR_SHORT | SIGN | NEIGHBORS, 90),
        (3, TEACHER_SHORT | PRODUCT, 0),
        (3, TEACHER_SHORT | PRODUCT | {"subvector_dim": 2, "num_neighbors": 3}, 0),
    ],
)
def test_a_training_matches_pytorchs_autograd(place, fields, unpaired, small_train, small_dev, monkeypatch):
    """Over 15 steps. Later, differences by rounding grow. `place` is that of the recipe in its grid."""
    monkeypatch.setattr("twinsqueeze.training.losses.SAMPLE_SIZE", 30)
    if unpaired:
        sentences = random_pairs(pairs=2, sentences=unpaired, dimension=24, seed=9).embeddings
        small_train = replace(small_train, unpaired=sentences)
    grid = make_recipes([0.0, 0.75], [0, 7], **fields)
    recipe = grid[place]
    reference = ReferenceTraining(recipe, small_train)
    losses = reference.train_all_epochs()
    result = train_replicas(grid, small_train, small_dev)[place]
    is_mlp = recipe.architecture == "mlp"

    np.testing.assert_allclose(result.history.loss, losses, rtol=1e-5 if is_mlp else 1e-4)
    for layer, expected in zip(result.compressor.layers, reference.model.layers(), strict=True):
        torch.testing.assert_close(layer, expected, rtol=0, atol=2e-6 if is_mlp else 2e-5)

    def pair_cosines(compress, pairs) -> np.ndarray:
        vectors = compress(torch.from_numpy(pairs.embeddings)).detach()
        return torch.cosine_similarity(vectors[pairs.first], vectors[pairs.second]).numpy()

    # The clean loss and the scores are those of the last weights without noise.
    cosines = pair_cosines(result.compressor.compress_as_stored, small_train)
    errors = np.square(cosines - reference.labels)
    clean_loss = errors.mean() if recipe.loss == "mse" else 1 - stats.pearsonr(cosines, reference.labels)[0]
    assert result.history.clean_loss[-1] == pytest.approx(clean_loss, abs=1e-5)
    np.testing.assert_allclose(pair_losses(result.compressor, small_train, recipe.label_transform), errors, atol=1e-6)
    spearman = stats.spearmanr(pair_cosines(reference.compress, small_dev), small_dev.scores)[0]
    assert result.history.dev["spearman"][-1] == pytest.approx(spearman, abs=2e-3)
    evaluation = Evaluator(small_dev, recipe.label_transform, CPU)(result.compressor)
    for metric, curve in result.history.dev.items():
        assert evaluation.scores[metric] == curve[-1]


@pytest.mark.parametrize(
    ("dimension", "name"),
    [
        *((64, name) for name in ("mlp", "linear", "product-neighbors", "search", "infonce-sign")),
        *(pytest.param(384, name, marks=pytest.mark.slow) for name in RECIPES),
    ],
)
def test_a_replica_has_the_same_bits_alone_in_every_grid_and_in_parallel_threads(dimension, name, monkeypatch):
    """A thread has one core if several train, and else all of them. Another makes the inputs of a single replica."""
    monkeypatch.setattr("twinsqueeze.training.trainer.ROWS_AT_ONCE", 130)  # two steps of 32 pairs
    for recipe in TEACHER_RECIPES.values():
        monkeypatch.setitem(recipe, "epochs", 2)
    fields, pairs = RECIPES[name] | {"epochs": 2}, make_pairs(dimension, **RECIPES[name])

    def train(recipes):
        return train_replicas(recipes, *pairs)

    (alone,) = train(make_recipes(**fields))
    small = [([0.75], [0, 3]), ([0.0, 0.75], [3, 4]), ([0.1, 0.75, 3.0], [1, 3, 8])]
    grids = [make_recipes(*grid, **fields) for grid in small]
    trained = [results for _, results in map_threaded(iter(grids), train, 2)]
    trained += map(train, [*grids, make_recipes([i / 4 for i in range(12)], [3, 4], **fields)])
    for results in trained:
        (same,) = [each for each in results if each.recipe == alone.recipe]
        assert same_bits(alone, same), len(results)


def test_initial_weights_and_codebooks_hold_the_lock_of_the_blas(monkeypatch):
    """K-means has the process's BLAS use one thread, which changes the last bits of other threads' results."""
    (recipe,) = make_recipes(init="pca", **LINEAR | PRODUCT)
    called = []

    def check_lock(function, *arguments):
        assert not other_thread.submit(BLAS_LOCK.acquire, blocking=False).result()
        called.append(function.__name__)
        return function(*arguments)

    for function in (setup.initial_layers, setup.fit_codebooks):
        monkeypatch.setattr(setup, function.__name__, partial(check_lock, function))
    with ThreadPoolExecutor(1) as other_thread:
        initial_model(TrainingSetup(recipe, [0.75], [3], make_pairs(24)[0], CPU))
    assert called == ["initial_layers", "fit_codebooks"]
