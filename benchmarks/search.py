"""Time searches in compressed vectors with FAISS: `python -m benchmarks.search --dataset stsb`.

Trains a compressor with the published recipe, or loads a saved one (`--model`), and searches its vectors in flat and
HNSW indexes, beside the uncompressed vectors, their signs and FAISS's product quantizer. Needs the extra `search`.

The corpus and the queries are sampled around the dataset's sentence vectors, so that no text has to be encoded. Search
time does not depend on this; the recall of the exact ten nearest neighbors belongs to this corpus and to no other.
The time to compress queries is not included. Indexes take turns in every round, so that other load hits all of them.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click
import faiss
import numpy as np
import torch

from twinsqueeze.data.embedding import embed_splits
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import Int8Ranges, int8_calibration_ranges, quantize
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry.model_loader import resolve_model
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.utils.disk_cache import DiskCache

NUM_NEIGHBORS = 10
NOISE_NORM = 0.5  # of the noise added to a unit vector
PQ_BYTES = 32
BITS = 8
CENTROIDS = 2**BITS
HNSW_LINKS = 32
HNSW_LINK_BYTES = 2 * HNSW_LINKS * 4  # per vector, on the lowest level
HNSW_EF_SEARCH = 64
# FAISS 1.15 searches batches of 32-dim queries five times as fast with BLAS, and single queries faster without it.
BLAS_THRESHOLD = 20

Vectors = np.ndarray[Any, np.dtype[Any]]


@dataclass
class TimedIndex:
    """A filled FAISS index, its queries and its search times.

    Attributes:
        key: Short unique name, such as "flat_int8".
        name: Name to print.
        bytes: Bytes per vector, HNSW links included.
        index: The FAISS index.
        queries: (Q, d) queries in the form that the index takes.
        fill_seconds: Seconds to add the vectors.
        single_query: Seconds per query in every round, one query at a time.
        batched: Seconds per query in every round, all queries in one call.
        recall: Share of the ten exact nearest neighbors among the ten vectors found.
    """

    key: str
    name: str
    bytes: int
    index: Any
    queries: Vectors
    fill_seconds: float = 0.0
    single_query: list[float] = field(default_factory=list)
    batched: list[float] = field(default_factory=list)
    recall: float = float("nan")

    def fill(self, corpus: Vectors) -> "TimedIndex":
        """Add all vectors and return the index."""
        start = time.perf_counter()
        self.index.add(corpus)
        self.fill_seconds = time.perf_counter() - start
        return self

    def time_round(self, single_queries: int) -> None:
        """Time one round: some queries one at a time, then all of them in one call."""
        singles = [self.queries[i : i + 1] for i in range(min(single_queries, len(self.queries)))]
        start = time.perf_counter()
        for query in singles:
            self.index.search(query, NUM_NEIGHBORS)
        self.single_query.append((time.perf_counter() - start) / len(singles))
        default = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
        start = time.perf_counter()
        self.index.search(self.queries, NUM_NEIGHBORS)
        self.batched.append((time.perf_counter() - start) / len(self.queries))
        faiss.cvar.distance_compute_blas_threshold = default

    def find_neighbors(self) -> Vectors:
        """(Q, 10) row numbers of the vectors found."""
        _, rows = self.index.search(self.queries, NUM_NEIGHBORS)
        neighbors: Vectors = rows
        return neighbors

    def speedups(self, other: "TimedIndex") -> tuple[list[float], list[float]]:
        """Speed relative to another index in every round: one query at a time, and batched."""
        single = [b / a for a, b in zip(self.single_query, other.single_query, strict=True)]
        return single, [b / a for a, b in zip(self.batched, other.batched, strict=True)]


def sample_corpus(vectors: Vectors, count: int, seed: int) -> Vectors:
    """(count, d) float32 unit vectors, each near one of `vectors`."""
    generator = np.random.default_rng(seed)
    sample: Vectors = vectors[generator.integers(len(vectors), size=count)]
    sample += generator.standard_normal(sample.shape, np.float32) * np.float32(NOISE_NORM / sample.shape[1] ** 0.5)
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    return sample


def build_indexes(
    train: Vectors, corpus: Vectors, queries: Vectors, compressor: CompressorNetwork, ranges: Int8Ranges | None
) -> Iterator[TimedIndex]:
    """Yield filled indexes; the exact one, which is flat and uncompressed, first.

    Args:
        train: (N, d) float32 vectors that FAISS's product quantizer is trained on.
        corpus: (V, d) float32 unit vectors to search.
        queries: (Q, d) float32 unit vectors.
        compressor: Its vectors are indexed at every precision that it supports.
        ranges: Calibration ranges for int8; None leaves int8 out.
    """
    inputs = corpus.shape[1]
    yield _flat("flat_uncompressed", f"flat, {inputs} floats", faiss.IndexFlatIP(inputs), corpus, queries)
    center = train.mean(0)
    yield _binary("flat_signs", f"flat, signs of {inputs} dims", corpus - center, queries - center)
    if inputs % PQ_BYTES == 0 and len(train) >= CENTROIDS:
        index = faiss.IndexPQ(inputs, PQ_BYTES, BITS, faiss.METRIC_INNER_PRODUCT)
        index.train(train)
        yield _flat("flat_pq", f"flat, FAISS PQ, {PQ_BYTES} bytes", index, corpus, queries)
    yield _hnsw("hnsw_uncompressed", f"HNSW, {inputs} floats", corpus, queries)

    dim = compressor.dim
    corpus, queries = (compressor.compress(torch.from_numpy(vectors)).numpy() for vectors in (corpus, queries))
    if compressor.precision == "float32":
        yield _flat("flat_float32", f"flat, compressed, {dim} floats", faiss.IndexFlatIP(dim), corpus, queries)
        yield _hnsw("hnsw_float32", f"HNSW, compressed, {dim} floats", corpus, queries)
        if ranges:
            quantizer = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_direct_signed)
            codes = [quantize(vectors, "int8", ranges).astype(np.float32) for vectors in (corpus, queries)]
            yield _flat("flat_int8", f"flat, compressed, {dim} int8", quantizer, *codes)
    if compressor.codebooks is None:
        yield _binary("flat_binary", f"flat, compressed, {dim} bits", corpus, queries)
    elif compressor.codebooks[:, 0].numel() == dim and compressor.codebooks.shape[1] == CENTROIDS:  # as IndexPQ has
        codebooks = compressor.codebooks.numpy()
        index = faiss.IndexPQ(dim, len(codebooks), BITS, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.ascontiguousarray(codebooks).ravel(), index.pq.centroids)
        index.is_trained = True
        yield _flat("flat_product", f"flat, compressed, {len(codebooks)} codes", index, corpus, queries)


def _flat(key: str, name: str, index: Any, corpus: Vectors, queries: Vectors) -> TimedIndex:
    return TimedIndex(key, name, index.sa_code_size(), index, queries).fill(corpus)


def _binary(key: str, name: str, corpus: Vectors, queries: Vectors) -> TimedIndex:
    bits = [quantize(vectors, "ubinary") for vectors in (corpus, queries)]
    size = bits[0].shape[1]
    return TimedIndex(key, name, size, faiss.IndexBinaryFlat(8 * size), bits[1]).fill(bits[0])


def _hnsw(key: str, name: str, corpus: Vectors, queries: Vectors) -> TimedIndex:
    dim = corpus.shape[1]
    index = faiss.IndexHNSWFlat(dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = HNSW_EF_SEARCH
    return TimedIndex(key, name, 4 * dim + HNSW_LINK_BYTES, index, queries).fill(corpus)


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Set FAISS's number of threads for a block."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def time_indexes(
    indexes: Iterator[TimedIndex], single_queries: int, rounds: int, on_progress: Callable[[str], None] = lambda _: None
) -> list[TimedIndex]:
    """Build the indexes, time them in turn and fill in their recall of the first one's neighbors."""
    built = list(indexes)
    for number in range(1, rounds + 1):
        for index in built:
            index.time_round(single_queries)
        on_progress(f"round {number} of {rounds}")
    exact = built[0].find_neighbors()
    for index in built:
        index.recall = float((exact[:, :, None] == index.find_neighbors()[:, None, :]).any(-1).mean())
    return built


