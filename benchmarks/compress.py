"""Measures how many vectors per second `compress` takes: `python -m benchmarks.compress`.

The input is a .npy file of random vectors in a temporary folder, 3 GB at the default size. Two things are timed in turn
on two cores. The upper bound: the matrix products of the layers on vectors in memory, without bias, ReLU and
normalization, at the fastest of several block sizes. And the command, from loading the model to syncing the output,
without the imports of Python packages.
"""

import os
import statistics
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

import twinsqueeze
from benchmarks.results import report
from twinsqueeze.commands.compress import CompressOptions, compress
from twinsqueeze.model.checkpoint import CheckpointMetadata, serialize_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork, layer_sizes
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.model.precision import Int8Ranges, int8_calibration_ranges, quantize
from twinsqueeze.recipe import Recipe

CORES = 2
BLOCK_SIZES = (2048, 8192, 32_768, 131_072)
PRECISIONS = ("float32", "int8", "binary")


@click.command()
@click.option("--rows", default=2_000_000, show_default=True, help="Vectors of 384 numbers.")
@click.option("--rounds", default=5, show_default=True, help="Repetitions of each measurement.")
def main(rows: int, rounds: int) -> None:
    """Print vectors per second and their ratio to the matrix products, as medians over rounds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(CORES)
    recipe = Recipe()
    layers = kaiming_uniform_layers(layer_sizes(recipe.architecture, 384, recipe.dim), np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sample = _make_vectors(folder / "vectors.npy", rows)
        compressor = CompressorNetwork(layers)
        _make_model(folder / "model", compressor, sample, recipe)
        for precision in PRECISIONS:
            quantize(
                sample[:1, : recipe.dim], precision, _ranges(compressor, sample)
            )  # the first call imports packages
        speeds: dict[str, list[float]] = {name: [] for name in ("matrix products", *PRECISIONS)}
        for _ in range(rounds):
            speeds["matrix products"].append(max(_matrix_products(layers, block, rows) for block in BLOCK_SIZES))
            for precision in PRECISIONS:
                speeds[precision].append(rows / _compress_seconds(folder, precision))
    print(f"{rows:,} vectors of 384 numbers to {recipe.dim}, {CORES} threads")
    for name, values in speeds.items():
        print(f"{name:<16} {statistics.median(values):>9,.0f} per second ({min(values):,.0f} to {max(values):,.0f})")
        if name != "matrix products":
            ratios = [value / bound for value, bound in zip(values, speeds["matrix products"], strict=True)]
            report(f"compression of vectors to {name}", ratios, "of the speed of the matrix products alone")


def _make_vectors(path: Path, rows: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 384))
    for start in tqdm(range(0, rows, 50_000), desc="making the file", leave=False):
        block = generator.standard_normal(array[start : start + 50_000].shape, dtype=np.float32)
        array[start : start + 50_000] = block / np.linalg.norm(block, axis=1, keepdims=True)
    array.flush()
    return np.array(array[:10_000])


def _make_model(folder: Path, compressor: CompressorNetwork, sample: np.ndarray, recipe: Recipe) -> None:
    provenance = CheckpointMetadata(
        recipe=recipe,
        dataset="random vectors",
        dataset_digest="none",
        score_max=None,
        encoder_fingerprint="none",
        version=twinsqueeze.__version__,
        int8_ranges=_ranges(compressor, sample),
    )
    folder.mkdir()
    (folder / "compressor.safetensors").write_bytes(serialize_checkpoint(compressor, provenance))


def _ranges(compressor: CompressorNetwork, sample: np.ndarray) -> Int8Ranges:
    return int8_calibration_ranges(compressor.compress(torch.from_numpy(sample)).numpy())


def _matrix_products(layers: list[tuple[torch.Tensor, torch.Tensor]], block: int, rows: int) -> float:
    vectors = torch.randn(block, layers[0][0].shape[1])
    weights = [weight.T for weight, _ in layers]
    repeats = max(rows // block // len(BLOCK_SIZES), 1)
    start = time.perf_counter()
    for _ in range(repeats):
        hidden = vectors
        for weight in weights:
            hidden = hidden @ weight
    return repeats * block / (time.perf_counter() - start)


def _compress_seconds(folder: Path, precision: str) -> float:
    output = folder / "compressed.npy"
    output.unlink(missing_ok=True)
    start = time.perf_counter()
    with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
        compress(CompressOptions(str(folder / "vectors.npy"), str(folder / "model"), output, precision))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
