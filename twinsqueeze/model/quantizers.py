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
from twinsqueeze.utils.compute import batch_invariant_matmul, map_threaded

Backward = Callable[[torch.Tensor], torch.Tensor]
# Centroids of a subvector, so that a code is one byte.
NUM_CENTROIDS = 256
# Codings of a subvector from which its next code is searched. FAISS's `max_beam_size` is 5 as well.
BEAM = 5
# Vectors, and residuals of them, that the centroids of several codes per subvector are fitted to: 64 per centroid.
MAX_RESIDUALS = 16_384
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

    With several codes per subvector, T, it becomes a sum of T centroids, each for what the ones before leave (residual
    quantization, Chen et al. 2010, https://doi.org/10.3390/s101211259), as in FAISS's ProductResidualQuantizer.

    Its methods are those of `SignQuantizer`, for R compressors with `codebooks` of their own: (R, M * T, K, P) float32,
    T times K centroids of P floats for each of the M subvectors.
    """

    precision = "product"

    def __init__(self, codebooks: torch.Tensor, codes_per_subvector: int = 1) -> None:
        self.codebooks = codebooks
        self.codes_per_subvector = codes_per_subvector
        self.subvector_dim = codebooks.shape[3]
        self.dim = codebooks.shape[1] // codes_per_subvector * codebooks.shape[3]
        self.gradient: torch.Tensor | None = None  # of the codebooks, set by `straight_through` if it is a tensor
        self.update()

    def update(self) -> None:
        """Follows codebooks that have changed in place."""
        self._factors = _match_factors(self.codebooks)

    def encode(self, unit: torch.Tensor, *, beam: int = BEAM) -> torch.Tensor:
        """Returns the codes, (R, N, M * T) int64, of (R, N, dim) unit vectors; the T codes of a subvector are adjacent.

        Several codes per subvector are searched from the `beam` best codings so far.
        """
        codes = []
        for r, vectors in enumerate(unit):
            subvectors = vectors.view(len(vectors), -1, self.subvector_dim).transpose(0, 1)
            blocks = subvectors.split(128, 1)  # whose matches fit into the caches
            codes.append(torch.cat([self._encode_block(r, block, beam) for block in blocks]))
        return torch.stack(codes)

    def _encode_block(self, replica: int, subvectors: torch.Tensor, beam: int) -> torch.Tensor:
        """Returns the codes (N, M * T) of subvectors (M, N, P)."""
        count, depth = len(subvectors), self.codes_per_subvector
        factors, codebooks = (each[replica].unflatten(0, (count, depth)) for each in (self._factors, self.codebooks))
        # What the B best codings leave, (M, N, B, P), and their codes so far, (M, N, B, 0 to T).
        residuals = subvectors.unsqueeze(2)
        codes: torch.Tensor = subvectors.new_empty(*residuals.shape[:3], 0, dtype=torch.int64)
        for step in range(depth):
            is_last = step == depth - 1
            parents, chosen = _best_centroids(residuals, factors[:, step], 1 if is_last else beam)
            codes = torch.cat([_select(codes, parents), chosen.unsqueeze(-1)], -1)
            if not is_last:
                residuals = _subtract(_select(residuals, parents), codebooks[:, step], chosen)
        return codes[:, :, 0].permute(1, 0, 2).flatten(1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the sums of the centroids, (R, N, dim), of (R, N, M * T) codes."""
        index = codes.transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, self.subvector_dim)  # (R, M * T, N, P)
        centroids: torch.Tensor = self.codebooks.gather(2, index).unflatten(1, (-1, self.codes_per_subvector))
        return centroids.sum(2).transpose(1, 2).flatten(2)

    def dequantize(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns what vectors of any length are decoded to; the padding stays zero."""
        unit = functional.normalize(vectors, dim=-1)
        return self._pad(self.decode(self.encode(unit[..., : self.dim])), unit)

    def straight_through(self, outputs: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        """Returns what outputs are decoded to without a beam, and a gradient that passes the quantizer unchanged."""
        normalized = L2Normalize(outputs)
        codes = self.encode(normalized.unit[..., : self.dim], beam=1)

        def backward(gradient: torch.Tensor) -> torch.Tensor:
            if self.gradient is not None:
                self._sum_gradients(codes, gradient[..., : self.dim])
            return normalized.backward(gradient)

        return self._pad(self.decode(codes), outputs), backward

    def _sum_gradients(self, codes: torch.Tensor, gradient: torch.Tensor) -> None:
        """Sets each centroid's gradient to the sum of those of its subvectors, given that of the decoded codes."""
        assert self.gradient is not None
        replicas, tables, centroids, subvector_dim = self.codebooks.shape
        offsets = torch.arange(replicas * tables, device=codes.device).view(replicas, 1, tables) * centroids
        index = (offsets + codes).view(-1, 1).expand(-1, subvector_dim)
        subvectors = gradient.reshape(-1, 1, subvector_dim).expand(-1, self.codes_per_subvector, -1)
        self.gradient.zero_().view(-1, subvector_dim).scatter_add_(0, index, subvectors.reshape(-1, subvector_dim))

    def replica(self, index: int) -> "ProductQuantizer":
        """Returns the quantizer of one compressor."""
        return ProductQuantizer(self.codebooks[index : index + 1], self.codes_per_subvector)

    def _pad(self, decoded: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return functional.pad(decoded, (0, outputs.shape[-1] - self.dim))


Quantizer = SignQuantizer | ProductQuantizer


def _select(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Returns (A, B, C, P) of (A, B, D, P) values, at places (A, B, C) along D."""
    return values.gather(2, places.unsqueeze(-1).expand(-1, -1, -1, values.shape[3]))


def _match_factors(codebooks: torch.Tensor) -> torch.Tensor:
    """Returns (..., P + 1, K) from (..., K, P): a product with (x, 1) is greatest for the nearest centroid.

    |x - c|^2 is least where x . c - |c|^2 / 2 is greatest.
    """
    return torch.cat([codebooks, codebooks.square().sum(-1, keepdim=True) / -2], -1).mT.contiguous()


def _best_centroids(residuals: torch.Tensor, factors: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which of (M, N, B, P) residuals and which centroids leave least, best first, as two of (M, N, count)."""
    matches = torch.bmm(functional.pad(residuals.flatten(1, 2), (0, 1), value=1.0), factors)
    matches = matches.view(*residuals.shape[:3], -1)  # (M, N, B, K)
    if residuals.shape[2] > 1:
        matches -= residuals.square().sum(-1, keepdim=True) / 2
    num_centroids, matches = matches.shape[3], matches.flatten(2)
    places = [_argmax(matches)]
    for _ in range(min(count, matches.shape[2]) - 1):  # with `topk`, `encode` takes a third longer
        matches.scatter_(2, places[-1], -torch.inf)
        places.append(_argmax(matches))
    found = torch.cat(places, 2)
    return found // num_centroids, found % num_centroids


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """Argmax over the last axis, (..., 1). On a CPU NumPy is six times as fast as PyTorch."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmax(-1, keepdims=True))
    return values.argmax(-1, keepdim=True)


def _subtract(residuals: torch.Tensor, codebooks: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Returns (M, N, C, P) residuals without their chosen centroids, (M, N, C), of (M, K, P)."""
    return residuals - _select(codebooks.unsqueeze(1), chosen.flatten(1).unsqueeze(1)).view_as(residuals)


def fit_codebooks(vectors: FloatArray, subvector_dim: int, seed: int, codes_per_subvector: int = 1) -> torch.Tensor:
    """Fits a product quantizer's centroids by k-means on each subvector of (N, dim) unit vectors.

    The centroids of a subvector's next code are fitted to what its `BEAM` best codings leave, as in FAISS. The result
    is (dim / subvector_dim * codes_per_subvector, min(256, N), subvector_dim) float32.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415 - takes a second, and only product quantizers need it
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - as above

    if codes_per_subvector > 1:
        vectors = _sample_evenly(vectors)

    def fit(subvectors: FloatArray) -> list[FloatArray]:
        kmeans = KMeans(min(NUM_CENTROIDS, len(vectors)), init="random", n_init=1, max_iter=25, random_state=seed)
        residuals = torch.from_numpy(np.ascontiguousarray(subvectors))[None, :, None]  # (1, N, B, P)
        fitted: list[FloatArray] = []
        with threadpool_limits(1):  # which OpenMP has for each of its callers
            for step in range(codes_per_subvector):
                points = residuals.flatten(0, 2).numpy()
                kmeans.fit(_sample_evenly(points) if step else points)
                fitted.append(kmeans.cluster_centers_.astype(np.float32))
                if step < codes_per_subvector - 1:
                    codebook = torch.from_numpy(fitted[-1])[None]
                    parents, chosen = _best_centroids(residuals, _match_factors(codebook), BEAM)
                    residuals = _subtract(_select(residuals, parents), codebook, chosen)
        return fitted

    threads, parts = torch.get_num_threads(), np.split(vectors, vectors.shape[1] // subvector_dim, 1)
    # One thread each: several add up their sums in any order, which changes the last bits.
    with threadpool_limits(1), batch_invariant_matmul(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # if vectors are duplicates
        fitted = [codebook for _, each in map_threaded(iter(parts), fit, threads) for codebook in each]
    return torch.from_numpy(np.stack(fitted))


def _sample_evenly(rows: FloatArray) -> FloatArray:
    """Returns at most `MAX_RESIDUALS` of (N, P) rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_RESIDUALS)).astype(np.int64)]


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
