"""What search costs in compressed vectors: `python -m benchmarks.search --dataset stsb`.

Nothing is encoded for it: the dataset's cached sentence vectors are drawn with replacement until there are as many as
asked for, each moved by noise of half its length in a direction of its own and brought back to length 1, and so are the
queries. So there are groups of near vectors, as of sentences that say the same; how time goes with the dimension does
not depend on it, but the share that is kept belongs to these vectors and to no corpus.

Every index is FAISS's. Ours at int8 is searched by the distance of its codes, at binary by the bits that differ, all
else by the inner product. Queries come one at a time, as to a server, and again all at once; that they are compressed
first is not counted. Indexes take turns, and times are ratios to the flat index of all numbers in the same round.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
import torch

from twinsqueeze.cache import Cache
from twinsqueeze.embeddings import embed_pairs, open_encoder
from twinsqueeze.metrics import NEIGHBOURS
from twinsqueeze.pairs import load_pairs
from twinsqueeze.precision import int8_ranges, quantise
from twinsqueeze.recipe import Recipe
from twinsqueeze.training import fit

NOISE = 0.5
LINKS = 32
LINK_BYTES = 2 * LINKS * 4  # of a vector on HNSW's lowest level
HNSW_BREADTH = 64
# Many queries of 32 numbers are searched five times as fast by matrix products, which FAISS 1.15 does for them only
# when it is told that few queries are enough; a single query is faster without.
PRODUCTS_FROM = 20

Vectors = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Contender:
    """An index with its vectors in it.

    Attributes:
        name: As printed.
        bytes: A vector, links included.
        index: FAISS's.
        queries: As the index takes them.
        built: Seconds for training and adding.
        alone: Seconds a query of every round, one at a time.
        together: The same, all at once.
    """

    name: str
    bytes: int
    index: Any
    queries: Vectors
    built: float
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)

    def time(self, one_at_a_time: int) -> None:
        """Adds a round."""
        start = time.perf_counter()
        for i in range(one_at_a_time):
            self.index.search(self.queries[i : i + 1], NEIGHBOURS)
        self.alone.append((time.perf_counter() - start) / one_at_a_time)
        usual = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = PRODUCTS_FROM
        start = time.perf_counter()
        self.index.search(self.queries, NEIGHBOURS)
        self.together.append((time.perf_counter() - start) / len(self.queries))
        faiss.cvar.distance_compute_blas_threshold = usual


def corpus(vectors: Vectors, count: int, seed: int) -> Vectors:
    """`count` unit vectors, (count, d) float32, each near one of `vectors`."""
    generator = np.random.default_rng(seed)
    drawn = vectors[generator.integers(len(vectors), size=count)]
    drawn += generator.standard_normal(drawn.shape, np.float32) * np.float32(NOISE / drawn.shape[1] ** 0.5)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def contenders(
    train: Vectors, wide: Vectors, asked: Vectors, compress: Callable[[Vectors], Vectors]
) -> list[Contender]:
    """Every index, filled.

    Args:
        train: (N, d), the distinct train sentences.
        wide: (V, d), what is searched.
        asked: (Q, d), the queries.
        compress: From d to dim numbers.
    """
    narrow, queries = compress(wide), compress(asked)
    dimension, dim = wide.shape[1], narrow.shape[1]
    ranges = int8_ranges(compress(train))
    codes = [quantise(v, "int8", ranges).astype(np.float32) for v in (narrow, queries)]
    bits = [quantise(v, "ubinary") for v in (narrow, queries)]
    centre = train.mean(0)
    signs = [quantise(v - centre, "ubinary") for v in (wide, asked)]
    inner = faiss.METRIC_INNER_PRODUCT
    found = []

    def build(name: str, size: int, index: Any, stored: Vectors, queries: Vectors) -> None:
        start = time.perf_counter()
        if not index.is_trained:
            index.train(train)
        index.add(stored)
        found.append(Contender(name, size, index, queries, time.perf_counter() - start))
        print(f"built {name} in {found[-1].built:.1f} s", flush=True)

    signed = faiss.ScalarQuantizer.QT_8bit_direct_signed
    build(f"flat, {dimension} numbers", 4 * dimension, faiss.IndexFlatIP(dimension), wide, asked)
    build(f"flat, ours, {dim}, float32", 4 * dim, faiss.IndexFlatIP(dim), narrow, queries)
    build(f"flat, ours, {dim}, int8", dim, faiss.IndexScalarQuantizer(dim, signed), *codes)
    build(f"flat, ours, {dim}, binary", bits[0].shape[1], faiss.IndexBinaryFlat(8 * bits[0].shape[1]), *bits)
    build(f"flat, signs of {dimension}", dimension // 8, faiss.IndexBinaryFlat(dimension), *signs)
    build("flat, FAISS PQ, 32 bytes", 32, faiss.IndexPQ(dimension, 32, 8, inner), wide, asked)
    for name, size, stored, queried in (
        (f"HNSW, {dimension} numbers", dimension, wide, asked),
        (f"HNSW, ours, {dim}, float32", dim, narrow, queries),
    ):
        index = faiss.IndexHNSWFlat(size, LINKS, inner)
        index.hnsw.efSearch = HNSW_BREADTH
        build(name, 4 * size + LINK_BYTES, index, stored, queried)
    return found


def spread(theirs: list[float], ours: list[float]) -> str:
    """How many times as fast as they are: the median of the rounds, and their range."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


