"""FAISS's product quantisers, trained once for equal vectors; they need the extra `search`."""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np

from twinsqueeze.types import FloatArray
from twinsqueeze.utils.disk_cache import DiskCache

OnProgress = Callable[[int, int], None]
# Bytes of a vector, one for each part that it is cut into.
SIZES = (16, 32, 64)
BITS = 8
CENTROIDS = 2**BITS
# FAISS's default for the rotation of OPQ, 50 iterations of 40 and then 4 of k-means, takes three times as long and
# keeps hardly more: on STS-B's test 0.57 of the neighbours instead of 0.56 in 16 bytes, 0.68 both ways in 32.
ROTATION = {"niter": 25, "niter_pq_0": 10, "niter_pq": 2}
# Part of the cache key: raise it when a quantiser is trained in another way.
CACHE_VERSION = "1"


def faiss_version() -> str | None:
    """That of FAISS, None where it is not installed."""
    return version("faiss-cpu") if importlib.util.find_spec("faiss") else None


def product_quantizers(
    train: FloatArray, cache: DiskCache, on_training: Callable[[str], None]
) -> Iterator[tuple[str, int, Callable[[FloatArray], FloatArray]]]:
    """PQ (Jégou et al. 2011) and OPQ (Ge et al. 2013) at 16, 32 and 64 bytes; none where FAISS is not installed.

    Args:
        train: (N, d) float32 that they are trained on. There is a quantiser of S bytes where S divides d and N is at
            least 256, one with a rotation where N is at least d.
        cache: Where trained quantisers are kept.
        on_training: Told the names of those that the cache lacks, before they are trained, which takes up to a minute.

    Yields:
        The name without its size, its bytes a vector, and a function from vectors to what is left of them in so many.
    """
    wanted = SIZES if faiss_version() and len(train) >= CENTROIDS else ()
    train = np.ascontiguousarray(train, np.float32)
    digest = hashlib.sha256(train.data).hexdigest()
    keys = {}
    # FAISS begins a rotation with the vectors' own when they are fewer than their numbers, and then aborts the process.
    for rotated in (False, True) if len(train) >= train.shape[1] else (False,):
        for size in (size for size in wanted if train.shape[1] % size == 0):
            settings = f"{CACHE_VERSION}\0{faiss_version()}\0{ROTATION}\0{size}\0{rotated}\0{digest}"
            keys[size, rotated] = f"quantiser-{hashlib.sha256(settings.encode()).hexdigest()}"
    kept = {what: payload for what, key in keys.items() if (payload := cache.get(key)) is not None}
    if missing := [what for what in keys if what not in kept]:
        for size, rotated in missing:
            on_training(f"{_name(rotated)}, {size} bytes")
        for what, payload in _train(train, missing).items():
            cache.put(keys[what], payload)
            kept[what] = payload
    for size, rotated in keys:
        yield _name(rotated), size, _transform(kept[size, rotated])


def _name(rotated: bool) -> str:
    return f"FAISS {'OPQ+' if rotated else ''}PQ"


def _transform(payload: bytes) -> Callable[[FloatArray], FloatArray]:
    import faiss  # noqa: PLC0415 - an extra

    index = faiss.deserialize_index(np.frombuffer(payload, np.uint8))

    def transform(vectors: FloatArray) -> FloatArray:
        with _single_threaded(faiss):
            restored: FloatArray = index.sa_decode(index.sa_encode(np.ascontiguousarray(vectors, np.float32)))
        return restored

    return transform


def _train(train: FloatArray, wanted: Sequence[tuple[int, bool]]) -> dict[tuple[int, bool], bytes]:
    """Quantisers of these sizes, rotated or not: as many are trained at once as there are cores, the longest first."""
    import faiss  # noqa: PLC0415 - an extra

    def trained(what: tuple[int, bool]) -> bytes:
        faiss.omp_set_num_threads(1)  # of the thread that calls it
        index = _untrained(faiss, train.shape[1], *what)
        index.train(train)
        payload: bytes = faiss.serialize_index(index).tobytes()
        return payload

    longest_first = sorted(wanted, key=lambda what: what[::-1], reverse=True)
    with _single_threaded(faiss), ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(longest_first, pool.map(trained, longest_first), strict=True))


def _untrained(faiss: Any, dimension: int, size: int, rotated: bool) -> Any:
    index = faiss.IndexPQ(dimension, size, BITS)
    index.pq.cp.min_points_per_centroid = 1  # below 39 it warns on standard error
    if not rotated:
        return index
    rotation = faiss.OPQMatrix(dimension, size)
    for name, value in ROTATION.items():
        setattr(rotation, name, value)
    # Its k-means would warn as well: it takes this quantiser's settings.
    inner = faiss.ProductQuantizer(dimension, size, BITS)
    inner.cp.min_points_per_centroid = 1
    rotation.pq = inner
    rotation.referenced_objects = [inner]  # it points at it and does not own it
    return faiss.IndexPreTransform(rotation, index)


@contextmanager
def _single_threaded(faiss: Any) -> Iterator[None]:
    """FAISS on one thread: the result does not depend on how many there are, and no thread waits for a busy core.

    Distances are matrix products from 20 vectors on, as they were before FAISS 1.15, whose own way takes ten times as
    long for the short parts of vectors.
    """
    threads, least = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = 20
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = least
