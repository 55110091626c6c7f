"""Trains the trials of a study, several at once, and stops those that fall behind."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite, nan

import numpy as np

from twinsqueeze.errors import InputError
from twinsqueeze.experiment_data import ExperimentData
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.batching import MAX_BATCH_SIZE, num_parallel_batches, plan_batches
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.grid_trainer import BatchStopped, GridBatch, train_batches
from twinsqueeze.training.loop import DivergedError, EpochMetrics, TrainingResult
from twinsqueeze.tuning.space import Params, SearchSpace
from twinsqueeze.tuning.study import COMPLETE, FAILED, PRUNED, Pruner, Study, TrialResult
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.signals import check_interrupted

LAST = 100  # percent of a training
OpenCheckpoint = Callable[[Sequence[Recipe]], AbstractContextManager[TrainingCheckpoint]]


@dataclass(frozen=True)
class TrialTrainer:
    """How trials are trained: each with every one of the seeds, and with checkpoints."""

    data: ExperimentData
    seeds: Sequence[int]
    clean_loss_every: int
    open_checkpoint: OpenCheckpoint


def trials_per_round(space: SearchSpace, data: ExperimentData, num_seeds: int) -> int:
    """Returns how many trials are trained at once: one per core, or a batch per core if only alpha is searched."""
    per_batch = _trials_per_batch(data, num_seeds) if set(space.parameters) == {"alpha"} else 1
    return num_parallel_batches([data.device]) * per_batch


def _trials_per_batch(data: ExperimentData, num_seeds: int) -> int:
    return max(MAX_BATCH_SIZE[data.device.type] // num_seeds, 1)


def run_trials(study: Study, num_trials: int, trainer: TrialTrainer) -> Generator[TrialResult]:
    """Trains trials until the study has `num_trials`, or all combinations, and yields each result.

    A result is stored when the next one is asked for. Close the generator to end early.
    """
    while True:
        proposals, pruner = study.next_round(num_trials)
        if not proposals:
            return
        round_ = _Round(study, trainer, pruner, proposals)
        for result in round_.train():
            yield result
            study.add(result)
        round_.discard_checkpoints()


@dataclass
class _Trial:
    """A trial in training: the metrics of its epochs, means over seeds, and its score by percent of the training."""

    params: Params
    recipes: list[Recipe] = field(default_factory=list)
    history: list[EpochMetrics] = field(default_factory=list)
    curve: dict[int, float] = field(default_factory=dict)
    is_behind: bool = False

    def log(self, metrics: EpochMetrics, replicas: list[int], score: str) -> None:
        """Adds the metrics of an epoch, of which those of `replicas` are its own."""

        def mean(values: FloatArray) -> FloatArray:
            return np.asarray(np.mean(values[replicas], keepdims=True), np.float64)

        dev = {name: mean(values) for name, values in metrics.dev.items()}
        self.history.append(
            EpochMetrics(metrics.epoch, metrics.epochs, mean(metrics.loss), mean(metrics.clean_loss), dev)
        )
        if isfinite(dev[score][0]):
            self.curve[LAST * metrics.epoch // metrics.epochs] = float(dev[score][0])


class _RoundCheckpoint(TrainingCheckpoint):
    """A checkpoint that outlives its training: it is removed once the results of its round are stored."""

    def discard(self) -> None:
        """Leaves the file to `_Round.discard_checkpoints`."""


class _Round:
    """The trials of a round, in batches of those that differ in alpha alone."""

    def __init__(self, study: Study, trainer: TrialTrainer, pruner: Pruner, proposals: dict[int, Params]) -> None:
        self._study = study
        self._trainer = trainer
        self._pruner = pruner
        self._trials = {number: _Trial(params) for number, params in proposals.items()}
        self._score = trainer.data.task.selection
        self._checkpoints: list[TrainingCheckpoint] = []

    def train(self) -> Iterator[TrialResult]:
        """Yields the results of all trials by rising number, once all are trained."""
        failures = {}
        known = {trial.recipe_digest: trial for trial in self._study.trials if trial.recipe_digest}
        wanted: dict[Recipe, None] = {}
        for number, trial in self._trials.items():
            try:
                trial.recipes = [self._study.space.make_recipe(trial.params, seed=s) for s in self._trainer.seeds]
            except InputError as error:
                failures[number] = str(error)
                continue
            if trial.recipes[0].digest not in known:
                wanted[trial.recipes[0]] = None
        results = self._train(list(wanted))
        for number, trial in self._trials.items():
            digest = trial.recipes[0].digest if trial.recipes else ""
            if number in failures:
                yield TrialResult(number, trial.params, FAILED, nan, {}, reason=failures[number])
            elif digest in known:
                yield _repeat(known[digest], number, trial.params)
            else:
                known[digest] = self._result(number, trial, [results[r] for r in trial.recipes if r in results])
                yield known[digest]

    def _train(self, recipes: list[Recipe]) -> dict[Recipe, TrainingResult]:
        data = self._trainer.data
        num_parallel = num_parallel_batches([data.device])
        batches = [
            GridBatch(
                batch,
                data.training_pairs(batch[0]),
                data.encoded["dev"],
                open_checkpoint=partial(self._open_checkpoint, batch),
                on_epoch=partial(self._on_epoch, batch),
            )
            for batch in self._plan(recipes, num_parallel)
        ]
        training = train_batches(batches, num_parallel=num_parallel, clean_loss_every=self._trainer.clean_loss_every)
        with closing(training) as finished:
            return {result.recipe: result for results in finished for result in results}

    def _plan(self, recipes: list[Recipe], num_parallel: int) -> list[list[Recipe]]:
        """Splits the recipes of the first seed into batches, and adds the other seeds to each."""
        seeds = self._trainer.seeds
        max_size = _trials_per_batch(self._trainer.data, len(seeds))
        batches = plan_batches(recipes, at_once=num_parallel, max_size=max_size) if recipes else []
        return [[recipe.model_copy(update={"seed": s}) for recipe in batch for s in seeds] for batch in batches]

    @contextmanager
    def _open_checkpoint(self, batch: list[Recipe]) -> Iterator[TrainingCheckpoint]:
        with self._trainer.open_checkpoint(batch) as checkpoint:
            self._checkpoints.append(checkpoint)
            yield _RoundCheckpoint(**vars(checkpoint))

    def discard_checkpoints(self) -> None:
        """Removes the checkpoints of the round, whose results are stored."""
        for checkpoint in self._checkpoints:
            checkpoint.discard()

    def _on_epoch(self, batch: list[Recipe], metrics: EpochMetrics) -> None:
        """Notes the scores of an epoch, and ends the batch once all of its trials are behind."""
        trials = [trial for trial in self._trials.values() if set(trial.recipes) <= set(batch) and trial.recipes]
        for trial in trials:
            trial.log(metrics, [batch.index(recipe) for recipe in trial.recipes], self._score)
            is_last = metrics.epoch == metrics.epochs
            trial.is_behind = not is_last and (trial.is_behind or self._pruner.should_prune(trial.curve))
        if all(trial.is_behind for trial in trials):
            raise BatchStopped

    def _result(self, number: int, trial: _Trial, results: Sequence[TrainingResult]) -> TrialResult:
        """Returns the result of a trial from the trainings of its seeds, of which a pruned trial has none."""
        state, value, reason = PRUNED, nan, ""
        scores: dict[str, float] = {}
        try:
            for result in results:
                check_interrupted()
                result.check()
        except DivergedError as error:
            state, reason = FAILED, str(error)
        else:
            if results and LAST not in trial.curve:
                state, reason = FAILED, f"{self._score} on dev is not finite: the compressed vectors may be all equal"
            elif results:
                state, scores, value = COMPLETE, self._evaluate(results), trial.curve[LAST]
            else:
                value = trial.curve[max(trial.curve)]
        return TrialResult(
            number, trial.params, state, value, trial.curve, scores, reason, trial.recipes[0].digest, trial.history
        )

    def _evaluate(self, results: Sequence[TrainingResult]) -> dict[str, float]:
        """Returns the scores on dev, means over seeds."""
        data = self._trainer.data
        evaluate = data.evaluator("dev", results[0].recipe.label_transform)
        scores = [evaluate(result.compressor.to(data.device)).scores for result in results]
        return {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}


def _repeat(result: TrialResult, number: int, params: Params) -> TrialResult:
    """Returns the result of a trial whose recipe was tried before."""
    return replace(result, number=number, params=params, history=())
