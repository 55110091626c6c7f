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
from twinsqueeze.utils.similarity import pairwise_cosine


def test_labels_match_values_by_hand():
    scores = np.array([0.0, 1.25, 2.5, 5.0])
    np.testing.assert_allclose(scores_to_labels(scores, "linear"), [0, 0.25, 0.5, 1])
    # tanh(2) = 0.9640275800758169, tanh(1) = 0.7615941559557649
    by_hand = [(1 - 0.9640275800758169) / 2, (1 - 0.7615941559557649) / 2, 0.5, (1 + 0.9640275800758169) / 2]
    np.testing.assert_allclose(scores_to_labels(scores, "tanh"), by_hand)


def test_an_unknown_label_transform_is_an_error():
    with pytest.raises(ValueError, match="unknown label transform 'rank'"):
        scores_to_labels(np.zeros(1), "rank")


def test_mse_loss_and_gradient_match_pytorch():
    predicted, labels = torch.rand(3, 5, 7, requires_grad=True), torch.rand(5, 7)
    expected = torch.stack(
        [torch.stack([functional.mse_loss(predicted[i, j], labels[j]) for j in range(5)]) for i in range(3)]
    )
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


def test_pairwise_cosine_matches_pytorch():
    first, second = (functional.normalize(torch.randn(2, 8, 5), dim=-1) for _ in range(2))
    expected = functional.cosine_similarity(first, second, dim=-1)
    torch.testing.assert_close(pairwise_cosine(first, second), expected)


@pytest.mark.parametrize("dim", [2, 10, 32])
def test_pair_cosine_and_its_gradient_match_autograd(dim):
    outputs = torch.randn(3, 14, dim, requires_grad=True)
    unit = functional.normalize(outputs, dim=-1)
    expected = (unit[:, :7] * unit[:, 7:]).sum(-1)
    weights = torch.randn(3, 7)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), outputs)
    cosine = PairCosine(outputs.detach())
    torch.testing.assert_close(cosine.value, expected.detach())
    torch.testing.assert_close(cosine.backward(weights), gradient)


def test_the_cosine_of_a_zero_vector_is_zero():
    assert PairCosine(torch.zeros(1, 2, 4)).value.item() == 0


def test_gradient_of_the_normalization_matches_autograd():
    outputs = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 6, 5, dtype=torch.float64)
    (functional.normalize(outputs, dim=-1) * weights).sum().backward()
    torch.testing.assert_close(L2Normalize(outputs.detach()).backward(weights), outputs.grad)


def unit(*shape: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_log_neighbor_probs_match_scipy(temperature):
    vectors = unit(2, 6, 4)
    log_probs = log_neighbor_probs(vectors, temperature).numpy()
    for s in range(2):
        logits = (vectors[s] @ vectors[s].T).numpy() / temperature
        for i in range(6):
            others = [j for j in range(6) if j != i]
            np.testing.assert_allclose(log_probs[s, i, others], log_softmax(logits[i, others]), atol=1e-9)
            assert log_probs[s, i, i] == -np.inf


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_neighborhood_kl_loss_matches_pytorch_and_its_gradient_autograd(temperature):
    """Three alphas of two seeds: the teacher of replica r is that of seed r mod 2."""
    seeds, size = 2, 6
    vectors, compressed = unit(seeds, size, 8), unit(3 * seeds, size, 4).requires_grad_()
    loss, gradient = neighborhood_kl_loss(compressed.detach(), log_neighbor_probs(vectors, temperature), temperature)
    off_diagonal = ~torch.eye(size, dtype=torch.bool)
    expected = []
    for r in range(3 * seeds):
        teacher, student = (
            functional.log_softmax((v @ v.T / temperature)[off_diagonal].view(size, size - 1), -1)
            for v in (vectors[r % seeds], compressed[r])
        )
        expected.append(functional.kl_div(student, teacher, log_target=True, reduction="batchmean"))
    torch.testing.assert_close(loss, torch.stack(expected).detach())
    (expected_gradient,) = torch.autograd.grad(torch.stack(expected).sum(), compressed)
    torch.testing.assert_close(gradient, expected_gradient)


def test_neighborhood_kl_loss_of_equal_vectors_is_zero():
    vectors = unit(1, 5, 4)
    loss, gradient = neighborhood_kl_loss(vectors, log_neighbor_probs(vectors, 0.1), 0.1)
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


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
