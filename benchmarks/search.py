"""What search costs in compressed vectors: `python -m benchmarks.search --dataset stsb`.

Trains a compressor and times what `evaluate` times with `search_vectors`, in one process, with all rounds shown as
ratios to the flat index of all numbers in the same round (`twinsqueeze.search_cost` says what is searched).
"""

import statistics
from pathlib import Path

import click
import faiss
import numpy as np
import torch

from twinsqueeze.data.encoder import embed_pairs, resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.model.precision import int8_calibration_ranges
from twinsqueeze.recipe import Recipe
from twinsqueeze.search_cost import measure
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.utils.disk_cache import DiskCache


def spread(ratios: list[float]) -> str:
    """The median of the rounds, and their range."""
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
    encoded = embed_pairs(load_pairs(name).splits, resolve_encoder(recipe.encoder), DiskCache())
    (fitted,) = train_replicas([recipe], encoded["train"], encoded["dev"])
    train = encoded["train"].embeddings
    found = measure(
        train,
        np.concatenate([split.embeddings for split in encoded.values()]),
        fitted.compressor,
        int8_calibration_ranges(fitted.compressor.compress(torch.from_numpy(train)).numpy()),
        vectors=vectors,
        queries=queries,
        alone=alone,
        rounds=rounds,
        threads=threads,
        on_progress=lambda what: print(what, flush=True),
    )
    exact, by_key = found[0], {cost.key: cost for cost in found}
    print(f"{vectors:,} vectors, {queries:,} queries, FAISS {faiss.__version__}, {threads} thread(s), {rounds} rounds")
    print(f"{'':36} {'bytes':>6}  {'times as fast, one at a time':>28}  {'all at once':>24}  {'nearest found':>13}")
    for cost in found:
        alone_ratios, together_ratios = cost.times_as_fast(exact)
        print(
            f"{cost.name:36} {cost.bytes:6,}  {spread(alone_ratios):>28}  {spread(together_ratios):>24}  "
            f"{cost.found:13.2f}"
        )
    wide, narrow = by_key["hnsw_uncompressed"], by_key["hnsw_float32"]
    ratios = [spread(values) for values in narrow.times_as_fast(wide)]
    built = narrow.build_seconds / wide.build_seconds
    print(f"HNSW, trained against all numbers: one at a time {ratios[0]}, all at once {ratios[1]}, ", end="")
    print(f"built in {built:.2f} of its time")
    together = 1e3 * statistics.median(exact.together)
    print(f"flat, all numbers: {exact.milliseconds():.2f} ms a query, one at a time, and {together:.2f} ms all at once")


if __name__ == "__main__":
    main()
