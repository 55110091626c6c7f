"""Losses and their gradients against PyTorch, SciPy and autograd."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax
from torch.nn import functional

from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.model.quantizers import L2Normalize
from twinsqueeze.training.losses import (
    PairCosine,
    log_neighbor_probs,
    mse_loss,
    neighborhood_kl_loss,
    pearson_loss,
    sample_with_neighbors,
)


def test_labels_match_values_by_hand():
    scores = np.array([0.0, 1.25, 2.5, 5.0])
    np.testing.assert_allclose(scores_to_labels(scores, "linear"), [0, 0.25, 0.5, 1])
    # tanh(2) = 0.9640275800758169, tanh(1) = 0.7615941559557649
    by_hand = [(1 - 0.9640275800758169) / 2, (1 - 0.7615941559557649) / 2, 0.5, (1 + 0.9640275800758169) / 2]
    np.testing.assert_allclose(scores_to_labels(scores, "tanh"), by_hand)
    with pytest.raises(ValueError, match="unknown label transform 'rank'"):
        scores_to_labels(scores, "rank")


def test_mse_loss_and_gradient_match_pytorch():
    predicted, labels = torch.rand(3, 5, 7, requires_grad=True), torch.rand(5, 7)
    expected = functional.mse_loss(predicted, labels.expand(3, 5, 7), reduction="none").mean(-1)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), predicted)
    loss, gradient = mse_loss(predicted.detach(), labels)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, expected_gradient)


def test_pearson_loss_matches_scipy_and_its_gradient_autograd():
    predicted, labels = torch.rand(3, 5, 7, dtype=torch.float64, requires_grad=True), torch.rand(5, 7).double()
    loss, gradient = pearson_loss(predicted.detach(), labels)
    for i in range(3):
        for j in range(5):
            expected = stats.pearsonr(predicted[i, j].detach().numpy(), labels[j].numpy()).statistic
            assert loss[i, j].item() == pytest.approx(1 - expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: pearson_loss(x, labels)[0], predicted)
    (expected_gradient,) = torch.autograd.grad(pearson_loss(predicted, labels)[0].sum(), predicted)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("labels", [torch.ones(4), torch.rand(4)])
def test_pearson_loss_of_constants_is_finite(labels):
    loss, gradient = pearson_loss(torch.full((4,), 0.5), labels)
    assert loss == pytest.approx(1)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dim", [2, 10, 32])
def test_pair_cosine_matches_pytorch_and_its_gradient_autograd(dim):
    outputs = torch.randn(3, 14, dim, requires_grad=True)
    expected = functional.cosine_similarity(*outputs.chunk(2, 1), dim=-1)
    weights = torch.randn(3, 7)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), outputs)
    cosine = PairCosine(outputs.detach())
    torch.testing.assert_close(cosine.value, expected.detach())
    torch.testing.assert_close(cosine.backward(weights), gradient)
    assert PairCosine(torch.zeros(1, 2, dim)).value.item() == 0


def test_gradient_of_the_normalization_matches_autograd():
    outputs, weights = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    (functional.normalize(outputs.requires_grad_(), dim=-1) * weights).sum().backward()
    torch.testing.assert_close(L2Normalize(outputs.detach()).backward(weights), outputs.grad)


def unit(*shape: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_neighborhood_kl_loss_matches_scipy_and_its_gradient_autograd(temperature):
    """Three alphas of two seeds: the teacher of replica r is that of seed r mod 2."""
    seeds, size = 2, 6
    vectors, compressed = unit(seeds, size, 8), unit(3 * seeds, size, 4).requires_grad_()
    off_diagonal = ~torch.eye(size, dtype=torch.bool)

    def log_probs(rows: torch.Tensor) -> torch.Tensor:
        return functional.log_softmax((rows @ rows.T / temperature)[off_diagonal].view(size, size - 1), -1)

    teacher = log_neighbor_probs(vectors, temperature)
    assert (teacher.diagonal(dim1=1, dim2=2) == -torch.inf).all()
    for s in range(seeds):
        logits = (vectors[s] @ vectors[s].T).numpy()[off_diagonal].reshape(size, -1) / temperature
        np.testing.assert_allclose(teacher[s][off_diagonal].view(size, -1), log_softmax(logits, 1), atol=1e-9)
    loss, gradient = neighborhood_kl_loss(compressed.detach(), teacher, temperature)
    expected = torch.stack(
        [
            functional.kl_div(
                log_probs(compressed[r]), log_probs(vectors[r % seeds]), log_target=True, reduction="batchmean"
            )
            for r in range(3 * seeds)
        ]
    )
    torch.testing.assert_close(loss, expected.detach())
    (expected_gradient,) = torch.autograd.grad(expected.sum(), compressed)
    torch.testing.assert_close(gradient, expected_gradient)
    for none in neighborhood_kl_loss(vectors, teacher, temperature):  # of equal vectors
        assert none.abs().max() < 1e-12


@pytest.mark.parametrize("size", [1, 10, 40, 1000])
def test_sentences_are_sampled_with_their_neighbors_and_without_duplicates(monkeypatch, size):
    monkeypatch.setattr("twinsqueeze.training.losses.SAMPLE_SIZE", size)
    neighbors = np.array([[(i + 1) % 40, (i + 2) % 40, (i + 17) % 40] for i in range(40)])
    counts = np.zeros(40)
    for seed in range(400):
        rows = sample_with_neighbors(np.random.default_rng(seed), neighbors)
        expected = []
        for first in np.random.default_rng(seed).permutation(40):
            expected += [row for row in (first, *neighbors[first]) if row not in expected]
        assert rows.tolist() == expected[:size]
        counts[rows] += 1
    assert stats.chisquare(counts).pvalue > 1e-3
