"""FAISS's quantizers as baselines, fitted once per set of vectors; they need the extra `search`."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from twinsqueeze.types import FloatArray
from twinsqueeze.utils.console import OpenProgress
from twinsqueeze.utils.disk_cache import DiskCache

PQ, OPQ = "FAISS PQ", "FAISS OPQ+PQ"
# Dimensions that product quantizers of all dimensions divide by.
CODE_SIZES = (16, 32, 64)
NUM_CENTROIDS = 256
# Evenly spaced rows that codebooks are fitted to: 64 per centroid, where FAISS asks for 39.
MAX_TRAIN_ROWS = 16_384
# Iterations of OPQ, and those of k-means in the first and in each other one. FAISS's defaults are 50, 40 and 4 from a
# random rotation. From the one of `_fit_opq`, four find more neighbors than 25 from a random one, in a third of the
# time: on STS-B's dev split 0.655 instead of 0.644 in 16 bytes, 0.767 instead of 0.753 in 32.
OPQ_ITERATIONS = {"niter": 4, "niter_pq_0": 10, "niter_pq": 2}
# Scores of a random rotation vary by 0.005: so many are averaged.
ROTATIONS = 3
# Part of every cache key: increase it when quantizers are fitted differently.
CACHE_VERSION = "2"
Transform = Callable[[FloatArray], FloatArray]
_LOCK = Lock()  # of FAISS's settings, some of which belong to the process


@dataclass(frozen=True, eq=False)
class FaissBaseline:
    """A quantizer of FAISS and what it is fitted to.

    Attributes:
        name: For display, without the size.
        factory: The transforms and codes, as for `faiss.index_factory`.
        train: The vectors (N, d).
        layer: Returns weight (k, d) and bias (k,) of a layer before them, which it fits.
        layer_dim: k.
        layer_digest: Identifies what the layer is fitted to, besides the vectors.
    """

    name: str
    factory: str
    train: FloatArray
    layer: Callable[[], tuple[FloatArray, FloatArray]] | None = None
    layer_dim: int = 0
    layer_digest: str = ""

    @property
    def rotations(self) -> int:
        """Random rotations to average scores over; that of OPQ is fitted."""
        return ROTATIONS if re.match(r"PCAR|RR", self.factory) else 1

    @property
    def can_be_fitted(self) -> bool:
        """Whether there are enough vectors and dimensions for its PCA, its subvectors and its 256 centroids."""
        rows, dimension = len(self.train), self.layer_dim or self.train.shape[1]
        components = re.search(r"PCAR?(\d+)", self.factory)
        subvectors = [int(number) for number in re.findall(r"PR?Q(\d+)", self.factory)]
        if components and int(components[1]) > min(rows, dimension):
            return False
        fitted_dim = int(components[1]) if components else dimension
        if any(fitted_dim % number for number in subvectors):
            return False
        return not subvectors or rows >= (max(NUM_CENTROIDS, fitted_dim) if "OPQ" in self.factory else NUM_CENTROIDS)


class FaissQuantizer(NamedTuple):
    """A fitted quantizer, with functions of vectors (N, d) for every random rotation."""

    name: str
    bytes: int
    decode: Sequence[Transform]  # vectors to their decoded codes
    transform_queries: Sequence[Transform]  # vectors to float queries, which are compared with decoded codes


# Names and factory strings of the quantizers that are fitted to the train vectors. SQtqmse has fixed centroids for
# rotated unit vectors (TurboQuant, Zandieh et al. 2025, arXiv 2504.19874): with one bit, the signs. np is without
# polysemous codes, which decode to the same vectors.
QUANTIZERS = (
    ("rotated signs", "PCAR128,L2norm,SQtqmse1"),
    ("rotated signs", "PCAR256,L2norm,SQtqmse1"),
    ("TurboQuant 2 bits", "PCAR128,L2norm,SQtqmse2"),
    ("TurboQuant 2 bits", "PCAR256,L2norm,SQtqmse2"),
    ("TurboQuant 4 bits", "PCAR256,L2norm,SQtqmse4"),
    ("RaBitQ", "RR{d},RaBitQ"),
    *((PQ, f"PQ{size}np") for size in CODE_SIZES),
    ("OPQ+PQ of PCA 128", "PCA128,OPQ16,PQ16np"),
    ("OPQ+PQ of PCA 128", "PCA128,OPQ32,PQ32np"),
    ("PRQ", "PCA128,OPQ8,PRQ8x2x8"),
    ("PRQ", "PCA256,OPQ8,PRQ8x4x8"),
    *((OPQ, f"OPQ{size},PQ{size}np") for size in CODE_SIZES),
)


def faiss_version() -> str | None:
    """Return the version of the installed FAISS, or None."""
    return version("faiss-cpu") if importlib.util.find_spec("faiss") else None


def fit_quantizers(
    baselines: Sequence[FaissBaseline], cache: DiskCache, progress: OpenProgress
) -> Iterator[FaissQuantizer]:
    """Fit the baselines that can be fitted on all cores; yield them in their order.

    Nothing is yielded if FAISS is not installed.
    """
    if not faiss_version():
        return
    import faiss  # noqa: PLC0415 - an extra

    arrays = {id(each.train): each.train for each in baselines}
    digests = {key: _digest(array) for key, array in arrays.items()}
    keys = {each: _cache_key(each, digests[id(each.train)]) for each in baselines if each.can_be_fitted}
    payloads = {each: payload for each, key in keys.items() if (payload := cache.get(key)) is not None}
    missing = [each for each in keys if each not in payloads]
    for each, payload in _fit_all(faiss, missing, progress).items():
        cache.put(keys[each], payload)
        payloads[each] = payload
    for each in keys:
        indexes: list[Any] = [
            faiss.deserialize_index(np.frombuffer(payloads[each], np.uint8)) for _ in range(each.rotations)
        ]
        for seed, index in enumerate(indexes[1:], 1):
            _rotate(faiss, index, seed)
        size = faiss.downcast_index(indexes[0].index).sa_code_size()
        decode, transform = ([partial(f, faiss, index) for index in indexes] for f in (_decode, _apply_transforms))
        yield FaissQuantizer(each.name, size, decode, transform)


def _digest(train: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(train).data).hexdigest()


def _cache_key(baseline: FaissBaseline, digest: str) -> str:
    parts = CACHE_VERSION, faiss_version(), OPQ_ITERATIONS, baseline.factory, baseline.layer_digest, digest
    return f"quantizer-{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def _fit_all(faiss: Any, baselines: Sequence[FaissBaseline], progress: OpenProgress) -> Mapping[FaissBaseline, bytes]:
    """Fit in parallel, one baseline per core, the last and longest first; return the indexes serialized."""

    def fit(baseline: FaissBaseline) -> bytes:
        faiss.omp_set_num_threads(1)  # a setting of the calling thread
        return bytes(faiss.serialize_index(_fit(faiss, baseline)))

    fitted = {}
    with (
        progress("fitting FAISS's quantizers", "quantizer") as advance,
        _single_threaded(faiss),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        futures = {pool.submit(fit, each): each for each in reversed(baselines)}
        for future in as_completed(futures):
            fitted[futures[future]] = future.result()
            advance(len(fitted), len(baselines), {})
    return fitted


def _fit(faiss: Any, baseline: FaissBaseline) -> Any:
    """Return the index of the factory string, fitted transform by transform."""
    rows = np.linspace(0, len(baseline.train) - 1, min(len(baseline.train), MAX_TRAIN_ROWS)).astype(np.int64)
    vectors = np.ascontiguousarray(baseline.train[rows], np.float32)
    codes = faiss.index_factory(baseline.layer_dim or vectors.shape[1], baseline.factory.format(d=vectors.shape[1]))
    index = codes if isinstance(codes, faiss.IndexPreTransform) else faiss.IndexPreTransform(codes)
    if baseline.layer:
        layer = _linear_transform(faiss, *baseline.layer())
        index.prepend_transform(layer)
        layer.this.disown()  # the index deletes its transforms
    for i in range(index.chain.size()):
        transform = faiss.downcast_VectorTransform(index.chain.at(i))
        if isinstance(transform, faiss.OPQMatrix):
            _fit_opq(faiss, transform, vectors)
        elif not transform.is_trained:
            transform.train(vectors)
        vectors = transform.apply(vectors)
    storage = faiss.downcast_index(index.index)
    for clustering in _clusterings(faiss, storage):
        clustering.min_points_per_centroid = 1  # with fewer than 39, FAISS warns on standard error
    storage.train(vectors)
    index.is_trained = True
    return index


def _fit_opq(faiss: Any, rotation: Any, vectors: FloatArray) -> None:
    """Fit a rotation that starts from the principal components, distributed over subvectors of equal variance.

    That is the parametric solution of Ge et al. (2013), which needs no iterations if vectors are normally distributed.
    """
    components = faiss.PCAMatrix(rotation.d_in, rotation.d_out)
    components.balanced_bins = rotation.M
    components.train(vectors)
    faiss.copy_array_to_vector(faiss.vector_to_array(components.A), rotation.A)
    for setting, value in OPQ_ITERATIONS.items():
        setattr(rotation, setting, value)
    # k-means takes its settings, and with them a warning for few vectors, from a quantizer of its own.
    quantizer = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)
    quantizer.cp.min_points_per_centroid = 1
    rotation.pq = quantizer
    rotation.train(vectors)
    rotation.pq = None


def _clusterings(faiss: Any, codes: Any) -> Iterator[Any]:
    """Yield the settings of k-means of product and residual quantizers."""
    if isinstance(codes, faiss.IndexPQ):
        yield codes.pq.cp
    elif isinstance(codes, faiss.IndexProductResidualQuantizer):
        for i in range(codes.prq.nsplits):
            quantizer = faiss.downcast_AdditiveQuantizer(codes.prq.subquantizer(i))
            # k-means on all dimensions at once takes a third of the time of FAISS's default, and is as good.
            quantizer.train_type = faiss.ResidualQuantizer.Train_default
            yield quantizer.cp


def _linear_transform(faiss: Any, weight: FloatArray, bias: FloatArray) -> Any:
    transform = faiss.LinearTransform(weight.shape[1], weight.shape[0], True)
    faiss.copy_array_to_vector(np.ascontiguousarray(weight, np.float32).ravel(), transform.A)
    faiss.copy_array_to_vector(np.ascontiguousarray(bias, np.float32), transform.b)
    transform.is_trained = True
    return transform


def _rotate(faiss: Any, index: Any, seed: int) -> None:
    """Replace the random rotation of an index, which is its first transform."""
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    rotation = faiss.RandomRotationMatrix(transform.d_out, transform.d_out)
    rotation.init(seed)
    matrix = faiss.vector_to_array(rotation.A).reshape(transform.d_out, -1)
    codes = faiss.downcast_index(index.index)
    vectors = [transform.b, codes.center] if isinstance(codes, faiss.IndexRaBitQ) else [transform.b]
    for vector in (transform.A, *vectors):
        values = faiss.vector_to_array(vector)
        if values.size:
            faiss.copy_array_to_vector((matrix @ values.reshape(transform.d_out, -1)).ravel(), vector)


def _apply_transforms(faiss: Any, index: Any, vectors: FloatArray) -> FloatArray:
    vectors = np.ascontiguousarray(vectors, np.float32)
    for i in range(index.chain.size()):
        vectors = faiss.downcast_VectorTransform(index.chain.at(i)).apply(vectors)
    return vectors


def _decode(faiss: Any, index: Any, vectors: FloatArray) -> FloatArray:
    """Return the decoded codes of vectors, as the transforms leave them."""
    with _LOCK, _single_threaded(faiss):
        codes = faiss.downcast_index(index.index)
        return np.asarray(codes.sa_decode(codes.sa_encode(_apply_transforms(faiss, index, vectors))))


@contextmanager
def _single_threaded(faiss: Any) -> Iterator[None]:
    """Run FAISS on one thread, so that results do not depend on the thread count and no thread waits for a busy core.

    Distances are computed by matrix products from 20 vectors on, as before FAISS 1.15, whose own kernels take ten times
    as long for short subvectors.
    """
    threads, threshold = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = 20
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = threshold
