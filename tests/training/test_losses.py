"""Losses and their gradients against PyTorch, SciPy and autograd."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from twinsqueeze.data.sentence_pairs import scores_to_labels
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
    by_hand = [(1 - 0.9640275800758169) / 2, (1 - 0.7615941559557649) / 2, 0.5, (1 + 0.9640275800758169) / 2]
    np.testing.assert_allclose(scores_to_labels(scores, "tanh"), by_hand)  # of tanh(2) and tanh(1)
    with pytest.raises(ValueError, match="unknown label transform 'rank'"):
        scores_to_labels(scores, "rank")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (mse_loss, lambda x, y: np.square(x - y).mean(-1)),
        (pearson_loss, lambda x, y: 1 - stats.pearsonr(x, y, axis=-1).statistic),
    ],
)
def test_losses_match_scipy_and_their_gradients_autograd(loss, expected):
    predicted = torch.rand(3, 5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(5, 7, dtype=torch.float64)
    value, gradient = loss(predicted.detach(), labels)
    arrays = predicted.detach().numpy(), labels.expand_as(predicted).numpy()
    np.testing.assert_allclose(value, expected(*arrays), atol=1e-12)
    torch.testing.assert_close(gradient, *torch.autograd.grad(loss(predicted, labels)[0].sum(), predicted))


@pytest.mark.parametrize("labels", [torch.ones(4), torch.rand(4)])
def test_pearson_loss_of_constants_is_finite(labels):
    loss, gradient = pearson_loss(torch.full((4,), 0.5), labels)
    assert loss == pytest.approx(1)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dim", [2, 10, 32])
def test_pair_cosine_and_its_gradient_match_pytorch(dim):
    outputs, weights = torch.randn(3, 14, dim, requires_grad=True), torch.randn(3, 7)
    expected = functional.cosine_similarity(*outputs.chunk(2, 1), dim=-1)
    cosine = PairCosine(outputs.detach())
    torch.testing.assert_close(cosine.value, expected.detach())
    torch.testing.assert_close(cosine.backward(weights), *torch.autograd.grad((expected * weights).sum(), outputs))
    assert PairCosine(torch.zeros(1, 2, dim)).value.item() == 0


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_neighborhood_kl_loss_and_its_gradient_match_pytorch(temperature):
    """Three alphas of two seeds: the teacher of replica r is that of seed r mod 2."""
    unit = functional.normalize(torch.randn(8, 6, 4, dtype=torch.float64), dim=-1)
    vectors, compressed = unit[:2], unit[2:].requires_grad_()
    off_diagonal = ~torch.eye(6, dtype=torch.bool)

    def log_probs(rows: torch.Tensor) -> torch.Tensor:
        return functional.log_softmax((rows @ rows.T / temperature)[off_diagonal].view(6, 5), -1)

    teacher = log_neighbor_probs(vectors, temperature)
    loss, gradient = neighborhood_kl_loss(compressed.detach(), teacher, temperature)
    targets = [log_probs(vectors[r % 2]) for r in range(6)]
    options = {"log_target": True, "reduction": "batchmean"}
    expected = [functional.kl_div(log_probs(compressed[r]), targets[r], **options) for r in range(6)]
    torch.testing.assert_close(loss, torch.stack(expected).detach())
    torch.testing.assert_close(gradient, *torch.autograd.grad(sum(expected), compressed))
    for none in neighborhood_kl_loss(vectors, teacher, temperature):  # of equal vectors
        assert none.abs().max() < 1e-12


@pytest.mark.parametrize("size", [1, 10, 40, 1000])
def test_sentences_are_sampled_with_their_neighbors_and_without_duplicates(monkeypatch, size):
    monkeypatch.setattr("twinsqueeze.training.losses.SAMPLE_SIZE", size)
    neighbors = np.array([[(i + 1) % 40, (i + 2) % 40, (i + 17) % 40] for i in range(40)])
    for seed in range(20):
        expected = []
        for first in np.random.default_rng(seed).permutation(40):
            expected += [row for row in (first, *neighbors[first]) if row not in expected]
        assert sample_with_neighbors(np.random.default_rng(seed), neighbors).tolist() == expected[:size]
