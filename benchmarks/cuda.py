"""Measures what can run on a GPU, against the CPU of the same machine: `python -m benchmarks.cuda`.

    python -m benchmarks.cuda --output cuda.json
    python -m benchmarks.cuda --device cpu --tiny    # runs without a GPU

Encoding, a training, a grid of replicas in one batch, compression, and a training on vectors alone. A plain PyTorch
loop trains on the same device. Every row is a rate, the median over rounds, with its range.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.training import plain_loop
from twinsqueeze.data.dataset import NO_ROWS, EncodedSplit
from twinsqueeze.data.embedding import embed_splits, encode_texts
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.data.unlabeled import FILE
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import NEIGHBORS
from twinsqueeze.training.setup import TrainingSetup
from twinsqueeze.training.trainer import BatchedTrainer
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.disk_cache import DiskCache

GRID_SEEDS, GRID_ALPHAS = range(5), (0.0, 0.5, 0.75, 1.0, 3.0)  # those of experiments/published.yaml


@dataclass(frozen=True)
class Sizes:
    """How much is measured: sentences to encode, train pairs, vectors to compress and to train on, and rounds."""

    sentences: int = 8000
    pairs: int = 1600
    vectors: int = 1_000_000
    own_vectors: int = 65_536
    max_replicas: int = 400
    rounds: int = 5


TINY = Sizes(sentences=64, pairs=200, vectors=2000, own_vectors=1200, max_replicas=25, rounds=1)


@dataclass(frozen=True)
class Measurement:
    """A rate on a device: the median over rounds, the lowest and the highest."""

    what: str
    unit: str
    device: str
    rate: float
    low: float
    high: float


class Benchmark:
    """Measures the rates of one device."""

    def __init__(self, device: str, sizes: Sizes) -> None:
        self._device, self._sizes = torch.device(device), sizes
        splits = embed_splits(
            load_pairs("demo", splits=("train",)).splits, resolve_encoder(Recipe().encoder), DiskCache()
        )
        train = splits["train"]
        rows = slice(sizes.pairs)
        self._train = EncodedSplit(train.embeddings, train.first[rows], train.second[rows], train.scores[rows])

    def measure(self, what: str, unit: str, amount: float, function: Callable[[], object]) -> Measurement:
        """Returns the rate of a function that handles an amount; the first call is not timed."""
        function()
        rates = []
        for _ in range(self._sizes.rounds):
            start = time.perf_counter()
            function()
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            rates.append(amount / (time.perf_counter() - start))
        return Measurement(what, unit, self._device.type, statistics.median(rates), min(rates), max(rates))

    def run(self) -> Iterator[Measurement]:
        """Yields all measurements."""
        sentences = FILE.read_text(encoding="utf-8").splitlines()[: self._sizes.sentences]
        encoder = resolve_encoder(Recipe().encoder, self._device.type).load()
        yield self.measure("encode", "sentences/s", len(sentences), lambda: encode_texts(encoder, sentences))
        recipe, pairs = Recipe(), len(self._train)
        yield self.measure("plain PyTorch loop", "pairs/s", pairs, plain_loop(recipe, self._train, self._device))
        yield self.measure("training", "pairs/s", pairs, self._trainer(recipe, self._train, (recipe.alpha,), (0,)))
        grid = self._trainer(recipe, self._train, GRID_ALPHAS, GRID_SEEDS)
        replicas = len(GRID_ALPHAS) * len(GRID_SEEDS)
        yield self.measure(f"{replicas} replicas in a batch", "pairs/s", pairs * replicas, grid)
        if self._device.type == "cuda":
            yield self._largest_batch(recipe)
        network = CompressorNetwork(BatchedTrainer.start(self._setup(recipe, self._train)).model.replica(0).layers)
        vectors = torch.from_numpy(self._random_vectors(self._sizes.vectors, self._train.dimension))
        placed = network.to(self._device)
        yield self.measure(
            "compress", "vectors/s", len(vectors), lambda: placed.compress(vectors.to(self._device)).cpu()
        )
        own = EncodedSplit(
            self._random_vectors(self._sizes.own_vectors, 768), NO_ROWS, NO_ROWS, np.empty(0), task=NEIGHBORS
        )
        preset = Recipe.preset("vectors")
        yield self.measure("own vectors, 768 floats", "vectors/s", len(own), self._trainer(preset, own, (0.0,), (0,)))

    def _largest_batch(self, recipe: Recipe) -> Measurement:
        """Doubles the replicas until the memory ends."""
        found, replicas = None, 50
        while replicas <= self._sizes.max_replicas:
            try:
                train = self._trainer(recipe, self._train, GRID_ALPHAS, range(replicas // len(GRID_ALPHAS)))
                found = self.measure(f"{replicas} replicas in a batch", "pairs/s", len(self._train) * replicas, train)
            except torch.cuda.OutOfMemoryError:
                break
            replicas *= 2
        assert found, "50 replicas do not fit into the memory"
        return found

    def _trainer(
        self, recipe: Recipe, train: EncodedSplit, alphas: tuple[float, ...], seeds: range | tuple[int, ...]
    ) -> Callable[[], object]:
        setup = TrainingSetup(recipe, alphas, seeds, train, self._device)
        return BatchedTrainer.start(setup).train_epoch

    def _setup(self, recipe: Recipe, train: EncodedSplit) -> TrainingSetup:
        return TrainingSetup(recipe, (recipe.alpha,), (0,), train, self._device)

    @staticmethod
    def _random_vectors(count: int, dim: int) -> FloatArray:
        vectors = np.random.default_rng(0).standard_normal((count, dim), dtype=np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def describe_machine() -> dict[str, str]:
    """Returns what the rates depend on."""
    git = shutil.which("git") or "git"
    commit = subprocess.run([git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    processor = f"{platform.machine()}, {os.cpu_count()} cores"
    return {"gpu": gpu, "cpu": processor, "torch": torch.__version__, "commit": commit.stdout.strip()}


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, help="Beside the CPU.")
@click.option("--tiny", is_flag=True, help="Little data and one round.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file for the rates.")
def main(device: str, tiny: bool, output: Path | None) -> None:
    """Prints the rates on both devices, and how many times the CPU's they are."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("PyTorch finds no CUDA device: pass --device cpu --tiny to see that this runs")
    machine, sizes = describe_machine(), TINY if tiny else Sizes()
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    cpu = list(Benchmark("cpu", sizes).run())
    other = list(Benchmark(device, sizes).run()) if device != "cpu" else []
    base = {each.what: each.rate for each in cpu}
    for each in (*cpu, *other):
        ratio = f"{each.rate / base[each.what]:.1f} times the CPU's" if each.what in base else ""
        shown = f"{each.rate:,.0f} {each.unit} ({each.low:,.0f} to {each.high:,.0f})"
        print(f"{each.device:<5} {each.what:<26} {shown:<48} {ratio if each.device == 'cuda' else ''}".rstrip())
    if output:
        output.write_text(
            json.dumps({"machine": machine, "rates": [asdict(each) for each in (*cpu, *other)]}, indent=1)
        )


if __name__ == "__main__":
    main()