def format_ratios(ratios: list[float]) -> str:
    """The median of the rounds, and their range."""
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def print_report(indexes: list[TimedIndex]) -> None:
    """Print a row per index, its speed relative to the first, and how long the first takes."""
    exact = indexes[0]
    print(
        f"{'index':36} {'bytes':>6} {'speedup, single queries':>24} {'speedup, batched':>24} {'recall@10':>9}  fill s"
    )
    for index in indexes:
        single, batched = map(format_ratios, index.speedups(exact))
        print(
            f"{index.name:36} {index.bytes:6,} {single:>24} {batched:>24} {index.recall:9.2f} {index.fill_seconds:7.1f}"
        )
    milliseconds = [1e3 * statistics.median(seconds) for seconds in (exact.single_query, exact.batched)]
    print(f"{exact.name}: {milliseconds[0]:.2f} ms per single query, {milliseconds[1]:.2f} ms per batched query")


@click.command()
@click.option("--dataset", default="stsb", show_default=True, help="Sentence pairs, as for `twinsqueeze main`.")
@click.option("--model", help="Compressor to time: a run id, a model URI or a folder.  [default: train one]")
@click.option("--dim", default=32, show_default=True, help="Output dimension of the trained compressor.")
@click.option("--epochs", default=200, show_default=True, help="Training epochs.")
@click.option("--vectors", type=click.IntRange(1000), default=200_000, show_default=True, help="Vectors to search.")
@click.option("--queries", default=1_000, show_default=True, help="Queries in a batch.")
@click.option("--single-queries", default=100, show_default=True, help="Queries searched one at a time.")
@click.option("--rounds", default=5, show_default=True, help="Timed rounds; medians and ranges are printed.")
@click.option("--threads", default=1, show_default=True, help="FAISS threads.")
def main(dataset: str, model: str | None, dim: int, epochs: int, **options: int) -> None:
    """Compare bytes per vector, search speed and recall of FAISS indexes, compressed and uncompressed."""
    encoded = embed_splits(load_pairs(dataset).splits, resolve_encoder(Recipe().encoder), DiskCache())
    if model:
        compressor, _ = read_checkpoint(resolve_model(model).checkpoint, model)
    else:
        compressor = train_replicas([Recipe(dim=dim, epochs=epochs)], encoded["train"], encoded["dev"])[0].compressor
    train = encoded["train"].embeddings
    sentences = np.concatenate([split.embeddings for split in encoded.values()])
    corpus, queries = (sample_corpus(sentences, options[name], i) for i, name in enumerate(("vectors", "queries")))
    ranges = int8_calibration_ranges(compressor.compress(torch.from_numpy(train)).numpy())
    with faiss_threads(options["threads"]):
        indexes = build_indexes(train, corpus, queries, compressor, ranges)
        timed = time_indexes(
            indexes, options["single_queries"], options["rounds"], lambda text: print(text, flush=True)
        )
    print(f"FAISS {faiss.__version__}, " + ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in options.items()))
    print_report(timed)


if __name__ == "__main__":
    main()
