"""The head: a linear layer with room for all of the encoder's numbers, trained on the scores before a compressor is.

A compressor has to forget most of what the encoder knew. A head learns what the scores say while nothing is taken from
it: it begins with all principal components of the train sentences, which is the encoder turned and centred, and noise
and a small learning rate keep it near. A compressor can begin with the head's first principal components, and keep who
is near whom there.
"""

from collections.abc import Callable, Sequence

import torch

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.model.compressor import Layer
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.trainer import BatchedTrainer

# With a smaller learning rate it fits the scores less and stays nearer to the encoder; experiments/LOG.md has a few.
TEACHER_RECIPE = {
    "architecture": "linear",
    "init": "pca",
    "loss": "pearson",
    "label_transform": "linear",
    "lr": 6e-4,
    "lr_schedule": "linear",
    "batch_size": 256,
    "epochs": 20,
}


def train_teachers(
    seeds: Sequence[int],
    alpha: float,
    train: EncodedPairs,
    device: torch.device,
    on_epoch: Callable[[int, int], None] = lambda *_: None,
) -> list[Layer]:
    """The heads of some seeds, three seconds each on a core.

    Args:
        seeds: Of which a seed's head has its order of pairs and its noise.
        alpha: Strength of its noise.
        train: Pairs to train on.
        device: Where to train.
        on_epoch: Told after every epoch how many are done, and of how many.

    Returns:
        For each seed a weight (d, d) and a bias (d,), float32 on the CPU.
    """
    recipe = Recipe.parse({**TEACHER_RECIPE, "alpha": alpha, "dim": train.dimension})
    trainer = BatchedTrainer(recipe, [alpha], seeds, train, device)
    for done in range(recipe.epochs):
        trainer.epoch()
        on_epoch(done + 1, recipe.epochs)
    return [trainer.model.replica(place).snapshot().layers[0] for place in range(len(seeds))]
