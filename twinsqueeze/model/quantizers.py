"""Quantizers that compressors are trained through, and L2 normalization with its gradient.

The derivative of a quantizer is zero almost everywhere. The straight-through estimator (Bengio et al. 2013, arXiv
1308.3432) uses the derivative of the identity instead.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional

from twinsqueeze.types import FloatArray

Backward = Callable[[torch.Tensor], torch.Tensor]
# Centroids of a subvector, so that a code is one byte.
NUM_CENTROIDS = 256
# Smallest divisor of a normalization, as in `torch.nn.functional.normalize`.
EPSILON = 1e-12


class L2Normalize:
    """Vectors (..., dim), and `unit`, the same scaled to unit length; all-zero vectors stay zero."""

    def __init__(self, vectors: torch.Tensor) -> None:
        norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        self.inverse_norm: torch.Tensor = norm.clamp_min_(EPSILON).reciprocal_()
        self.unit = vectors * self.inverse_norm

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Returns the gradient with respect to `vectors`, given that with respect to `unit`; both (..., dim).

        With u = x / |x|: dL/dx = (g - (g . u) u) / |x|.
        """
        along = (gradient * self.unit).sum(-1, keepdim=True)
        return torch.addcmul(gradient, self.unit, along, value=-1).mul_(self.inverse_norm)


