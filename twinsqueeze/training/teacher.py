"""Teachers: linear layers from d to d dimensions.

A compressor learns the neighbors among their outputs, or starts with their principal components.

A projection is trained on the pairs before the compressor, which has to discard most of the encoder's information. It
learns the pairs without that limit. It starts with all principal components of the train sentences, a rotation of the
centered encoder, and noise and a small learning rate keep it close to them. A whitened teacher is the encoder with
partly whitened principal components. It is not trained, so it needs no pairs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.model.compressor import Layer
from twinsqueeze.model.initialization import pca_layer
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import RETRIEVAL, SIMILARITY, Task
from twinsqueeze.training.setup import TrainingSetup
from twinsqueeze.training.trainer import BatchedTrainer
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.compute import BLAS_LOCK

# A smaller learning rate fits the scores less and stays closer to the encoder; see experiments/LOG.md.
TEACHER_RECIPES: dict[Task, dict[str, Any]] = {
    SIMILARITY: {"loss": "pearson", "label_transform": "linear", "lr": 6e-4, "batch_size": 256, "epochs": 20},
    RETRIEVAL: {"loss": "infonce", "lr": 1e-3, "batch_size": 512, "epochs": 6},
}

# Whitening divides by no smaller variances, relative to the largest: they are noise.
MIN_VARIANCE = 1e-4


def make_teachers(
    student: Recipe,
    seeds: Sequence[int],
    train: EncodedSplit,
    device: torch.device,
    on_epoch: Callable[[int, int], None] = lambda *_: None,
) -> list[Layer]:
    """Returns one teacher per seed for a compressor of the recipe `student`: weights (d, d) and biases (d,) on the CPU.

    Projections are trained, in three seconds each; they are the `teacher_interpolation` of initial and trained weights.
    `on_epoch` is called with (epochs done, epochs).
    """
    if student.teacher == "whitened":
        return [whitened_layer(train.sentences, student.teacher_whitening)] * len(seeds)
    recipe = teacher_recipe(train.task, student.teacher_alpha, train.dimension)
    trainer = BatchedTrainer.start(TrainingSetup(recipe, [recipe.alpha], seeds, train, device))
    if student.teacher_whitening:
        _whiten(trainer, student.teacher_whitening)
    initial, trained_share = _layers(trainer), student.teacher_interpolation
    for epoch in range(1, recipe.epochs + 1):
        trainer.train_epoch()
        on_epoch(epoch, recipe.epochs)
    return [
        (start[0].lerp(trained[0], trained_share), start[1].lerp(trained[1], trained_share))
        for start, trained in zip(initial, _layers(trainer), strict=True)
    ]


def teacher_recipe(task: Task, alpha: float, dim: int) -> Recipe:
    """Returns the recipe of the projection of `dim` dimensions."""
    fields = {"architecture": "linear", "init": "pca", "lr_schedule": "linear", "alpha": alpha, "dim": dim}
    return Recipe.parse({**fields, **TEACHER_RECIPES[task]})


def whitened_layer(vectors: FloatArray, exponent: float) -> Layer:
    """Returns the layer that divides the principal components of (N, d) vectors by their variances to a power.

    It keeps the mean of the vectors, which is part of their cosines, and the sum of the variances.
    """
    with BLAS_LOCK:
        components, offset, variances = pca_layer(vectors, vectors.shape[1])
        factors = _whitening_factors(torch.from_numpy(variances.copy()), exponent).numpy()
        factors *= np.sqrt(variances.sum() / (variances * factors**2).sum())
        weight = components.T @ (factors[:, None] * components)
        bias = components.T @ ((factors - 1) * offset)  # the offset is minus the mean's components
    return torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(bias.astype(np.float32))


def _whiten(trainer: BatchedTrainer, exponent: float) -> None:
    """Divides outputs, which all replicas have in common yet, by their variance to a power; their mean length is 1."""
    weight, bias = trainer.model.layers[0]  # (R, D, d) and (R, 1, D)
    outputs = torch.addmm(bias[0], trainer.vectors, weight[0].T)
    factors = _whitening_factors(outputs.var(0), exponent)
    factors /= (outputs * factors).norm(dim=1).mean()
    weight.mul_(factors[:, None])
    bias.mul_(factors)


def _whitening_factors(variances: torch.Tensor, exponent: float) -> torch.Tensor:
    return variances.clamp_min(MIN_VARIANCE * variances.max()).pow(-exponent)


def _layers(trainer: BatchedTrainer) -> list[Layer]:
    """Returns a copy of the layer of each replica, on the CPU."""
    return [trainer.model.replica(r).to("cpu", copy=True).layers[0] for r in range(len(trainer.model))]
