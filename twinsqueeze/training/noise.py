"""NEFTune-style noise on sentence embeddings.

NEFTune (Jain et al. 2023, arXiv 2310.05914) adds U(-1, 1) * alpha / sqrt(L * d) to the L token embeddings of a text. A
sentence embedding is one vector: L = 1. The paper's values of alpha do not carry over: the noise has the norm
alpha / sqrt(3) (root mean square), so at alpha = 1.73 it is as long as the unit vector.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch


def noise_scale(alpha: float, dimension: int) -> float:
    """Returns half the width of the uniform noise per dimension: alpha / sqrt(dimension)."""
    return alpha / math.sqrt(dimension)


def fill_uniform(generators: Sequence[np.random.Generator], out: torch.Tensor) -> None:
    """Fills `out[s]`, contiguous float32 on the CPU, with draws of generator s from [-1, 1).

    NumPy's PCG64 takes two thirds of the time of PyTorch's generator, and its streams are stable across versions.
    """
    for generator, draws in zip(generators, out, strict=True):
        generator.random(dtype=np.float32, out=draws.numpy())
    out.mul_(2).sub_(1)


def add_noise(vectors: torch.Tensor, uniform: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Returns noisy copies of each seed's vectors, one per strength of noise, seeds varying fastest.

    With (S, N, d) vectors and draws from [-1, 1), and the `noise_scale` of A strengths, (A * S, N, d):
    result[a * S + s] = vectors[s] + uniform[s] * scales[a].
    """
    noisy = torch.addcmul(vectors, uniform, scales.view(-1, 1, 1, 1))
    return noisy.view(-1, *vectors.shape[1:])
