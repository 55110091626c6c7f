import numpy as np
import torch
from scipy.special import log_softmax
from torch.nn import functional

from twinsqueeze.neighbourhood import distributions, divergence


def unit(*shape: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_distributions_by_scipy():
    vectors = unit(2, 6, 4)
    found = distributions(vectors).numpy()
    for s in range(2):
        logits = (vectors[s] @ vectors[s].T).numpy() / 0.05
        for i in range(6):
            others = [j for j in range(6) if j != i]
            np.testing.assert_allclose(found[s, i, others], log_softmax(logits[i, others]), atol=1e-9)
            assert found[s, i, i] == -np.inf


def test_divergence_is_pytorchs_for_each_replica_and_its_gradient_autograds():
    """Three alphas of two seeds: replica r is held to the vectors of seed r mod 2."""
    seeds, size = 2, 6
    vectors, compressed = unit(seeds, size, 8), unit(3 * seeds, size, 4).requires_grad_()
    loss, gradient = divergence(compressed.detach(), distributions(vectors))
    off = ~torch.eye(size, dtype=torch.bool)
    expected = []
    for r in range(3 * seeds):
        wanted, found = (
            functional.log_softmax((v @ v.T / 0.05)[off].view(size, size - 1), -1)
            for v in (vectors[r % seeds], compressed[r])
        )
        expected.append(functional.kl_div(found, wanted, log_target=True, reduction="batchmean"))
    torch.testing.assert_close(loss, torch.stack(expected).detach())
    (expected_gradient,) = torch.autograd.grad(torch.stack(expected).sum(), compressed)
    torch.testing.assert_close(gradient, expected_gradient)


def test_divergence_of_equals_is_nothing():
    vectors = unit(1, 5, 4)
    loss, gradient = divergence(vectors, distributions(vectors))
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12