@click.command()
@click.option("--dataset", default="stsb", show_default=True, help="As for `twinsqueeze main`.")
@click.option("--dim", default=32, show_default=True, help="Numbers in a compressed vector.")
@click.option("--epochs", default=200, show_default=True, help="Of the compressor's training.")
@click.option("--vectors", default=200_000, show_default=True, help="How many are searched.")
@click.option("--queries", default=1_000, show_default=True, help="How many are asked all at once.")
@click.option("--alone", default=100, show_default=True, help="How many of them are asked one at a time.")
@click.option("--rounds", default=5, show_default=True, help="Whose median is shown.")
@click.option("--threads", default=1, show_default=True, help="FAISS's.")
def main(
    dataset: str, dim: int, epochs: int, vectors: int, queries: int, alone: int, rounds: int, threads: int
) -> None:
    """Prints for every index its bytes a vector, its speed against all numbers, and what it finds of the nearest."""
    name = str(Path(dataset).resolve()) if Path(dataset).is_dir() else dataset
    recipe = Recipe(dataset=name, dim=dim, epochs=epochs)
    encoded = embed_pairs(load_pairs(name).splits, open_encoder(recipe.encoder), Cache())
    (fitted,) = fit([recipe], encoded["train"], encoded["dev"])
    train = encoded["train"].embeddings

    def compress(wide: Vectors) -> Vectors:
        return fitted.compressor.compress(torch.from_numpy(wide)).numpy()

    sentences = np.concatenate([split.embeddings for split in encoded.values()])
    faiss.omp_set_num_threads(threads)
    found = contenders(train, corpus(sentences, vectors, 0), corpus(sentences, queries, 1), compress)
    for _ in range(rounds):
        for contender in found:
            contender.time(alone)

    exact = found[0]
    _, nearest = exact.index.search(exact.queries, NEIGHBOURS)
    print(f"{vectors:,} vectors, {queries:,} queries, FAISS {faiss.__version__}, {threads} thread(s), {rounds} rounds")
    print(f"{'':28} {'bytes':>6}  {'times as fast, one at a time':>28}  {'all at once':>24}  {'nearest kept':>12}")
    for contender in found:
        _, indices = contender.index.search(contender.queries, NEIGHBOURS)
        kept = (nearest[:, :, None] == indices[:, None, :]).any(-1).mean()
        print(
            f"{contender.name:28} {contender.bytes:6,}  {spread(exact.alone, contender.alone):>28}  "
            f"{spread(exact.together, contender.together):>24}  {kept:12.2f}"
        )
    wide, narrow = found[-2:]
    print(
        f"HNSW, ours against HNSW of all numbers: one at a time {spread(wide.alone, narrow.alone)}, all at once", end=""
    )
    print(f" {spread(wide.together, narrow.together)}, built in {narrow.built / wide.built:.2f} of the time")
    took = [1e3 * statistics.median(seconds) for seconds in (exact.alone, exact.together)]
    print(f"flat, all numbers: {took[0]:.2f} ms a query, one at a time, and {took[1]:.2f} ms all at once")


if __name__ == "__main__":
    main()
