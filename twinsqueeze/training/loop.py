"""The training loop: R replicas of one shape train together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.metrics import METRICS, Scores, score
from twinsqueeze.model.compressor import CompressorNetwork, predict_pair_cosines_of_each
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.checkpointing import TrainerState, TrainingCheckpoint
from twinsqueeze.training.losses import LOSSES
from twinsqueeze.training.teacher import train_teachers
from twinsqueeze.training.trainer import BatchedTrainer
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.device import resolve_device

# In a snapshot, beside the trainer's state.
CURVES = "curves"


class DivergedError(InputError):
    """A training's loss is not finite."""


@dataclass(frozen=True)
class History:
    """A training's curves, one value an epoch, float64 of shape (T,).

    Attributes:
        loss: The objective as it was trained on, noise included, mean over the epoch's pairs; without the
            neighbourhood loss, which needs no labels.
        clean_loss: The objective on the train pairs without noise, after the epoch; NaN where it was not measured.
        dev: mse, mae, pearson and spearman on dev, after the epoch.
    """

    loss: FloatArray
    clean_loss: FloatArray
    dev: dict[str, FloatArray]


@dataclass(frozen=True)
class TrainingResult:
    """One replica's result: the last epoch's weights, on the CPU, and the curves that led there.

    Attributes:
        resumed_from_epoch: The epoch from which an interrupted training was gone on with, 0 for one that was not.
    """

    recipe: Recipe
    compressor: CompressorNetwork
    history: History
    resumed_from_epoch: int = 0

    @property
    def diverged_at(self) -> int | None:
        """The first epoch (from 1) whose loss is not finite, None for a training that went well."""
        bad = np.flatnonzero(~np.isfinite(self.history.loss))
        return int(bad[0]) + 1 if bad.size else None

    def check(self) -> None:
        """Raises `DivergedError` if it did."""
        if self.diverged_at:
            raise DivergedError(
                f"the training diverged: the loss of epoch {self.diverged_at} is not finite; lower lr, now "
                f"{self.recipe.lr:g}"
            )


@dataclass(frozen=True)
class EpochMetrics:
    """Where a training stands after an epoch.

    Attributes:
        epoch: Epochs done.
        epochs: Epochs in all.
        loss: (R,) this epoch's noisy loss.
        clean_loss: (R,) NaN in epochs without a measurement.
        dev: Scores on dev, each (R,).
    """

    epoch: int
    epochs: int
    loss: FloatArray
    clean_loss: FloatArray
    dev: Scores


def train_replicas(
    recipes: Sequence[Recipe],
    train: EncodedPairs,
    dev: EncodedPairs,
    *,
    clean_loss_every: int = 1,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    on_teacher_epoch: Callable[[int, int], None] = lambda *_: None,
    snapshot: TrainingCheckpoint | None = None,
) -> list[TrainingResult]:
    """Trains one compressor a recipe, all in one loop.

    Args:
        recipes: Every one of some alphas with every one of some seeds, equal in everything else.
        train: Pairs to train on.
        dev: Pairs to follow the training with; they do not influence it.
        clean_loss_every: Epochs between measurements of the clean loss; the first and the last epoch always have one.
        on_epoch: Called after every epoch, and for those that were done before an interruption.
        on_teacher_epoch: Called with (done, total) after every epoch of the teachers, if the recipe needs any.
        snapshot: What to go on from, and where to keep the training against interruptions.

    Returns:
        One result a recipe, in their order.

    Raises:
        InputError: If the recipe's device is not there.
        ValueError: If recipes differ in more than alpha and seed, or some of their combinations are missing.
    """
    shared = recipes[0]
    alphas, seeds = sorted({r.alpha for r in recipes}), sorted({r.seed for r in recipes})
    places = {(alpha, seed): i for i, (alpha, seed) in enumerate(product(alphas, seeds))}
    wanted = [places[r.alpha, r.seed] for r in recipes]
    if any(r.model_copy(update={"alpha": shared.alpha, "seed": shared.seed}) != shared for r in recipes):
        raise ValueError("replicas trained together may differ in alpha and seed only")
    if sorted(wanted) != list(range(len(places))):
        raise ValueError("replicas trained together are every alpha with every seed, once")

    device = resolve_device(shared.device)
    left = snapshot.begin() if snapshot else None
    needs_teacher = shared.needs_teacher and left is None
    heads = train_teachers(seeds, shared.teacher_alpha, train, device, on_teacher_epoch) if needs_teacher else None
    trainer = BatchedTrainer(shared, alphas, seeds, train, device, heads, left)
    model = trainer.model
    objective = LOSSES[shared.loss]
    dev_vectors = torch.from_numpy(dev.embeddings).to(device)
    train_labels = torch.from_numpy(scores_to_labels(train.scores, shared.label_transform))
    dev_labels = scores_to_labels(dev.scores, shared.label_transform)
    # Of every epoch the loss, the clean loss and the scores on dev, each of every replica.
    curves = list(left.tensors[CURVES].numpy()) if left else []

    def state() -> TrainerState:
        begun = trainer.state()
        known = torch.from_numpy(np.reshape(curves, (len(curves), 2 + len(METRICS), len(model))))
        return TrainerState({**begun.tensors, CURVES: known}, {**begun.numbers, "epoch": len(curves)})

    def tell(epoch: int) -> None:
        if on_epoch:
            loss, clean_loss, *scores = curves[epoch - 1]
            on_epoch(EpochMetrics(epoch, shared.epochs, loss, clean_loss, Scores(*scores)))

    resumed_from_epoch = len(curves)
    for epoch in range(1, resumed_from_epoch + 1):
        tell(epoch)
    for epoch in range(resumed_from_epoch + 1, shared.epochs + 1):
        if snapshot:
            snapshot.offer(state)
        loss = trainer.epoch()
        scores = score(predict_pair_cosines_of_each(model, dev_vectors, dev), dev_labels)
        clean_loss = np.full(len(model), np.nan)
        if epoch % clean_loss_every == 0 or epoch in (1, shared.epochs):
            predicted = torch.from_numpy(
                predict_pair_cosines_of_each(model, trainer.vectors[: len(train.embeddings)], train)
            )
            clean_loss = objective(predicted.double(), train_labels)[0].numpy()
        curves.append(np.stack([loss, clean_loss, *(getattr(scores, name) for name in METRICS)]))
        tell(epoch)
        if not np.isfinite(loss).any():
            break  # every replica has diverged, and none comes back from NaN
    else:
        if snapshot:
            snapshot.offer(state)

    losses, clean_losses, *followed = np.stack(curves, axis=2)
    return [
        TrainingResult(
            recipe,
            model.replica(r).snapshot(),
            History(
                loss=losses[r],
                clean_loss=clean_losses[r],
                dev={name: curve[r] for name, curve in zip(METRICS, followed, strict=True)},
            ),
            resumed_from_epoch,
        )
        for recipe, r in zip(recipes, wanted, strict=True)
    ]
