"""What a search costs in compressed vectors, timed with FAISS; it needs the extra `search`.

Nothing is encoded for it: sentence vectors that are there are drawn with replacement until there are as many as asked
for, each moved by noise of half its length in a direction of its own and brought back to length 1, and so are the
queries. So there are groups of near vectors, as of sentences that say the same; how time goes with the dimension does
not depend on it, but the share that is found belongs to these vectors and to no corpus.

Ours at int8 is searched by the distance of its codes, at binary by the bits that differ, all else by the inner product.
Queries come one at a time, as to a server, and again all at once; that they are compressed first is not counted.
Indexes take turns, so that what else the machine does falls on all of them.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.faiss_baselines import BITS, CENTROIDS, faiss_version
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import Int8Ranges, quantize
from twinsqueeze.recipe import TIMED_QUANTISER
from twinsqueeze.utils.similarity import NEIGHBOURS

NOISE = 0.5
LINKS = 32
LINK_BYTES = 2 * LINKS * 4  # of a vector on HNSW's lowest level
HNSW_BREADTH = 64
# Many queries of 32 numbers are searched five times as fast by matrix products, which FAISS 1.15 does for them only
# when it is told that few queries are enough; a single query is faster without.
PRODUCTS_FROM = 20
# Fewer fit the processor's caches.
LEAST_VECTORS = 1000

Vectors = np.ndarray[Any, np.dtype[Any]]


@dataclass
class IndexCost:
    """An index and what it costs.

    Attributes:
        key: For a metric's name: flat or hnsw, and what it holds.
        name: For people.
        bytes: Of a vector, links included.
        build_seconds: For training and adding.
        alone: Seconds a query of every round, one at a time.
        together: The same, all at once.
        found: Share of the ten nearest of the uncompressed vectors among the ten that it gives.
    """

    key: str
    name: str
    bytes: int
    build_seconds: float
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    found: float = float("nan")

    def milliseconds(self) -> float:
        """Of a query that comes alone, the median of the rounds."""
        return 1e3 * statistics.median(self.alone)

    def times_as_fast(self, other: "IndexCost") -> tuple[list[float], list[float]]:
        """How many times as fast as another, in every round: one query at a time, and all at once."""
        alone = [theirs / ours for theirs, ours in zip(other.alone, self.alone, strict=True)]
        return alone, [theirs / ours for theirs, ours in zip(other.together, self.together, strict=True)]


def check_searched(vectors: int) -> None:
    """Refuses a search that can't be timed, before anything long begins.

    Raises:
        InputError: If FAISS is not installed, or a search in so few vectors says nothing.
    """
    if not faiss_version():
        raise InputError("a search is timed with FAISS, which is not installed: pip install faiss-cpu")
    if vectors < LEAST_VECTORS:
        raise InputError(
            f"search_vectors must be 0, for no search, or at least {LEAST_VECTORS:,}, not {vectors:,}: 200,000 tells "
            "indexes apart"
        )


def check_train(count: int) -> None:
    """Refuses train sentences that are too few for FAISS's quantisers.

    Raises:
        InputError: If they are.
    """
    if count < CENTROIDS:
        raise InputError(f"FAISS's quantisers need {CENTROIDS} distinct train sentences, and there are {count}")


def measure(
    train: Vectors,
    sentences: Vectors,
    compressor: CompressorNetwork,
    ranges: Int8Ranges | None,
    *,
    vectors: int = 200_000,
    queries: int = 1000,
    alone: int = 100,
    rounds: int = 5,
    threads: int = 1,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[IndexCost]:
    """Times every index; the first is the flat one of all numbers.

    Args:
        train: (N, d) float32, unit length, what FAISS's quantiser is trained on.
        sentences: (M, d) float32, what the searched vectors are drawn around.
        compressor: On the CPU; indexes hold its vectors at the precisions that it is kept in.
        ranges: What they are scaled by for int8; None leaves int8 out.
        vectors: How many are searched.
        queries: How many are asked all at once.
        alone: How many of them are asked one at a time.
        rounds: How often each index is timed.
        threads: FAISS's.
        on_progress: Told what is done now.

    Raises:
        InputError: As `check_searched` and `check_train`.
    """
    check_searched(vectors)
    check_train(len(train))
    import faiss  # noqa: PLC0415 - an extra

    with _threads(faiss, threads):
        wide, asked = corpus(sentences, vectors, 0), corpus(sentences, queries, 1)
        built = []
        for contender in _contenders(faiss, train, wide, asked, compressor, ranges):
            on_progress(f"built {contender.cost.name}")
            built.append(contender)
        for number in range(1, rounds + 1):
            for contender in built:
                contender.time(faiss, alone)
                on_progress(f"round {number} of {rounds}, {contender.cost.name}")
        nearest = built[0].answers()
        for contender in built:
            contender.cost.found = float((nearest[:, :, None] == contender.answers()[:, None, :]).any(-1).mean())
    return [contender.cost for contender in built]


def corpus(vectors: Vectors, count: int, seed: int) -> Vectors:
    """`count` unit vectors, (count, d) float32, each near one of `vectors`."""
    generator = np.random.default_rng(seed)
    drawn: Vectors = vectors[generator.integers(len(vectors), size=count)]
    drawn += generator.standard_normal(drawn.shape, np.float32) * np.float32(NOISE / drawn.shape[1] ** 0.5)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


@dataclass
class _Contender:
    cost: IndexCost
    index: Any
    queries: Vectors

    def time(self, faiss: Any, one_at_a_time: int) -> None:
        asked = self.queries[:one_at_a_time]
        start = time.perf_counter()
        for i in range(len(asked)):
            self.index.search(asked[i : i + 1], NEIGHBOURS)
        self.cost.alone.append((time.perf_counter() - start) / len(asked))
        usual = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = PRODUCTS_FROM
        start = time.perf_counter()
        self.index.search(self.queries, NEIGHBOURS)
        self.cost.together.append((time.perf_counter() - start) / len(self.queries))
        faiss.cvar.distance_compute_blas_threshold = usual

    def answers(self) -> Vectors:
        _, rows = self.index.search(self.queries, NEIGHBOURS)
        found: Vectors = rows
        return found


def _contenders(
    faiss: Any, train: Vectors, wide: Vectors, asked: Vectors, compressor: CompressorNetwork, ranges: Int8Ranges | None
) -> Iterator[_Contender]:
    """Every index, filled; the uncompressed flat one first."""
    dimension, dim = wide.shape[1], compressor.dim
    inner = faiss.METRIC_INNER_PRODUCT
    narrow, queries = (compressor.compress(torch.from_numpy(v)).numpy() for v in (wide, asked))

    def filled(key: str, name: str, size: int, index: Any, stored: Vectors, queries: Vectors) -> _Contender:
        start = time.perf_counter()
        if not index.is_trained:
            index.train(train)
        index.add(stored)
        return _Contender(IndexCost(key, name, size, time.perf_counter() - start), index, queries)

    def hnsw(key: str, name: str, stored: Vectors, queries: Vectors) -> _Contender:
        index = faiss.IndexHNSWFlat(stored.shape[1], LINKS, inner)
        index.hnsw.efSearch = HNSW_BREADTH
        return filled(key, name, 4 * stored.shape[1] + LINK_BYTES, index, stored, queries)

    all_numbers = f"{dimension} numbers"
    yield filled("flat_uncompressed", f"flat, {all_numbers}", 4 * dimension, faiss.IndexFlatIP(dimension), wide, asked)
    centre = train.mean(0)
    signs = [quantize(v - centre, "ubinary") for v in (wide, asked)]
    yield filled(
        "flat_signs", f"flat, signs of {dimension}", signs[0].shape[1],
        faiss.IndexBinaryFlat(8 * signs[0].shape[1]), *signs,
    )  # fmt: skip
    if dimension % TIMED_QUANTISER == 0:
        quantiser = faiss.IndexPQ(dimension, TIMED_QUANTISER, BITS, inner)
        yield filled("flat_pq", f"flat, FAISS PQ, {TIMED_QUANTISER} bytes", TIMED_QUANTISER, quantiser, wide, asked)

    ours = f"trained, {dim} numbers"
    if compressor.precision == "float32":
        yield filled("flat_float32", f"flat, {ours}, float32", 4 * dim, faiss.IndexFlatIP(dim), narrow, queries)
    if compressor.precision == "float32" and ranges:
        signed = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_direct_signed)
        codes = [quantize(v, "int8", ranges).astype(np.float32) for v in (narrow, queries)]
        yield filled("flat_int8", f"flat, {ours}, int8", dim, signed, *codes)
    if compressor.precision in {"float32", "binary"}:
        bits = [quantize(v, "ubinary") for v in (narrow, queries)]
        width = bits[0].shape[1]
        yield filled("flat_binary", f"flat, {ours}, binary", width, faiss.IndexBinaryFlat(8 * width), *bits)
    if compressor.codebooks is not None:
        codebooks = compressor.codebooks.numpy()
        parts = len(codebooks)
        index = faiss.IndexPQ(dim, parts, BITS, inner)
        if codebooks.shape[1] == CENTROIDS:  # a few train sentences make fewer, which FAISS has no room for
            faiss.copy_array_to_vector(np.ascontiguousarray(codebooks).ravel(), index.pq.centroids)
            index.is_trained = True
            yield filled("flat_product", f"flat, {ours}, product codes", parts, index, narrow, queries)
    yield hnsw("hnsw_uncompressed", f"HNSW, {all_numbers}", wide, asked)
    if compressor.precision == "float32":
        yield hnsw("hnsw_float32", f"HNSW, {ours}", narrow, queries)


@contextmanager
def _threads(faiss: Any, count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
