"""What it costs to keep trainings against interruptions: `python -m benchmarks.snapshots --dataset stsb`.

The share is taken within one training: seconds that finding, locking and writing took, of all its seconds.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import click
import torch

from twinsqueeze.data.encoder import EncodedPairs, embed_pairs, resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.checkpointing import CheckpointStore, TrainerState, TrainingCheckpoint
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.utils.disk_cache import DiskCache

# Of the grid in experiments/published.yaml.
ALPHAS, SEEDS = (0.0, 0.5, 0.75, 1.0, 3.0), range(5)


def measure(recipes: list[Recipe], encoded: dict[str, EncodedPairs]) -> str:
    """Trains with snapshots and says what they took."""
    sizes: list[int] = []

    def counting(
        write: Callable[[TrainingCheckpoint, TrainerState], bytes],
    ) -> Callable[[TrainingCheckpoint, TrainerState], bytes]:
        def counted(snapshot: TrainingCheckpoint, state: TrainerState) -> bytes:
            content = write(snapshot, state)
            sizes.append(len(content))
            return content

        return counted

    with (
        patch.object(TrainingCheckpoint, "_bytes", counting(TrainingCheckpoint._bytes)),
        tempfile.TemporaryDirectory(dir=".") as folder,  # where /tmp may be memory
    ):
        start = time.perf_counter()
        store = CheckpointStore(encoded["train"], encoded["dev"], {}, print, Path(folder, "trainings"))
        with store.open(recipes, resume=True) as snapshot:
            opening = time.perf_counter() - start
            train_replicas(recipes, encoded["train"], encoded["dev"], clean_loss_every=10, snapshot=snapshot)
            snapshot.discard()
        total = time.perf_counter() - start
    written = f"{len(sizes)} of {max(sizes) / 1e6:.1f} MB, {snapshot.seconds / len(sizes) * 1e3:.0f} ms each"
    return f"{total:.1f} s, of it {(opening + snapshot.seconds) / total:.2%}: {opening:.3f} s to begin, then {written}"


@click.command()
@click.option("--dataset", default="auto", show_default=True, help="As for `twinsqueeze main`.")
@click.option("--epochs", default=60, show_default=True, help="Of the recipe's 200.")
def main(dataset: str, epochs: int) -> None:
    """Prints the share for one training and for 25 together."""
    recipe = Recipe(dataset=dataset, epochs=epochs, device="cpu")
    data = load_pairs(dataset, splits=("train", "dev"))
    encoded = embed_pairs(data.splits, resolve_encoder(recipe.encoder), DiskCache())
    grid = [recipe.model_copy(update={"alpha": alpha, "seed": seed}) for alpha in ALPHAS for seed in SEEDS]
    print(f"{data.name}: {len(encoded['train']):,} pairs, {epochs} epochs, {torch.get_num_threads()} threads")
    for recipes in ([recipe], grid):
        print(f"R = {len(recipes):<3} {measure(recipes, encoded)}", flush=True)


if __name__ == "__main__":
    main()
