"""How fast vectors are compressed: `python -m benchmarks.compress`.

A .npy file of random vectors is made once in a temporary folder, where it takes 3 GB at the default size, and removed
at the end. On two cores, taking turns, are timed the matrix products of the layers alone, over one resident block
without bias, ReLU, length, reading or writing, and the job compress from that file to another. The products' block is
the fastest of several. Of the job all is timed but the imports of Python's packages: reading the model, checking the
numbers, writing, and waiting until the output is safe on the disk.
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
from twinsqueeze.commands.compress import CompressOptions, compress
from twinsqueeze.model.checkpoint import Provenance, serialize_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork, layer_sizes
from twinsqueeze.model.initialization import uniform_layers
from twinsqueeze.model.precision import Int8Ranges, int8_calibration_ranges, quantize
from twinsqueeze.recipe import Recipe

CORES = 2
BLOCKS = (2048, 8192, 32_768, 131_072)
PRECISIONS = ("float32", "int8", "binary")


@click.command()
@click.option("--rows", default=2_000_000, show_default=True, help="Vectors of 384 numbers.")
@click.option("--rounds", default=5, show_default=True, help="How often each is timed, taking turns.")
def main(rows: int, rounds: int) -> None:
    """Prints vectors a second, and the ratios to the bare matrix products, as medians over rounds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(CORES)
    recipe = Recipe()
    layers = uniform_layers(layer_sizes(recipe.architecture, 384, recipe.dim), np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = _make_vectors(folder / "vectors.npy", rows)
        compressor = CompressorNetwork(layers)
        _make_model(folder / "model", compressor, sample, recipe)
        for precision in PRECISIONS:
            quantize(sample[:1, : recipe.dim], precision, _ranges(compressor, sample))  # imports what takes seconds
        speeds: dict[str, list[float]] = {"matrix products": []} | {precision: [] for precision in PRECISIONS}
        for _ in range(rounds):
            speeds["matrix products"].append(max(_bare(layers, block, rows) for block in BLOCKS))
            for precision in PRECISIONS:
                speeds[precision].append(rows / _job(folder, precision))
    print(f"{rows:,} vectors of 384 numbers to {recipe.dim}, {CORES} threads")
    for what, values in speeds.items():
        ratios = [ours / bare for ours, bare in zip(values, speeds["matrix products"], strict=True)]
        print(
            f"{what:<16} {statistics.median(values):>9,.0f} a second ({min(values):,.0f} to {max(values):,.0f})   "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def _make_vectors(path: Path, rows: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 384))
    for start in tqdm(range(0, rows, 50_000), desc="making the file", leave=False):
        block = generator.standard_normal(array[start : start + 50_000].shape, dtype=np.float32)
        array[start : start + 50_000] = block / np.linalg.norm(block, axis=1, keepdims=True)
    array.flush()
    return np.array(array[:10_000])


def _make_model(folder: Path, compressor: CompressorNetwork, sample: np.ndarray, recipe: Recipe) -> None:
    provenance = Provenance(
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


def _bare(layers: list[tuple[torch.Tensor, torch.Tensor]], block: int, rows: int) -> float:
    vectors = torch.randn(block, layers[0][0].shape[1])
    weights = [weight.T for weight, _ in layers]
    repeats = max(rows // block // len(BLOCKS), 1)
    start = time.perf_counter()
    for _ in range(repeats):
        hidden = vectors
        for weight in weights:
            hidden = hidden @ weight
    return repeats * block / (time.perf_counter() - start)


def _job(folder: Path, precision: str) -> float:
    output = folder / "compressed.npy"
    output.unlink(missing_ok=True)
    start = time.perf_counter()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        compress(CompressOptions(str(folder / "vectors.npy"), str(folder / "model"), output, precision))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
