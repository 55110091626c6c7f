"""Speed of the trainer relative to a plain loop: `python -m benchmarks.training`.

Both train the default recipe on the same embeddings, without per-epoch metrics. The plain loop uses a DataLoader over
pairs of vectors, one `nn.Sequential` and `torch.optim.Adam`.
"""

import math
import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.results import report
from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.data.embedding import embed_splits
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs, scores_to_labels
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.setup import TrainingSetup
from twinsqueeze.training.trainer import BatchedTrainer
from twinsqueeze.utils.disk_cache import DiskCache


def plain_loop(recipe: Recipe, train: EncodedSplit, device: torch.device) -> Callable[[], None]:
    """Returns a function that trains an epoch with PyTorch's modules and autograd."""
    torch.manual_seed(recipe.seed)
    dimension = train.dimension
    model = nn.Sequential(
        nn.Linear(dimension, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, recipe.dim)
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    vectors = torch.from_numpy(train.embeddings)
    labels = torch.from_numpy(scores_to_labels(train.scores, recipe.label_transform).astype(np.float32))
    pairs = TensorDataset(vectors[train.first], vectors[train.second], labels)
    loader = DataLoader(pairs, batch_size=recipe.batch_size, shuffle=True)
    scale = recipe.alpha / math.sqrt(dimension)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + (torch.rand_like(x) * 2 - 1) * scale

    def epoch() -> None:
        for batch in loader:
            first, second, label = (each.to(device) for each in batch)
            cosine = functional.cosine_similarity(model(noisy(first)), model(noisy(second)))
            loss = functional.mse_loss(cosine, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


@click.command()
@click.option("--dataset", default="auto", show_default=True, help="As for `twinsqueeze main`.")
@click.option("--rounds", default=5, show_default=True, help="Rounds, in which both are timed in turn.")
@click.option("--epochs", default=4, show_default=True, help="Epochs in a round.")
def main(dataset: str, rounds: int, epochs: int) -> None:
    """Prints the seconds of an epoch of both, and their ratio, as medians over rounds."""
    recipe = Recipe(dataset=dataset)
    data = load_pairs(dataset, splits=("train",))
    train = embed_splits(data.splits, resolve_encoder(recipe.encoder), DiskCache())["train"]
    setup = TrainingSetup(recipe, [recipe.alpha], [0], train, torch.device("cpu"))
    sides = {
        "plain loop": plain_loop(recipe, train, setup.device),
        "twinsqueeze": BatchedTrainer.start(setup).train_epoch,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for epoch in sides.values():
        epoch()  # warm-up
    for _ in range(rounds):
        for name, epoch in sides.items():
            start = time.perf_counter()
            for _ in range(epochs):
                epoch()
            seconds[name].append((time.perf_counter() - start) / epochs)
    print(f"{data.name}: {len(train):,} pairs, batch {recipe.batch_size}, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        print(f"{name:<12} {statistics.median(values):.3f} s an epoch ({min(values):.3f} to {max(values):.3f})")
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    report("one training against a plain PyTorch loop", ratios, "times as fast")


if __name__ == "__main__":
    main()
