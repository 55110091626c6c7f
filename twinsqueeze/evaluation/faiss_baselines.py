"""FAISS's quantizers as baselines, fitted once per set of vectors; they need the extra `search`."""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from threading import Event, Lock
from typing import Any, NamedTuple

import numpy as np

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.evaluation.dense_baseline import DENSE_DIM, fit_dense
from twinsqueeze.evaluation.faiss_fitting import (
    OPQ_ITERATIONS,
    FaissBaseline,
    fit_serialized,
    import_faiss,
    single_threaded,
)
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.console import OpenProgress
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.worker_pool import WorkerPool

PQ, OPQ = "FAISS PQ", "FAISS OPQ+PQ"
# Dimensions that product quantizers of all dimensions divide by.
CODE_SIZES = (16, 32, 64)
# Fewer vectors are fitted to in the time that a worker process takes to start. Workers yield to the training.
MIN_ROWS_FOR_WORKER, NICENESS = 5_000, 10
# Part of every cache key: increase it when quantizers are fitted differently.
CACHE_VERSION = "2"
Transform = Callable[[FloatArray], FloatArray]
_LOCK = Lock()  # of FAISS's settings, some of which belong to the process


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


def quantizers_to_fit(train: EncodedSplit, pairs_digest: str | None) -> list[FaissBaseline]:
    """Return all that are fitted on the sentences of `train`, the longest fits last; one needs scores with a digest."""
    baselines = [FaissBaseline(*quantizer, train.embeddings) for quantizer in QUANTIZERS]
    if pairs_digest:
        layer = partial(fit_dense, train), DENSE_DIM, pairs_digest
        baselines.append(FaissBaseline("CoSENT, OPQ+PQ", "L2norm,PCA128,OPQ32,PQ32np", train.embeddings, *layer))
    return baselines


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

    keys = _cache_keys(baselines)
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


@contextmanager
def fitted_in_worker(baselines: Sequence[FaissBaseline], cache: DiskCache) -> Iterator[None]:
    """While the block runs, fit baselines that the cache lacks in a process of low priority, and cache them.

    The fit that runs at the end of the block is finished, or killed if the block raises. Baselines that are not fitted
    then are left to `fit_quantizers`, as all are with few vectors or a single core.
    """
    keys = _cache_keys(baselines) if faiss_version() and (os.cpu_count() or 1) > 1 else {}
    missing = [each for each, key in keys.items() if len(each.train) >= MIN_ROWS_FOR_WORKER and cache.get(key) is None]
    if not missing:
        yield
        return
    has_ended = Event()

    def fit_each() -> None:
        for baseline in reversed(missing):
            if has_ended.is_set():
                return
            try:
                cache.put(keys[baseline], pool.submit(fit_serialized, baseline.sampled()).result())
            except BrokenProcessPool:
                return

    with WorkerPool(1, import_faiss, NICENESS) as pool, ThreadPoolExecutor(1) as feeder:
        feeder.submit(fit_each)
        try:
            yield
        except BaseException:
            pool.kill()
            raise
        finally:
            has_ended.set()


def _cache_keys(baselines: Sequence[FaissBaseline]) -> dict[FaissBaseline, str]:
    """Return the keys of those that can be fitted."""
    arrays = {id(each.train): each.train for each in baselines}
    digests = {key: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for key, array in arrays.items()}
    return {each: _cache_key(each, digests[id(each.train)]) for each in baselines if each.can_be_fitted}


def _cache_key(baseline: FaissBaseline, digest: str) -> str:
    parts = CACHE_VERSION, faiss_version(), OPQ_ITERATIONS, baseline.factory, baseline.layer_digest, digest
    return f"quantizer-{hashlib.sha256(repr(parts).encode()).hexdigest()}"


def _fit_all(faiss: Any, baselines: Sequence[FaissBaseline], progress: OpenProgress) -> Mapping[FaissBaseline, bytes]:
    """Fit in parallel, one baseline per core, the last and longest first; return the indexes serialized."""
    fitted = {}
    with (
        progress("fitting FAISS's quantizers", "quantizer") as advance,
        single_threaded(faiss),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        futures = {pool.submit(fit_serialized, each): each for each in reversed(baselines)}
        for future in as_completed(futures):
            fitted[futures[future]] = future.result()
            advance(len(fitted), len(baselines), {})
    return fitted


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
    with _LOCK, single_threaded(faiss):
        codes = faiss.downcast_index(index.index)
        return np.asarray(codes.sa_decode(codes.sa_encode(_apply_transforms(faiss, index, vectors))))
