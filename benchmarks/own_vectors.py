"""Measures the training on vectors alone by their number: `python -m benchmarks.own_vectors`.

The vectors are made from real ones, the sentences of STS-B's train split: 0.7 of one, 0.3 of another, and Gaussian
noise of length 0.3, all at random, in a random orthonormal basis of the dimension. Each size is trained in a process of
its own, from reading the .npy file to the scores on dev; the baselines are left out. The vectors of a split beyond
`MAX_ROWS` are sampled, so that time and memory stop growing there but for reading the file. With several limits, their
effect on the neighbor recall shows if dev, a tenth of the vectors, has fewer rows than the lowest.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.results import report
from twinsqueeze import experiment, experiment_data
from twinsqueeze.data import rows_alone
from twinsqueeze.data.embedding import embed_splits
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.recipe import Recipe
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.disk_cache import DiskCache

CORES = 2
BLOCK = 10_000


@click.command()
@click.option("--sizes", default="10000,100000,1000000", show_default=True, help="Numbers of vectors.")
@click.option("--dim", default=768, show_default=True, help="Dimension of the vectors.")
@click.option("--recipe", default="vectors", show_default=True, help="Preset.")
@click.option("--dataset", default="stsb", show_default=True, help="Sentences whose vectors are mixed.")
@click.option("--limits", default=str(rows_alone.MAX_ROWS), show_default=True, help="Most rows of a split.")
@click.option("--file", "path", hidden=True, help="The file of a child process.")
def main(sizes: str, dim: int, recipe: str, dataset: str, limits: str, path: str | None) -> None:
    """Print seconds and peak memory for each number of vectors."""
    if path:
        rows_alone.MAX_ROWS = int(limits)
        print(*_train(path, recipe))
        return
    sentences = embed_splits(
        load_dataset(dataset, splits=("train",)).splits, resolve_encoder(Recipe().encoder), DiskCache()
    )
    print(f"{dim} floats, preset {recipe}, {CORES} threads")
    for size in map(int, sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "vectors.npy")
            vectors = np.lib.format.open_memmap(file, "w+", np.float32, (size, dim))
            for start, block in _mixed_vectors(sentences["train"].embeddings, size, dim):
                vectors[start : start + len(block)] = block
            vectors.flush()
            command = [sys.executable, "-m", "benchmarks.own_vectors", "--file", str(file), "--recipe", recipe]
            for limit in limits.split(","):
                seconds, reading, gigabytes, recall = map(
                    float, subprocess.check_output([*command, "--limits", limit], text=True).split()
                )
                print(f"dev neighbor recall {recall:.4f}, {reading:.0f} s to read:")
                what = f"{size:,} vectors of {dim} floats, at most {int(limit):,} of a split"
                report(f"training on {what}", [seconds], "s", 0)
                report(f"peak memory of it, {what}", [gigabytes], "GB", 1)


def _mixed_vectors(real: FloatArray, size: int, dim: int) -> Iterator[tuple[int, FloatArray]]:
    """Yields the first row and the vectors (n, dim) of each block."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(dim, real.shape[1])))[0].astype(np.float32)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        first, second = generator.integers(len(real), size=(2, count))
        noise = generator.normal(size=(count, dim)) * 0.3 / np.sqrt(dim)
        yield start, ((0.7 * real[first] + 0.3 * real[second]) @ basis.T + noise).astype(np.float32)


def _train(path: str, preset: str) -> tuple[float, float, float, float]:
    """Returns seconds, those of reading, the peak memory in GB and the neighbor recall on dev."""
    torch.set_num_threads(CORES)
    start = time.monotonic()
    recipe = Recipe.preset(preset, device="cpu")
    data = experiment_data.prepare_data(load_dataset(path, splits=("train", "dev")), None, "cpu")
    loaded = time.monotonic()
    result = experiment.train(experiment_data.adapt_recipe(recipe, data), data)
    seconds, recall = time.monotonic() - start, result.history.dev["neighbor_recall"][-1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    return seconds, loaded - start, peak, recall


if __name__ == "__main__":
    main()
