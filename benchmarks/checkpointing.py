"""The cost of checkpoints: `python -m benchmarks.checkpointing --dataset stsb`.

The share is measured within one training: seconds of opening and saving, of all its seconds.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import click
import torch

from benchmarks.results import report
from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.data.embedding import embed_splits
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.checkpointing import CheckpointStore, TrainingCheckpoint
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.training.trainer import TrainingState
from twinsqueeze.utils.disk_cache import DiskCache

# As in experiments/published.yaml.
ALPHAS, SEEDS = (0.0, 0.5, 0.75, 1.0, 3.0), range(5)
Serialize = Callable[[TrainingCheckpoint, TrainingState], bytes]


def measure(recipes: list[Recipe], encoded: dict[str, EncodedSplit]) -> float:
    """Trains with checkpoints, and prints and returns the share of the time that they cost."""
    sizes: list[int] = []

    def record_size(serialize: Serialize) -> Serialize:
        def serialize_and_record(checkpoint: TrainingCheckpoint, state: TrainingState) -> bytes:
            content = serialize(checkpoint, state)
            sizes.append(len(content))
            return content

        return serialize_and_record

    with (
        patch.object(TrainingCheckpoint, "serialize", record_size(TrainingCheckpoint.serialize)),
        tempfile.TemporaryDirectory(dir=".") as folder,  # /tmp may be in memory
    ):
        start = time.perf_counter()
        store = CheckpointStore(encoded["train"], encoded["dev"], {}, print, Path(folder, "trainings"))
        with store.open(recipes, resume=True) as checkpoint:
            opening = time.perf_counter() - start
            train_replicas(recipes, encoded["train"], encoded["dev"], clean_loss_every=10, checkpoint=checkpoint)
            checkpoint.discard()
        total = time.perf_counter() - start
    share = (opening + checkpoint.save_seconds) / total
    saves = f"{len(sizes)} saves of {max(sizes) / 1e6:.1f} MB, {checkpoint.save_seconds / len(sizes) * 1e3:.0f} ms each"
    print(f"R = {len(recipes):<3} {total:.1f} s, checkpoints {share:.2%}: {opening:.3f} s to open, then {saves}")
    return share


@click.command()
@click.option("--dataset", default="auto", show_default=True, help="As for `twinsqueeze main`.")
@click.option("--epochs", default=60, show_default=True, help="Epochs of each training.")
def main(dataset: str, epochs: int) -> None:
    """Prints the share for one training and for 25 together."""
    recipe = Recipe(dataset=dataset, epochs=epochs, device="cpu")
    data = load_pairs(dataset, splits=("train", "dev"))
    encoded = embed_splits(data.splits, resolve_encoder(recipe.encoder), DiskCache())
    grid = [recipe.model_copy(update={"alpha": alpha, "seed": seed}) for alpha in ALPHAS for seed in SEEDS]
    print(f"{data.name}: {len(encoded['train']):,} pairs, {epochs} epochs, {torch.get_num_threads()} threads")
    for recipes in ([recipe], grid):
        share = measure(recipes, encoded)
        what = f"{len(recipes)} trainings at once" if len(recipes) > 1 else "one training"
        report(f"checkpoints of {what}", [100 * share], "% of the time")


if __name__ == "__main__":
    main()
