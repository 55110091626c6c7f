from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from tests.helpers.recipes import make_recipes
from tests.helpers.results import same_bits
from twinsqueeze.errors import InputError
from twinsqueeze.model.initialization import pca_layer
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import RETRIEVAL, SIMILARITY
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.training.teacher import make_teachers, teacher_recipe
from twinsqueeze.utils.compute import resolve_device


def test_results_are_in_the_order_of_the_recipes(small_train, small_dev):
    recipes = make_recipes([0.5, 0.0], [3, 1])
    for recipe, result in zip(recipes, train_replicas(recipes, small_train, small_dev), strict=True):
        assert result.recipe == recipe
        assert same_bits(result, *train_replicas([recipe], small_train, small_dev))


def test_teachers_are_trainings_at_full_dimension(small_train, small_dev):
    """With a recipe of their own, and without dev."""
    teachers = make_teachers(Recipe(teacher_alpha=0.5), [3, 5], small_train, torch.device("cpu"))
    recipe = teacher_recipe(SIMILARITY, 0.5, 24)
    recipes = [recipe.model_copy(update={"seed": seed, "device": "cpu"}) for seed in (3, 5)]
    for result, teacher in zip(train_replicas(recipes, small_train, small_dev), teachers, strict=True):
        assert all(map(torch.equal, result.compressor.layers[0], teacher))
        assert result.history.clean_loss[-1] < result.history.clean_loss[0]


def test_teachers_are_interpolated_with_a_rotation_of_the_centered_vectors(small_train):
    """As in WiSE-FT (arXiv 2109.01903): the mean of the weights before and after the training."""
    initial, half, trained = (
        make_teachers(Recipe(teacher_interpolation=share), [3], small_train, torch.device("cpu"))[0]
        for share in (0, 0.5, 1)
    )
    for start, middle, end in zip(initial, half, trained, strict=True):
        assert torch.allclose(middle, (start + end) / 2, atol=1e-6)
        assert not torch.allclose(start, end, atol=1e-3)
    rotation, bias, _ = pca_layer(small_train.embeddings, 24)
    scale = np.linalg.norm(initial[0]) / np.linalg.norm(rotation)
    assert np.allclose(initial[0], rotation * scale, atol=1e-5)
    assert np.allclose(initial[1], bias * scale, atol=1e-5)


@pytest.mark.parametrize("teacher", ["projection", "whitened"])
def test_teachers_are_partly_whitened(small_train, teacher):
    """Against scikit-learn's components and variances: a projection before its training, and the encoder."""
    recipe = Recipe(teacher=teacher, teacher_whitening=0.1, teacher_interpolation=0)
    ((weight, bias),) = make_teachers(recipe, [3], replace(small_train, task=RETRIEVAL), torch.device("cpu"))
    vectors = small_train.embeddings
    outputs = vectors @ weight.numpy().T + bias.numpy()
    pca = PCA(svd_solver="full").fit(vectors)
    whitened = pca.transform(vectors) * pca.explained_variance_**-0.1
    if teacher == "projection":
        whitened /= np.linalg.norm(whitened, axis=1).mean()
        np.testing.assert_allclose(np.abs(outputs), np.abs(whitened), atol=1e-4)  # a component has either sign
    else:
        whitened *= np.sqrt(pca.explained_variance_.sum() / whitened.var(0, ddof=1).sum())
        np.testing.assert_allclose(outputs, whitened @ pca.components_ + vectors.mean(0), atol=1e-5)


def test_scored_pairs_without_a_loss_on_scores_are_trained_as_their_sentences(small_train, small_dev):
    layer = {"architecture": "linear", "init": "pca", "dim": 8, "quantizer": "product", "codebook_lr": 1e-3}
    recipes = make_recipes(**layer, loss="none", neighbor_weight=1, num_candidates=16, epochs=2)
    (paired,) = train_replicas(recipes, small_train, small_dev)
    (alone,) = train_replicas(recipes, small_train.without_pairs(), small_dev)
    assert same_bits(paired, alone)
    assert paired.history.loss[-1] < paired.history.loss[0]


def test_every_epoch_is_reported_and_the_clean_loss_as_often_as_asked(small_train, small_dev):
    (often,) = train_replicas(make_recipes(epochs=7), small_train, small_dev)
    seen = []
    (seldom,) = train_replicas(make_recipes(epochs=7), small_train, small_dev, clean_loss_every=3, on_epoch=seen.append)
    assert [(metrics.epoch, metrics.epochs) for metrics in seen] == [(epoch, 7) for epoch in range(1, 8)]
    assert [metrics.loss[0] for metrics in seen] == seldom.history.loss.tolist()
    expected = np.full(7, np.nan)
    expected[[0, 2, 5, 6]] = often.history.clean_loss[[0, 2, 5, 6]]  # epochs 1, 3, 6 and the last
    assert np.isfinite(often.history.clean_loss).all()
    np.testing.assert_array_equal(seldom.history.clean_loss, expected)


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (make_recipes() + make_recipes(dim=4), "alpha and seed only"),
        (make_recipes([0.0, 0.75], [0, 1])[:3], "every alpha with every seed"),
    ],
)
def test_recipes_that_cannot_train_together_are_an_error(recipes, message, small_train, small_dev):
    with pytest.raises(ValueError, match=message):
        train_replicas(recipes, small_train, small_dev)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_an_error_without_a_cuda_device():
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(InputError, match="no CUDA device"):
        resolve_device("cuda")
