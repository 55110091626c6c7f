"""Heads: linear layers with room for all of the encoder's numbers, trained on the scores before a compressor is.

A compressor has to forget most of what the encoder knew. A head learns what the scores say while nothing is taken from
it: it begins as the identity with the train sentences' mean as its centre, and has as many numbers as the encoder. Two
are trained for every seed. The start fits the scores as well as noise lets it, and a compressor begins with its
principal components. The teacher moves less far from the encoder, and a compressor is to keep who is near whom there:
beside the scores, so that it does not buy them with the neighbourhoods.
"""

from collections.abc import Callable, Sequence

import torch

from twinsqueeze.embeddings import EncodedPairs
from twinsqueeze.recipe import Recipe
from twinsqueeze.trainer import Heads, Trainer

_SHARED = {
    "architecture": "linear",
    "start": "components",
    "objective": "pearson",
    "labels": "linear",
    "epochs": 20,
    "batch_size": 256,
    "schedule": "linear",
}
START = {**_SHARED, "alpha": 1.5, "lr": 1e-3}
TEACHER = {**_SHARED, "alpha": 2.0, "lr": 3e-4}


def train_heads(
    seeds: Sequence[int],
    train: EncodedPairs,
    device: torch.device,
    on_epoch: Callable[[int, int], None] = lambda *_: None,
) -> list[Heads]:
    """The heads of some seeds, a few seconds each.

    Args:
        seeds: Of which a seed's heads have its order of pairs and its noise.
        train: Pairs to train on.
        device: Where to train.
        on_epoch: Told after every epoch how many are done, and of how many.
    """
    recipes = [Recipe.parse({**fields, "dim": train.dimension}) for fields in (START, TEACHER)]
    total = sum(recipe.epochs for recipe in recipes)
    done = 0
    layers = []
    for recipe in recipes:
        trainer = Trainer(recipe, [recipe.alpha], seeds, train, device)
        for _ in range(recipe.epochs):
            trainer.epoch()
            done += 1
            on_epoch(done, total)
        layers.append([trainer.model.replica(place).snapshot().layers[0] for place in range(len(seeds))])
    return [Heads(start, teacher) for start, teacher in zip(*layers, strict=True)]
