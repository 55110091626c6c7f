"""FAISS indexes that take the encoder's vectors and compare float queries with a compressor's codes.

They need the extra `search`. Linear layer and normalization are transforms of the index; its codes are those of
`quantize`. FAISS has no cosine: all indexes but those of several codes per subvector compare by inner product.

Product codes decode to vectors c of different norms, so inner products q . c order them otherwise than cosines do. This
costs 0.008 to 0.025 of the neighbor recall at 32 and 16 bytes. Near |c| = 1 the cosine is
q . c + (q . c) (1 - |c|^2) / 2. With `TYPICAL_COSINE` for the second q . c, the difference is a sum over subvectors,
which `_with_norms` builds into the centroids.

With several codes per subvector, |c|^2 does not split into a sum over codes, so the index stores it in a byte behind
them. It encodes with centroids c, and compares by distance with c / 2: |q - c / 2|^2 = |q|^2 - (q . c - |c|^2 / 4).
"""

import importlib.util
from math import ceil, sqrt
from typing import IO, Any

import numpy as np
import torch

from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import Int8Ranges
from twinsqueeze.model.quantizers import BEAM, ProductQuantizer
from twinsqueeze.types import AnyArray, FloatArray

BITS = 8  # per code of a subvector
TYPICAL_COSINE = 0.5  # of a query and its nearest neighbors; values from 0.4 to 0.6 do as well
# What `_with_norms` appends to each subvector of an input. Larger values have larger rounding errors.
ONE = 0.25
# FAISS's guidelines: 4 to 16 times the root of the number of vectors, and k-means on 30 to 256 vectors per list.
LISTS_PER_ROOT = 4
MIN_VECTORS_PER_LIST, MAX_VECTORS_PER_LIST = 30, 64
# An inverted file searches this times the root of its lists, unless `nprobe` is changed: 252 of 4,000.
SEARCHED_PER_ROOT = 4
NORM_RANGE = 0.0, 0.4  # of |c / 2|^2 in a byte, for norms |c| up to 1.26; unit vectors decode to ones of about 0.94
BLOCK = 16384  # vectors that are decoded at a time


