"""FAISS's quantizers as baselines, trained once per set of vectors; they need the extra `search`."""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np

from twinsqueeze.types import FloatArray
from twinsqueeze.utils.console import OpenProgress
from twinsqueeze.utils.disk_cache import DiskCache

PQ, OPQ = "FAISS PQ", "FAISS OPQ+PQ"
# Bytes per code: one for each subvector.
CODE_SIZES = (16, 32, 64)
BITS = 8
# Evenly spaced rows that quantizers are trained on: 64 per centroid, where FAISS asks for 39. The rotation of OPQ takes
# minutes for more.
MAX_TRAIN_ROWS = 16_384
NUM_CENTROIDS = 2**BITS
# FAISS's defaults for OPQ, 50 iterations with 40 and then 4 of k-means, take three times as long for hardly more
# neighbor recall: on STS-B's test split 0.57 instead of 0.56 in 16 bytes, 0.68 both ways in 32.
OPQ_SETTINGS = {"niter": 25, "niter_pq_0": 10, "niter_pq": 2}
# Fixed quantizers of randomly rotated principal components (TurboQuant, Zandieh et al. 2025, arXiv 2504.19874): a
# name without the size, principal components, and bits per component.
SCALAR_QUANTIZERS = (
    ("rotated signs", 128, 1),
    ("rotated signs", 256, 1),
    ("TurboQuant 2 bits", 128, 2),
    ("TurboQuant 2 bits", 256, 2),
)
# Part of every cache key: increase it when quantizers are trained differently.
CACHE_VERSION = "1"
Transform = Callable[[FloatArray], FloatArray]
# Name of a quantizer without the size, and bytes per code.
_Config = tuple[str, int]


def faiss_version() -> str | None:
    """Return the version of the installed FAISS, or None."""
    return version("faiss-cpu") if importlib.util.find_spec("faiss") else None


def product_quantizers(
    train: FloatArray, cache: DiskCache, progress: OpenProgress
) -> Iterator[tuple[str, int, Transform]]:
    """Yield PQ (Jégou et al. 2011) and OPQ (Ge et al. 2013) at the sizes of 16, 32 and 64 bytes that divide d.

    Each is a name without the size, bytes per code, and a function that encodes and decodes vectors. Nothing is
    yielded if FAISS is not installed or there are fewer than 256 vectors (N, d) to train on, and no OPQ for fewer than
    d.
    """
    if not faiss_version() or len(train) < NUM_CENTROIDS:
        return
    import faiss  # noqa: PLC0415 - an extra

    rows = np.linspace(0, len(train) - 1, min(len(train), MAX_TRAIN_ROWS)).astype(np.int64)
    train = np.ascontiguousarray(train[rows], np.float32)
    digest = hashlib.sha256(train.data).hexdigest()
    keys: dict[_Config, str] = {}
    # With fewer vectors than dimensions FAISS cannot initialize the rotation of OPQ, and aborts the process.
    for name, size in product((PQ, OPQ) if len(train) >= train.shape[1] else (PQ,), CODE_SIZES):
        if train.shape[1] % size == 0:
            settings = f"{CACHE_VERSION}\0{faiss_version()}\0{OPQ_SETTINGS}\0{size}\0{name == OPQ}\0{digest}"
            keys[name, size] = f"quantizer-{hashlib.sha256(settings.encode()).hexdigest()}"
    payloads = {config: payload for config, key in keys.items() if (payload := cache.get(key)) is not None}
    missing = [config for config in keys if config not in payloads]
    for config, payload in _train(faiss, train, missing, progress).items():
        cache.put(keys[config], payload)
        payloads[config] = payload
    for name, size in keys:
        index = faiss.deserialize_index(np.frombuffer(payloads[name, size], np.uint8))
        yield name, size, partial(_reconstruct, faiss, index)


def scalar_quantizers(train: FloatArray) -> Iterator[tuple[str, int, Transform, Transform]]:
    """Yield `SCALAR_QUANTIZERS` with at most as many components as there are dimensions and vectors (N, d).

    Each is a name without the size, bytes per code, and functions to decoded vectors and to float queries, both unit
    vectors or near. They take a second to train, of which the PCA is most. Nothing is yielded without FAISS.
    """
    if not faiss_version():
        return
    import faiss  # noqa: PLC0415 - an extra

    train = np.ascontiguousarray(train, np.float32)
    for name, components, bits in SCALAR_QUANTIZERS:
        if components <= min(train.shape):
            index = faiss.index_factory(train.shape[1], f"PCAR{components},L2norm,SQtqmse{bits}")
            with _single_threaded(faiss):
                index.train(train)
            decode, rotate = partial(_decode_rotated, faiss, index), partial(_rotate, faiss, index)
            yield name, components * bits // 8, decode, rotate


def _rotate(faiss: Any, index: Any, vectors: FloatArray) -> FloatArray:
    """Apply the transforms of an index."""
    for i in range(index.chain.size()):
        vectors = faiss.downcast_VectorTransform(index.chain.at(i)).apply(np.ascontiguousarray(vectors, np.float32))
    return vectors


def _decode_rotated(faiss: Any, index: Any, vectors: FloatArray) -> FloatArray:
    with _single_threaded(faiss):
        codes = faiss.downcast_index(index.index)
        return np.asarray(codes.sa_decode(codes.sa_encode(_rotate(faiss, index, vectors))))


def _reconstruct(faiss: Any, index: Any, vectors: FloatArray) -> FloatArray:
    with _single_threaded(faiss):
        return np.asarray(index.sa_decode(index.sa_encode(np.ascontiguousarray(vectors, np.float32))))


def _train(faiss: Any, train: FloatArray, configs: Sequence[_Config], progress: OpenProgress) -> dict[_Config, bytes]:
    """Train quantizers in parallel, one per core, the slowest first; return them serialized."""

    def train_one(config: _Config) -> bytes:
        faiss.omp_set_num_threads(1)  # a setting of the calling thread
        index = _build_index(faiss, train.shape[1], *config)
        index.train(train)
        return bytes(faiss.serialize_index(index))

    trained = {}
    with (
        progress("fitting FAISS's quantizers", "quantizer") as advance,
        _single_threaded(faiss),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        futures = {pool.submit(train_one, config): config for config in configs[::-1]}
        for future in as_completed(futures):
            trained[futures[future]] = future.result()
            advance(len(trained), len(configs), {})
    return trained


def _build_index(faiss: Any, dimension: int, name: str, code_size: int) -> Any:
    index = faiss.IndexPQ(dimension, code_size, BITS)
    index.pq.cp.min_points_per_centroid = 1  # with fewer than 39, FAISS warns on standard error
    if name == PQ:
        return index
    rotation = faiss.OPQMatrix(dimension, code_size)
    for setting, value in OPQ_SETTINGS.items():
        setattr(rotation, setting, value)
    # The k-means of the rotation takes its settings, and with them the warning, from a quantizer of its own.
    inner = faiss.ProductQuantizer(dimension, code_size, BITS)
    inner.cp.min_points_per_centroid = 1
    rotation.pq = inner
    rotation.referenced_objects = [inner]  # the rotation holds only a pointer to it
    return faiss.IndexPreTransform(rotation, index)


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
