"""The projection teacher: a linear layer from d to d dimensions that is trained on the pairs before the compressor.

A compressor has to discard most of the encoder's information. The teacher learns the pairs without that limit. It
starts with all principal components of the train sentences, a rotation of the centered encoder, and noise and a small
learning rate keep it close to them. For queries with passages it starts with partly whitened components, which find
more of the passages than the encoder. A compressor can start with the teacher's first principal components, and the
neighborhood loss can use the teacher's neighbors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.model.compressor import Layer
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import RETRIEVAL, SIMILARITY, Task
from twinsqueeze.training.setup import TrainingSetup
from twinsqueeze.training.trainer import BatchedTrainer

# A smaller learning rate fits the scores less and stays closer to the encoder; see experiments/LOG.md.
TEACHER_RECIPES: dict[Task, dict[str, Any]] = {
    SIMILARITY: {"loss": "pearson", "label_transform": "linear", "lr": 6e-4, "batch_size": 256, "epochs": 20},
    RETRIEVAL: {"loss": "infonce", "lr": 1e-3, "batch_size": 512, "epochs": 6},
}

# Each component of the start is divided by its variance to this power; 0.25 is half-whitened. See experiments/LOG.md.
WHITENING: dict[Task, float] = {SIMILARITY: 0.0, RETRIEVAL: 0.15}
# Smaller variances, relative to the largest, are not divided by: they are noise.
MIN_VARIANCE = 1e-4


def teacher_recipe(task: Task, alpha: float, dim: int) -> Recipe:
    """Returns the recipe of the projection of `dim` dimensions."""
    fields = {"architecture": "linear", "init": "pca", "lr_schedule": "linear", "alpha": alpha, "dim": dim}
    return Recipe.parse({**fields, **TEACHER_RECIPES[task]})


def train_teachers(
    student: Recipe,
    seeds: Sequence[int],
    train: EncodedSplit,
    device: torch.device,
    on_epoch: Callable[[int, int], None] = lambda *_: None,
) -> list[Layer]:
    """Trains one teacher per seed for a compressor of the recipe `student`, in three seconds each.

    Returns weights (d, d) and biases (d,) on the CPU, the `teacher_interpolation` of initial and trained ones.
    """
    recipe = teacher_recipe(train.task, student.teacher_alpha, train.dimension)
    trainer = BatchedTrainer.start(TrainingSetup(recipe, [recipe.alpha], seeds, train, device))
    if exponent := WHITENING[train.task]:
        _whiten(trainer, exponent)
    initial, trained_share = _layers(trainer), student.teacher_interpolation
    for epoch in range(1, recipe.epochs + 1):
        trainer.train_epoch()
        on_epoch(epoch, recipe.epochs)
    return [
        (start[0].lerp(trained[0], trained_share), start[1].lerp(trained[1], trained_share))
        for start, trained in zip(initial, _layers(trainer), strict=True)
    ]


def _whiten(trainer: BatchedTrainer, exponent: float) -> None:
    """Divides outputs, which all replicas have in common yet, by their variance to a power; their mean length is 1."""
    weight, bias = trainer.model.layers[0]  # (R, D, d) and (R, 1, D)
    outputs = torch.addmm(bias[0], trainer.vectors, weight[0].T)
    variances = outputs.var(0)
    factors = variances.clamp_min(MIN_VARIANCE * variances.max()).pow(-exponent)
    factors /= (outputs * factors).norm(dim=1).mean()
    weight.mul_(factors[:, None])
    bias.mul_(factors)


def _layers(trainer: BatchedTrainer) -> list[Layer]:
    """Returns a copy of the layer of each replica, on the CPU."""
    return [trainer.model.replica(r).to("cpu", copy=True).layers[0] for r in range(len(trainer.model))]
