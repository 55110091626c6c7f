"""The training loop: trains replicas of one shape together and measures them after every epoch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.curves import curve_scorer
from twinsqueeze.model.compressor import CompressorNetwork, predict_pair_cosines_of_each
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import SCORE_NAMES, SIMILARITY
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.losses import LABEL_LOSSES
from twinsqueeze.training.setup import TrainingSetup, initial_model
from twinsqueeze.training.teacher import make_teachers
from twinsqueeze.training.trainer import BatchedTrainer, TrainingState
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.compute import resolve_device

# Name of the array with all epochs' metrics in a training state.
CURVES = "curves"


class DivergedError(InputError):
    """The loss of a training is not finite."""


@dataclass(frozen=True)
class History:
    """Learning curves, one value per epoch: float64 of shape (T,)."""

    loss: FloatArray  # mean training loss with noise, without the neighborhood loss unless that is the only one
    clean_loss: FloatArray  # the same without noise, after the epoch; NaN where it was not measured
    dev: dict[str, FloatArray]  # the task's curve scores on dev, after the epoch


@dataclass(frozen=True)
class TrainingResult:
    """The compressor of the last epoch, on the CPU, and its learning curves."""

    recipe: Recipe
    compressor: CompressorNetwork
    history: History
    resumed_from_epoch: int = 0  # epochs that an interrupted process had completed
    seconds: float = 0.0  # of the other epochs; replicas that train together share them

    @property
    def diverged_at(self) -> int | None:
        """The first epoch, from 1, whose loss is not finite; None if there is none."""
        bad = np.flatnonzero(~np.isfinite(self.history.loss))
        return int(bad[0]) + 1 if bad.size else None

    def check(self) -> None:
        """Raises `DivergedError` if the training diverged."""
        if self.diverged_at:
            raise DivergedError(
                f"the training diverged: the loss of epoch {self.diverged_at} is not finite; "
                f"lower lr, now {self.recipe.lr:g}"
            )


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of R replicas after `epoch` of `epochs`: as in `History`, each (R,)."""

    epoch: int
    epochs: int
    loss: FloatArray
    clean_loss: FloatArray
    dev: dict[str, FloatArray]

    def shown(self) -> dict[str, str]:
        """Returns what progress bars show: means over the replicas."""
        name, values = list(self.dev.items())[-1]
        return {"loss": f"{self.loss.mean():.4f}", f"dev {SCORE_NAMES[name]}": f"{values.mean():.4f}"}


def train_replicas(
    recipes: Sequence[Recipe],
    train: EncodedSplit,
    dev: EncodedSplit,
    *,
    base: CompressorNetwork | None = None,
    clean_loss_every: int = 1,
    on_epoch: Callable[[EpochMetrics], None] = lambda _: None,
    on_teacher_epoch: Callable[[int, int], None] = lambda *_: None,
    checkpoint: TrainingCheckpoint | None = None,
) -> list[TrainingResult]:
    """Trains one compressor per recipe, all in one loop; returns the results in the order of the recipes.

    The recipes are every combination of some alphas and seeds, equal in all other fields. All start with the layers of
    `base`, if their recipe has one. `on_epoch` is also called for the epochs of an interrupted process, and
    `on_teacher_epoch` with (epochs done, epochs) of the teachers.
    """
    setup, epochs, start = _make_setup(recipes, train, base), recipes[0].epochs, time.monotonic()
    if not epochs:
        return _fit_codebooks_again(setup, recipes, dev)
    run = _Run(setup, train, dev, checkpoint.resume_state if checkpoint else None, on_teacher_epoch)
    for epoch in range(1, epochs + 1):
        if epoch > run.resumed_from_epoch:
            if checkpoint:
                checkpoint.maybe_save(run.state)
            run.train_epoch(with_clean_loss=epoch % clean_loss_every == 0 or epoch in (1, epochs))
        on_epoch(run.metrics(epoch))
        if not np.isfinite(run.curves[epoch - 1][0]).any():
            break  # no replica recovers from NaN
    else:
        if checkpoint:
            checkpoint.maybe_save(run.state)
    return [run.result(recipe, time.monotonic() - start) for recipe in recipes]


