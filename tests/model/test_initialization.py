import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from tests.helpers.pairs import random_pairs
from tests.helpers.vectors import unit_rows
from twinsqueeze.model.initialization import initial_layers, pca_layer
from twinsqueeze.recipe import Recipe

VECTORS = random_pairs(pairs=10, sentences=500, dimension=24, seed=1).embeddings


def teacher() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(24, 24, generator=torch.Generator().manual_seed(0)) / 5, torch.linspace(-0.3, 0.3, 24)


@pytest.mark.parametrize("dim", [6, 24])
@pytest.mark.parametrize("given", [None, teacher()], ids=["encoder", "teacher"])
def test_pca_layer_matches_scikit_learn(given, dim):
    """The directions are those of the teacher's unit vectors, if there is a teacher."""
    slope, offset = (part.numpy().astype(np.float64) for part in given or (torch.eye(24), torch.zeros(24)))
    outputs = VECTORS @ slope.T + offset
    weight, bias, variances = pca_layer(VECTORS, dim, given)
    pca = PCA(dim).fit(unit_rows(outputs))
    centered = (outputs - outputs.mean(0)) @ pca.components_.T
    np.testing.assert_allclose(np.abs(VECTORS @ weight.T + bias), np.abs(centered), atol=1e-6)
    np.testing.assert_allclose(variances, pca.explained_variance_, rtol=1e-5)


@pytest.mark.parametrize("quantizer", ["none", "sign", "product"])
def test_random_layers_are_orthogonal_and_centered_for_quantizers(quantizer):
    recipe = Recipe(architecture="linear", quantizer=quantizer, dim=8)
    ((weight, bias),) = initial_layers(recipe, VECTORS, np.random.default_rng(0))
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)
    center = np.zeros(24) if quantizer == "none" else VECTORS.mean(0)
    np.testing.assert_allclose(weight.numpy() @ center + bias.numpy(), 0, atol=1e-6)
    assert quantizer != "none" or not bias.any()


@pytest.mark.parametrize("quantizer", ["none", "sign", "product"])
@pytest.mark.parametrize("init", ["pca", "teacher"])
def test_initial_outputs_have_a_scale_and_keep_the_cosines(quantizer, init):
    recipe = Recipe(architecture="linear", init=init, quantizer=quantizer, dim=8)
    given = teacher() if init == "teacher" else None
    ((weight, bias),) = initial_layers(recipe, VECTORS, np.random.default_rng(0), given)
    assert weight.dtype == bias.dtype == torch.float32
    outputs = VECTORS @ weight.numpy().T + bias.numpy()
    if quantizer == "none":
        assert np.linalg.norm(outputs, axis=1).mean() == pytest.approx(1, abs=1e-5)
    else:
        assert np.sqrt(np.square(outputs).mean()) == pytest.approx(0.5, abs=1e-5)
    plain, offset, _ = pca_layer(VECTORS, 8, given)
    expected = VECTORS @ plain.T + offset
    np.testing.assert_allclose(cosine_similarity(outputs), cosine_similarity(expected), atol=1e-4)
    spread = outputs.var(0)
    if quantizer == "sign":  # a rotation of the seed spreads the variance
        assert spread.max() / spread.min() < 0.5 * expected.var(0).max() / expected.var(0).min()
        ((other, _),) = initial_layers(recipe, VECTORS, np.random.default_rng(1), given)
        assert not torch.allclose(weight, other, atol=1e-2)
    if quantizer == "product":
        parts = np.log(spread.reshape(-1, recipe.subvector_dim)).sum(1)
        assert np.ptp(parts) < np.ptp(np.log(np.sort(spread).reshape(-1, recipe.subvector_dim)).sum(1))
