import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax
from torch.nn import functional

from twinsqueeze.training.losses import log_neighbor_probs, neighborhood_kl_loss, sample_with_neighbors


def unit(*shape: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_distributions_by_scipy(temperature):
    vectors = unit(2, 6, 4)
    found = log_neighbor_probs(vectors, temperature).numpy()
    for s in range(2):
        logits = (vectors[s] @ vectors[s].T).numpy() / temperature
        for i in range(6):
            others = [j for j in range(6) if j != i]
            np.testing.assert_allclose(found[s, i, others], log_softmax(logits[i, others]), atol=1e-9)
            assert found[s, i, i] == -np.inf


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_divergence_is_pytorchs_for_each_replica_and_its_gradient_autograds(temperature):
    """Three alphas of two seeds: replica r is held to the vectors of seed r mod 2."""
    seeds, size = 2, 6
    vectors, compressed = unit(seeds, size, 8), unit(3 * seeds, size, 4).requires_grad_()
    loss, gradient = neighborhood_kl_loss(compressed.detach(), log_neighbor_probs(vectors, temperature), temperature)
    off = ~torch.eye(size, dtype=torch.bool)
    expected = []
    for r in range(3 * seeds):
        wanted, found = (
            functional.log_softmax((v @ v.T / temperature)[off].view(size, size - 1), -1)
            for v in (vectors[r % seeds], compressed[r])
        )
        expected.append(functional.kl_div(found, wanted, log_target=True, reduction="batchmean"))
    torch.testing.assert_close(loss, torch.stack(expected).detach())
    (expected_gradient,) = torch.autograd.grad(torch.stack(expected).sum(), compressed)
    torch.testing.assert_close(gradient, expected_gradient)


def test_divergence_of_equals_is_nothing():
    vectors = unit(1, 5, 4)
    loss, gradient = neighborhood_kl_loss(vectors, log_neighbor_probs(vectors, 0.1), 0.1)
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("drawn", [1, 10, 40, 1000])
def test_sentences_are_drawn_with_their_nearest_and_none_twice(monkeypatch, drawn):
    monkeypatch.setattr("twinsqueeze.training.losses.SAMPLE_SIZE", drawn)
    nearest = np.array([[(i + 1) % 40, (i + 2) % 40, (i + 17) % 40] for i in range(40)])
    counts = np.zeros(40)
    for seed in range(400):
        rows = sample_with_neighbors(np.random.default_rng(seed), nearest)
        expected = []
        for first in np.random.default_rng(seed).permutation(40):
            expected += [row for row in (first, *nearest[first]) if row not in expected]
        assert rows.tolist() == expected[:drawn]
        counts[rows] += 1
    assert stats.chisquare(counts).pvalue > 1e-3