def check_index_support(network: CompressorNetwork, lists: str, model: str) -> None:
    """Raises an `InputError` if there can be no index of `model` with these lists, or FAISS is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise InputError("a FAISS index needs faiss: pip install faiss-cpu")
    if lists not in {"none", "auto"} and not (lists.isdecimal() and int(lists)):
        raise InputError(f"ivf must be none, auto or a number of lists, not {lists!r}")
    if len(network.layers) > 1:
        raise InputError(
            f"model {model!r} has a ReLU, for which FAISS has no transform: compress to .npy and add these vectors to "
            f"an index of {network.dim} dimensions, or train with architecture linear"
        )


def _import_faiss() -> Any:
    """Imports FAISS, an extra, as Any: its type stubs lack half of what is used here."""
    import faiss  # noqa: PLC0415 - as above

    return faiss


class FaissIndex:
    """A FAISS index of the codes of a linear compressor at a precision; `ranges` calibrate int8.

    `lists` is "none" for an exhaustive search, a number of lists of an inverted file (IVF), or "auto" for `num_lists`.
    With `normalizes_inputs` the index scales its inputs to unit length.
    """

    def __init__(
        self,
        network: CompressorNetwork,
        precision: str,
        ranges: Int8Ranges | None = None,
        lists: str = "none",
        *,
        normalizes_inputs: bool = False,
    ) -> None:
        self.precision, self.lists, self._normalizes_inputs = precision, lists, normalizes_inputs
        ((self._weight, self._bias),) = network.layers
        self._quantizer: ProductQuantizer | None = None
        if precision == "product" and isinstance(network.quantizer, ProductQuantizer):
            self._quantizer = network.quantizer
        self._codes = _build_storage(network.dim, precision, ranges, self._quantizer)
        # Where a compressed vector's numbers are in the storage's vectors.
        subvector_dim = self._quantizer.subvector_dim if self._quantizer else network.dim
        starts = np.arange(0, self._codes.d, self._codes.d * subvector_dim // network.dim)
        self._columns = (starts[:, None] + np.arange(subvector_dim)).ravel()

    def add(self, codes: AnyArray) -> None:
        """Adds codes as `quantize` returns them, (n, width)."""
        codes = np.ascontiguousarray(codes).view(np.uint8)
        if self._quantizer and self._quantizer.codes_per_subvector > 1:
            codes = _append_norms(self._codes.prq, codes, self._quantizer)
        self._codes.add_sa_codes(codes ^ 0x80 if self.precision in {"int8", "binary"} else codes)

    def write(self, file: IO[bytes]) -> int:
        """Writes the index as `faiss.read_index` reads it, and returns its number of vectors."""
        faiss = _import_faiss()

        index = faiss.IndexPreTransform(self._with_lists())
        dim = len(self._columns)
        if self._codes.d > dim:
            weight, bias = np.zeros((self._codes.d, dim), np.float32), np.zeros(self._codes.d, np.float32)
            weight[self._columns, np.arange(dim)] = 1
            if self.precision == "product":
                subvector_dim = dim // self._codes.pq.M
                bias[self._columns[subvector_dim - 1 :: subvector_dim] + 1] = ONE
            index.prepend_transform(_linear_transform(weight, bias))
        index.prepend_transform(faiss.NormalizationTransform(dim))
        index.prepend_transform(_linear_transform(self._weight.cpu().numpy(), self._bias.cpu().numpy()))
        if self._normalizes_inputs:
            index.prepend_transform(faiss.NormalizationTransform(self._weight.shape[1]))
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        return int(index.ntotal)

    def _with_lists(self) -> Any:
        """Returns an inverted file with the codes; its lists are clusters of the decoded vectors by cosine."""
        faiss = _import_faiss()

        codes = self._codes
        count = num_lists(self.lists, codes.ntotal)
        if count == 1:
            return codes
        rows = np.random.default_rng(0).permutation(codes.ntotal)[: count * MAX_VECTORS_PER_LIST]
        sample = np.ascontiguousarray(codes.reconstruct_batch(rows)[:, self._columns])
        kmeans = faiss.Kmeans(sample.shape[1], count, niter=10, spherical=True, min_points_per_centroid=1, seed=0)
        kmeans.train(sample)
        centroids = np.zeros((count, codes.d), np.float32)
        centroids[:, self._columns] = kmeans.centroids
        index = _build_inverted_file(codes, centroids)
        stored = faiss.rev_swig_ptr(codes.codes.data(), codes.codes.size()).reshape(codes.ntotal, -1)
        for start in range(0, codes.ntotal, BLOCK):
            decoded = codes.reconstruct_n(start, min(BLOCK, codes.ntotal - start))
            chosen = index.quantizer.assign(decoded, 1).astype("<i8").view(np.uint8)[:, : index.coarse_code_size()]
            index.add_sa_codes(np.hstack([chosen, stored[start : start + BLOCK]]))
        return index


def num_lists(lists: str, num_vectors: int) -> int:
    """Returns the number of lists for an inverted file of some vectors; 1 if it would not pay."""
    if lists == "none":
        return 1
    if lists == "auto":
        return max(1, min(round(LISTS_PER_ROOT * sqrt(num_vectors)), num_vectors // MIN_VECTORS_PER_LIST))
    if int(lists) > num_vectors:
        raise InputError(f"{lists} lists need at least as many vectors, not {num_vectors:,}: pass auto or none as ivf")
    return int(lists)


def _linear_transform(weight: FloatArray, bias: FloatArray) -> Any:
    faiss = _import_faiss()

    transform = faiss.LinearTransform(weight.shape[1], weight.shape[0], True)
    faiss.copy_array_to_vector(weight.ravel(), transform.A)
    faiss.copy_array_to_vector(bias, transform.b)
    transform.is_trained = True
    return transform


def _build_storage(dim: int, precision: str, ranges: Int8Ranges | None, quantizer: ProductQuantizer | None) -> Any:
    """Returns an empty index whose codes are those of `quantize`; product codes need their quantizer."""
    faiss = _import_faiss()

    if precision == "float32":
        return faiss.IndexFlatIP(dim)
    if precision == "int8":
        index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        low, high = np.array(ranges, np.float32)
        faiss.copy_array_to_vector(np.concatenate([low, high - low]), index.sq.trained)
    elif quantizer and quantizer.codes_per_subvector > 1:
        shape = dim // quantizer.subvector_dim, quantizer.codes_per_subvector, BITS
        index = faiss.IndexProductResidualQuantizer(dim, *shape, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_norm_qint8)
        _set_codebooks(index.prq, _filled_up(quantizer.codebooks[0].cpu().numpy()))
    else:
        centroids = _with_norms(quantizer.codebooks[0].cpu().numpy()) if quantizer else _sign_centroids(dim)
        subvectors, _, subvector_dim = centroids.shape
        index = faiss.IndexPQ(subvectors * subvector_dim, subvectors, BITS, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(centroids.ravel(), index.pq.centroids)
    index.is_trained = True
    return index


def _sign_centroids(dim: int) -> FloatArray:
    """Returns (M, 256, 8) centroids: byte b stands for 8 signs, those of its bits, so all vectors have one norm.

    Inputs are zero in the dimensions that fill up the last byte, and so are its centroids whose last bits are zero.
    """
    bits = np.unpackbits(np.arange(2**BITS, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
    centroids = np.repeat((2 * bits - 1)[None] / np.float32(sqrt(dim)), ceil(dim / BITS), axis=0)
    if dim % BITS:
        centroids[-1, :, dim % BITS :] = bits[:, dim % BITS :]
    return centroids


def _set_codebooks(quantizer: Any, codebooks: FloatArray) -> None:
    """Sets the (M * T, 256, P) codebooks of a product residual quantizer, which encodes as `ProductQuantizer` does.

    The codebooks of its parts encode, and its own, which are half as long, decode and search.
    """
    faiss = _import_faiss()

    for i, part in enumerate(np.split(codebooks, quantizer.nsplits)):
        residual = faiss.downcast_AdditiveQuantizer(quantizer.subquantizer(i))
        faiss.copy_array_to_vector(part.ravel(), residual.codebooks)
        residual.max_beam_size, residual.is_trained = BEAM, True
        residual.compute_codebook_tables()
    faiss.copy_array_to_vector(codebooks.ravel() / 2, quantizer.codebooks)
    quantizer.norm_min, quantizer.norm_max = NORM_RANGE
    quantizer.is_trained = True


def _append_norms(index_quantizer: Any, codes: AnyArray, quantizer: ProductQuantizer) -> AnyArray:
    """Returns (n, codes) uint8 with a byte of the norm |c / 2|^2 behind each row, as the index encodes it."""
    faiss = _import_faiss()

    decoded = quantizer.decode(torch.from_numpy(codes.astype(np.int64))[None].to(quantizer.codebooks.device))[0]
    norms = (decoded.square().sum(1) / 4).cpu().numpy()
    packed = np.empty((len(codes), codes.shape[1] + 1), np.uint8)
    arrays = codes.astype(np.int32), packed, -1, norms
    index_quantizer.pack_codes(len(codes), *(faiss.swig_ptr(a) if isinstance(a, np.ndarray) else a for a in arrays))
    return packed


def _filled_up(codebooks: FloatArray) -> FloatArray:
    """Returns codebooks with 256 centroids each; the added ones are too distant to be chosen."""
    return np.pad(codebooks, ((0, 0), (0, 2**BITS - codebooks.shape[1]), (0, 0)), constant_values=100)


def _with_norms(codebooks: FloatArray) -> FloatArray:
    """Returns (M, 256, P + 2) centroids whose inner products with inputs (x, ONE, 0) are near cosines.

    The first appended number of a centroid c is (1 / M - |c|^2) / 2 * TYPICAL_COSINE / ONE. The second one makes up for
    it in distances, so that the nearest centroids of x stay the same.
    """
    filled = _filled_up(codebooks)
    weights = (1 / len(codebooks) - np.square(codebooks).sum(-1)) / 2 * (TYPICAL_COSINE / ONE)
    distances = np.square(ONE - weights)
    appended = np.stack([weights, np.sqrt(distances.max() - distances)], -1)
    return np.concatenate([filled, np.pad(appended, ((0, 0), (0, filled.shape[1] - codebooks.shape[1]), (0, 0)))], -1)


def _build_inverted_file(codes: Any, centroids: FloatArray) -> Any:
    """Returns an empty inverted file that encodes as an index does."""
    faiss = _import_faiss()

    coarse = faiss.IndexFlatIP(codes.d)
    coarse.add(centroids)
    settings = (coarse, codes.d, len(centroids))
    if isinstance(codes, faiss.IndexPQ):
        index = faiss.IndexIVFPQ(*settings, codes.pq.M, BITS, faiss.METRIC_INNER_PRODUCT)
        index.pq = codes.pq
    elif isinstance(codes, faiss.IndexProductResidualQuantizer):
        prq = codes.prq
        shape = prq.nsplits, prq.M // prq.nsplits, BITS
        search = faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_norm_qint8
        index = faiss.IndexIVFProductResidualQuantizer(*settings, *shape, *search)
        _set_codebooks(index.prq, 2 * faiss.vector_to_array(prq.codebooks).reshape(prq.M, 2**BITS, -1))
    elif isinstance(codes, faiss.IndexScalarQuantizer):
        index = faiss.IndexIVFScalarQuantizer(*settings, codes.sq.qtype, faiss.METRIC_INNER_PRODUCT)
        index.sq = codes.sq
    else:
        index = faiss.IndexIVFFlat(*settings, faiss.METRIC_INNER_PRODUCT)
    index.by_residual, index.is_trained = False, True
    index.nprobe = min(len(centroids), round(SEARCHED_PER_ROOT * sqrt(len(centroids))))
    index.referenced_objects = [coarse]  # the index holds only a pointer to it
    return index
