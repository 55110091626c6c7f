import math

import numpy as np
import torch

from twinsqueeze.training.noise import add_noise, fill_uniform, noise_scale


def test_noise_is_drawn_per_seed_and_scaled_per_alpha():
    generator, alphas, seeds = np.random.default_rng(0), [0.0, 0.75, 3.0], (3, 4)
    vectors, uniform = generator.normal(size=(2, 6, 384)).astype(np.float32), torch.zeros(2, 6, 384)
    fill_uniform([np.random.default_rng(seed) for seed in seeds], uniform)
    draws = [2 * np.random.default_rng(seed).random((6, 384), np.float32) - 1 for seed in seeds]
    np.testing.assert_array_equal(uniform, draws)
    scales = torch.tensor([noise_scale(alpha, 384) for alpha in alphas])
    noisy = add_noise(torch.from_numpy(vectors), uniform, scales).numpy()
    expected = [vectors[s] + draws[s] * alpha / math.sqrt(384) for alpha in alphas for s in range(2)]
    np.testing.assert_allclose(noisy, expected, atol=1e-6)
    np.testing.assert_array_equal(noisy[:2], vectors)  # alpha 0 changes no bit
