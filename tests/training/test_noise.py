import numpy as np
import pytest
import torch
from scipy import stats

from twinsqueeze.training.noise import add_noise, fill_uniform, noise_scale


def test_draws_are_uniform_from_minus_one_to_one():
    out = torch.zeros(2, 400, 384)
    fill_uniform([np.random.default_rng(3), np.random.default_rng(4)], out)
    np.testing.assert_array_equal(out[1].numpy(), 2 * np.random.default_rng(4).random((400, 384), np.float32) - 1)
    values = out.numpy().ravel()
    assert values.min() >= -1
    assert values.max() < 1
    assert stats.kstest(values[:40_000], stats.uniform(-1, 2).cdf).pvalue > 0.001
    norms = (out * noise_scale(0.75, 384)).norm(dim=-1)
    assert norms.square().mean().sqrt().item() == pytest.approx(0.75 / np.sqrt(3), rel=0.01)


def test_add_noise_matches_the_formula():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(2, 6, 384)).astype(np.float32)  # 2 seeds
    uniform = generator.uniform(-1, 1, size=(2, 6, 384)).astype(np.float32)
    alphas = [0.0, 0.75, 3.0]
    scales = torch.tensor([noise_scale(alpha, 384) for alpha in alphas])
    noisy = add_noise(torch.from_numpy(vectors), torch.from_numpy(uniform), scales).numpy()
    expected = [vectors[s] + uniform[s] * alpha / np.sqrt(384) for alpha in alphas for s in range(2)]
    np.testing.assert_allclose(noisy, expected, atol=1e-6)
    np.testing.assert_array_equal(noisy[:2], vectors)  # alpha 0 changes no bit
