"""NEFTune-style noise on sentence embeddings.

NEFTune (Jain et al. 2023, arXiv 2310.05914) adds U(-1, 1) * alpha / sqrt(L * d) to the L token embeddings of a text.
A sentence embedding is one vector: L = 1. Alphas of the paper therefore do not carry over: on a unit vector this noise
has the norm alpha / sqrt(3) (root mean square), so that at alpha = 1.73 it is as long as the sentence's vector.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch


def noise_scale(alpha: float, dimension: int) -> float:
    """Half the width of the uniform noise on each number: alpha / sqrt(dimension)."""
    return alpha / math.sqrt(dimension)


def fill_uniform(generators: Sequence[np.random.Generator], out: torch.Tensor) -> None:
    """Fills each part of `out` with a generator's independent draws from [-1, 1).

    NumPy draws, in place: its PCG64 takes two thirds of the time of torch's generator and its streams are stable across
    versions.

    Args:
        generators: S of them.
        out: (S, N, d) float32 on the CPU, of which every out[s] is contiguous.
    """
    for generator, part in zip(generators, out, strict=True):
        generator.random(dtype=np.float32, out=part.numpy())
    out.mul_(2).sub_(1)


def add_noise(vectors: torch.Tensor, uniform: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Noisy copies of each seed's vectors, one for each strength of noise.

    Args:
        vectors: (S, N, d), the sentences that each of S seeds trains on in this step.
        uniform: (S, N, d), draws from [-1, 1), a seed's own.
        scales: (A,), the `noise_scale` of each strength.

    Returns:
        (A * S, N, d), seeds running fastest: res[a * S + s] = vectors[s] + uniform[s] * scales[a].
    """
    noisy = torch.addcmul(vectors, uniform, scales.view(-1, 1, 1, 1))
    return noisy.view(-1, *vectors.shape[1:])