class SignQuantizer:
    """Quantizes to -1, 0 or 1. The gradient passes for outputs from -1 to 1."""

    precision = "binary"

    def dequantize(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns the quantized vectors as floats; (R, N, D), where D may be dim with padding zeros behind."""
        return vectors.sign()

    def straight_through(self, outputs: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        """Returns `dequantize(outputs)`, (R, N, D), and a function from its gradient to that of `outputs`.

        The function may overwrite its argument.
        """
        return outputs.sign(), lambda gradient: gradient.mul_(outputs.abs() <= 1)

    def replica(self, _: int) -> "SignQuantizer":
        """Returns the quantizer of one compressor."""
        return self


class ProductQuantizer:
    """Replaces each subvector of a unit vector by its nearest centroid (product quantization, Jégou et al. 2011).

    Its methods are those of `SignQuantizer`, for R compressors with `codebooks` of their own: (R, M, K, P) float32, the
    K centroids of each of the M subvectors of P floats.
    """

    precision = "product"

    def __init__(self, codebooks: torch.Tensor) -> None:
        self.codebooks = codebooks
        self.subvector_dim = codebooks.shape[3]
        self.dim = codebooks.shape[1] * codebooks.shape[3]
        self.gradient: torch.Tensor | None = None  # of the codebooks, set by `straight_through` if it is a tensor
        self.update()

    def update(self) -> None:
        """Follows codebooks that have changed in place."""
        codebooks = self.codebooks
        # |x - c|^2 is least where x . c - |c|^2 / 2 is greatest: one product of (x, 1) with (R, M, P + 1, K).
        self._factors = torch.cat([codebooks, codebooks.square().sum(-1, keepdim=True) / -2], -1).mT.contiguous()

    def encode(self, unit: torch.Tensor) -> torch.Tensor:
        """Returns the nearest centroid of each subvector, (R, N, M) int64, of (R, N, dim) unit vectors."""
        codes = []
        for vectors, factors in zip(unit, self._factors, strict=True):
            subvectors = vectors.view(len(vectors), -1, self.subvector_dim).transpose(0, 1)
            blocks = functional.pad(subvectors, (0, 1), value=1.0).split(1024, 1)  # to bound memory
            codes.append(torch.cat([_argmax(torch.bmm(block, factors)) for block in blocks], 1).T)
        return torch.stack(codes)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the centroids, (R, N, dim), of (R, N, M) codes."""
        index = codes.transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, self.subvector_dim)  # (R, M, N, P)
        return self.codebooks.gather(2, index).transpose(1, 2).flatten(2)

    def dequantize(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns the nearest centroids of vectors of any length; the padding stays zero."""
        return self._nearest_centroids(functional.normalize(vectors, dim=-1))

    def straight_through(self, outputs: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        """Returns the nearest centroids, and a gradient that passes them unchanged."""
        normalized = L2Normalize(outputs)
        codes = self.encode(normalized.unit[..., : self.dim])

        def backward(gradient: torch.Tensor) -> torch.Tensor:
            if self.gradient is not None:
                self._sum_gradients(codes, gradient[..., : self.dim])
            return normalized.backward(gradient)

        return self._pad(self.decode(codes), outputs), backward

    def _sum_gradients(self, codes: torch.Tensor, gradient: torch.Tensor) -> None:
        """Sets each centroid's gradient to the sum of those of its subvectors, (R, N, dim) with codes (R, N, M)."""
        assert self.gradient is not None
        replicas, subvectors, centroids, subvector_dim = self.codebooks.shape
        tables = torch.arange(replicas * subvectors, device=codes.device).view(replicas, 1, subvectors)
        index = (tables * centroids + codes).view(-1, 1).expand(-1, subvector_dim)
        self.gradient.zero_().view(-1, subvector_dim).scatter_add_(0, index, gradient.reshape(-1, subvector_dim))

    def replica(self, index: int) -> "ProductQuantizer":
        """Returns the quantizer of one compressor."""
        return ProductQuantizer(self.codebooks[index : index + 1])

    def _nearest_centroids(self, unit: torch.Tensor) -> torch.Tensor:
        return self._pad(self.decode(self.encode(unit[..., : self.dim])), unit)

    def _pad(self, decoded: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return functional.pad(decoded, (0, outputs.shape[-1] - self.dim))


Quantizer = SignQuantizer | ProductQuantizer


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """Argmax over the last axis. On a CPU NumPy is six times as fast as PyTorch."""
    return torch.from_numpy(values.numpy().argmax(-1)) if values.device.type == "cpu" else values.argmax(-1)


def fit_codebooks(vectors: FloatArray, subvector_dim: int, seed: int) -> torch.Tensor:
    """Fits a product quantizer's centroids by k-means on each subvector of (N, dim) unit vectors.

    The result is (dim / subvector_dim, min(256, N), subvector_dim) float32.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415 - takes a second, and only product quantizers need it
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - as above

    subvectors = vectors.reshape(len(vectors), -1, subvector_dim).transpose(1, 0, 2)
    clusters = min(NUM_CENTROIDS, len(vectors))
    kmeans = KMeans(clusters, init="random", n_init=1, max_iter=25, random_state=seed)
    # One thread: several add up their sums in any order, which changes the last bits.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # if vectors are duplicates
        fitted = [kmeans.fit(np.ascontiguousarray(each)).cluster_centers_ for each in subvectors]
    return torch.from_numpy(np.stack(fitted).astype(np.float32))


def balance_subspaces(variances: Sequence[float], subvector_dim: int) -> list[int]:
    """Orders dimensions so that the subvectors of a product quantizer have similar products of variances.

    Ge et al. 2013 (Optimized product quantization, section 3.2.1): each dimension, from the largest variance on, joins
    the subvector that has room and the smallest product so far. The first `subvector_dim` of the returned indices form
    the first subvector.
    """
    subvectors: list[list[int]] = [[] for _ in range(len(variances) // subvector_dim)]
    # Smaller variances are rounding errors: the vectors of MiniLM span only 381 of 384 dimensions.
    floored = np.maximum(variances, 1e-6 * np.max(variances))
    # Relative to the smallest variance, so that a longer subvector never has a smaller product.
    logarithms = np.log(floored / floored.min()) + 1e-9
    for index in np.argsort(-logarithms, kind="stable"):
        with_room = [indices for indices in subvectors if len(indices) < subvector_dim]
        min(with_room, key=lambda indices: logarithms[indices].sum()).append(int(index))
    return [index for indices in subvectors for index in indices]