def _fit_codebooks_again(setup: TrainingSetup, recipes: Sequence[Recipe], dev: EncodedSplit) -> list[TrainingResult]:
    """Returns the replicas as they are before the first epoch, with empty curves."""
    start, model = time.monotonic(), initial_model(setup)
    history = History(np.empty(0), np.empty(0), {name: np.empty(0) for name in dev.task.curve_scores})
    replicas = [model.replica(setup.replica(recipe)).to("cpu", copy=True) for recipe in recipes]
    seconds = time.monotonic() - start
    return [TrainingResult(*item, history, seconds=seconds) for item in zip(recipes, replicas, strict=True)]


def _make_setup(recipes: Sequence[Recipe], train: EncodedSplit, base: CompressorNetwork | None) -> TrainingSetup:
    shared = recipes[0]
    if shared.has_base != (base is not None):
        raise ValueError("a base is passed with the recipes that have one, and with no other")
    if any(r.model_copy(update={"alpha": shared.alpha, "seed": shared.seed}) != shared for r in recipes):
        raise ValueError("replicas trained together may differ in alpha and seed only")
    alphas, seeds = sorted({r.alpha for r in recipes}), sorted({r.seed for r in recipes})
    if sorted((r.alpha, r.seed) for r in recipes) != list(product(alphas, seeds)):
        raise ValueError("replicas trained together are every alpha with every seed, once")
    if train.task == SIMILARITY and not shared.needs_scores:
        train = train.without_pairs()
    return TrainingSetup(shared, alphas, seeds, train, resolve_device(shared.device), base)


class _Run:
    """A trainer with the metrics of its epochs, `curves`: per epoch (2 + C, R) losses, clean losses and dev scores."""

    def __init__(
        self,
        setup: TrainingSetup,
        train: EncodedSplit,  # for teachers: with pairs, even if the compressor is trained without
        dev: EncodedSplit,
        state: TrainingState | None,
        on_teacher_epoch: Callable[[int, int], None],
    ) -> None:
        recipe = setup.recipe
        self._setup = setup
        if state:
            self._trainer = BatchedTrainer.resume(setup, state)
        elif recipe.needs_teacher:
            teachers = make_teachers(recipe, setup.seeds, train, setup.device, on_teacher_epoch)
            self._trainer = BatchedTrainer.start(setup, teachers)
        else:
            self._trainer = BatchedTrainer.start(setup)
        self._score_dev = curve_scorer(dev, recipe.label_transform, setup.device)
        self._score_names = dev.task.curve_scores
        self._train_labels = torch.from_numpy(scores_to_labels(setup.train.scores, recipe.label_transform))
        self.curves: list[FloatArray] = list(state.arrays[CURVES]) if state else []
        self.resumed_from_epoch = len(self.curves)

    def train_epoch(self, *, with_clean_loss: bool) -> None:
        loss = self._trainer.train_epoch()
        scores = self._score_dev(self._trainer.model)
        clean_loss = self._measure_clean_loss() if with_clean_loss else np.full(len(loss), np.nan)
        self.curves.append(np.stack([loss, clean_loss, *scores]))

    def _measure_clean_loss(self) -> FloatArray:
        train, trainer = self._setup.train, self._trainer
        if not self._setup.recipe.needs_scores:
            return trainer.measure_clean_search_loss()
        predicted = predict_pair_cosines_of_each(trainer.model, trainer.vectors[: len(train.embeddings)], train)
        loss = LABEL_LOSSES[self._setup.recipe.loss](torch.from_numpy(predicted).double(), self._train_labels)[0]
        return loss.numpy()

    def state(self) -> TrainingState:
        state = self._trainer.state()
        curves = np.reshape(self.curves, (len(self.curves), 2 + len(self._score_names), len(self._trainer.model)))
        return TrainingState({**state.arrays, CURVES: curves}, {**state.values, "epoch": len(self.curves)})

    def metrics(self, epoch: int) -> EpochMetrics:
        loss, clean_loss, *scores = self.curves[epoch - 1]
        dev = dict(zip(self._score_names, scores, strict=True))
        return EpochMetrics(epoch, self._setup.recipe.epochs, loss, clean_loss, dev)

    def result(self, recipe: Recipe, seconds: float) -> TrainingResult:
        replica = self._setup.replica(recipe)
        loss, clean_loss, *dev = np.stack(self.curves, axis=1)[:, :, replica]
        history = History(loss, clean_loss, dict(zip(self._score_names, dev, strict=True)))
        compressor = self._trainer.model.replica(replica).to("cpu", copy=True)
        return TrainingResult(recipe, compressor, history, self.resumed_from_epoch, seconds)
