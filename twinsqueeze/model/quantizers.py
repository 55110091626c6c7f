"""Quantised vectors in training: what is compared is what will be stored, and the gradient goes straight through.

The derivative of a quantiser is zero almost everywhere. The straight-through estimator (Bengio et al. 2013, arXiv
1308.3432) takes that of the identity instead.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional

from twinsqueeze.types import FloatArray

Backward = Callable[[torch.Tensor], torch.Tensor]
# Vectors are divided by no less, as by `torch.nn.functional.normalize`.
EPSILON = 1e-12
# Of a part of a product code, which becomes one of them, a byte.
CENTROIDS = 256
KMEANS_ITERATIONS = 25
# Of the largest variance, what counts as none.
LEAST_VARIANCE = 1e-6
# Vectors that are compared with all centroids at a time, so that memory stays bounded.
BLOCK = 1024


class Quantizer(Protocol):
    """Of R compressors' vectors.

    Attributes:
        precision: Its name as in a recipe.
    """

    precision: str

    def dequantized(self, vectors: torch.Tensor) -> torch.Tensor:
        """What is left of some vectors, whatever their lengths: (R, N, dim or more) float32, and as much."""

    def straight_through(self, outputs: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        """The levels of a layer's outputs, and what turns a gradient of the levels into one of the outputs.

        Args:
            outputs: (R, N, dim or more); numbers behind the first `dim` are 0 and so are their levels.

        Returns:
            The levels, of that shape, and a function that may change its argument.
        """

    def replica(self, index: int) -> "Quantizer":
        """That of one of the compressors."""


class SignQuantizer:
    """-1, 0 or 1; the gradient passes where an output is not beyond them."""

    precision = "binary"

    def dequantized(self, vectors: torch.Tensor) -> torch.Tensor:
        """As in `Quantizer`."""
        return vectors.sign()

    def straight_through(self, outputs: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        """As in `Quantizer`."""
        return outputs.sign(), lambda gradient: gradient.mul_(outputs.abs() <= 1)

    def replica(self, index: int) -> "SignQuantizer":
        """As in `Quantizer`."""
        del index
        return self


class ProductQuantizer:
    """A product quantiser (Jégou et al. 2011) of vectors of length 1: each part becomes the nearest of its centroids.

    Args:
        codebooks: (R, M, K, P) float32, the K centroids of each of the M parts, of P numbers each.
    """

    precision = "product"

    def __init__(self, codebooks: torch.Tensor) -> None:
        self.codebooks = codebooks
        # |x - c|^2 is least where x . c - |c|^2 / 2 is greatest: with a 1 behind x, one product, (R, M, P + 1, K).
        self._factors = torch.cat([codebooks, codebooks.square().sum(-1, keepdim=True) / -2], -1).mT.contiguous()

    @property
    def part(self) -> int:
        """Numbers of a part."""
        return int(self.codebooks.shape[3])

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return int(self.codebooks.shape[1]) * self.part

    def codes(self, unit: torch.Tensor) -> torch.Tensor:
        """The nearest centroid of each part, (R, N, M) int64, of (R, N, dim) vectors of length 1."""
        found = []
        for vectors, factors in zip(unit, self._factors, strict=True):
            parts = functional.pad(vectors.view(len(vectors), -1, self.part).transpose(0, 1), (0, 1), value=1.0)
            blocks = [_argmax(torch.bmm(part, factors)) for part in parts.split(BLOCK, 1)]
            found.append(torch.cat(blocks, 1).T)
        return torch.stack(found)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The centroids, (R, N, dim), of (R, N, M) codes."""
        parts = codes.transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, self.part)  # (R, M, N, P)
        return self.codebooks.gather(2, parts).transpose(1, 2).flatten(2)

    def dequantized(self, vectors: torch.Tensor) -> torch.Tensor:
        """As in `Quantizer`."""
        return self._nearest(functional.normalize(vectors, dim=-1))

    def straight_through(self, outputs: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        """As in `Quantizer`: with u = x / |x|, dL/dx = (g - (g . u) u) / |x|."""
        inverse_length = torch.linalg.vector_norm(outputs, dim=-1, keepdim=True).clamp_min_(EPSILON).reciprocal_()
        unit = outputs * inverse_length

        def backward(gradient: torch.Tensor) -> torch.Tensor:
            along = (gradient * unit).sum(-1, keepdim=True)
            return gradient.addcmul_(unit, along, value=-1).mul_(inverse_length)

        return self._nearest(unit), backward

    def replica(self, index: int) -> "ProductQuantizer":
        """As in `Quantizer`."""
        return ProductQuantizer(self.codebooks[index : index + 1])

    def _nearest(self, unit: torch.Tensor) -> torch.Tensor:
        filled = unit.shape[-1] - self.dim
        return functional.pad(self.decode(self.codes(unit[..., : self.dim])), (0, filled))


def _argmax(numbers: torch.Tensor) -> torch.Tensor:
    """Where the last axis is greatest. NumPy takes a sixth of PyTorch's time for it."""
    return torch.from_numpy(numbers.numpy().argmax(-1)) if numbers.device.type == "cpu" else numbers.argmax(-1)


def fit_codebooks(vectors: FloatArray, part: int, seed: int) -> torch.Tensor:
    """The centroids of a product quantiser, by k-means of each part.

    Args:
        vectors: (N, dim) float32 of length 1.
        part: Numbers of a part, by which dim can be divided.
        seed: Of the vectors that k-means begins with.

    Returns:
        (dim / part, K, part) float32, where K is `CENTROIDS`, or N if that is less.
    """
    # scikit-learn takes a second to import, which a training in floats need not pay
    from sklearn.cluster import KMeans  # noqa: PLC0415 - as above
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - as above

    parts = vectors.reshape(len(vectors), -1, part).transpose(1, 0, 2)
    kmeans = KMeans(
        min(CENTROIDS, len(vectors)), init="random", n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed
    )
    # On one thread: several add up their sums in whatever order they come, and the last bits are others every time.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer distinct vectors than centroids
        fitted = [kmeans.fit(np.ascontiguousarray(numbers)).cluster_centers_ for numbers in parts]
    return torch.from_numpy(np.stack(fitted).astype(np.float32))


def balance_subspaces(variances: Sequence[float], part: int) -> list[int]:
    """An order of numbers of some variances in which the parts of a product code have about equal tasks.

    Ge et al. 2013 (Optimized product quantization, section 3.2.1): each, from the largest on, goes to the part that is
    not full and has the least product of variances yet.

    Args:
        variances: Of a multiple of `part` numbers. Those that are no more than rounding errors of the largest one
            count as `LEAST_VARIANCE` of it.
        part: Numbers of a part.

    Returns:
        Indices; the first `part` are the first part.
    """
    parts: list[list[int]] = [[] for _ in range(len(variances) // part)]
    # An encoder's vectors may lie in fewer directions than they have numbers: MiniLM's in 381 of 384.
    floored = np.maximum(variances, LEAST_VARIANCE * np.max(variances))
    # Relative to the least, so that a part with more numbers never has a smaller product.
    logarithms = np.log(floored / floored.min()) + 1e-9
    for index in np.argsort(-logarithms, kind="stable"):
        open_parts = [indices for indices in parts if len(indices) < part]
        min(open_parts, key=lambda indices: logarithms[indices].sum()).append(int(index))
    return [index for indices in parts for index in indices]
