"""Trains the batches of a grid, several at once, and reports their progress."""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import EpochMetrics, TrainingResult
from twinsqueeze.training.parallel import TrainFunction, training_pool
from twinsqueeze.utils.compute import map_threaded
from twinsqueeze.utils.signals import check_interrupted

# Called with the epochs done, the epochs in all (both summed over recipes), and values to show.
OnProgress = Callable[[int, int, Mapping[str, str]], None]


class BatchStopped(Exception):  # noqa: N818 - the batch did not fail
    """Raised by `GridBatch.on_epoch` to end the training of this batch alone."""


@dataclass(frozen=True)
class GridBatch:
    """Recipes that train together, as `train_replicas` takes them, and how to open their checkpoint."""

    recipes: list[Recipe]
    train: EncodedSplit
    dev: EncodedSplit
    open_checkpoint: Callable[[], AbstractContextManager[TrainingCheckpoint | None]] = nullcontext
    on_epoch: Callable[[EpochMetrics], None] = lambda _: None  # called from the training threads
    base: CompressorNetwork | None = None

    @property
    def epochs(self) -> int:
        """Epochs of all its recipes."""
        return sum(recipe.epochs for recipe in self.recipes)


def train_batches(
    batches: Sequence[GridBatch], *, num_parallel: int, clean_loss_every: int, on_progress: OnProgress = lambda *_: None
) -> Generator[list[TrainingResult]]:
    """Trains `num_parallel` batches at once and yields the results of each, in their order; none of a stopped batch.

    A batch's checkpoint is deleted when the next result is asked for. The first error ends all trainings, and so does
    closing the generator. `on_progress` is called from the training threads, one call at a time.
    """
    if not batches:
        return
    num_parallel = min(num_parallel, len(batches))
    num_pairs = sum(batch.epochs * len(batch.train) for batch in batches)
    with training_pool(num_pairs, num_parallel) as train_replicas:
        trainer = _BatchTrainer(train_replicas, batches, clean_loss_every, on_progress)
        with closing(map_threaded(iter(range(len(batches))), trainer.train, num_parallel)) as finished:
            try:
                for _, (results, checkpoint) in finished:
                    yield results
                    if checkpoint:
                        checkpoint.discard()
            finally:  # `closing` then waits for the other trainings
                trainer.stop(CancelledError())


@dataclass
class _BatchTrainer:
    """Trains batches in threads, sums up their progress and stops them all at the first error."""

    train_replicas: TrainFunction
    batches: Sequence[GridBatch]
    clean_loss_every: int
    on_progress: OnProgress
    _epochs_done: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _error: BaseException | None = None

    def stop(self, error: BaseException) -> None:
        """Has all trainings raise an error, unless they already raise an earlier one."""
        self._error = self._error or error

    def train(self, index: int) -> tuple[list[TrainingResult], TrainingCheckpoint | None]:
        """Trains one batch."""
        batch = self.batches[index]

        def on_epoch(metrics: EpochMetrics) -> None:
            self._report(index, metrics.epoch * len(batch.recipes), metrics.shown())
            batch.on_epoch(metrics)

        def on_teacher_epoch(done: int, total: int) -> None:
            self._report(index, 0, {"teacher": f"{done} of {total} epochs"})

        try:
            self._check_stopped()
            with batch.open_checkpoint() as checkpoint:
                results = self.train_replicas(
                    batch.recipes,
                    batch.train,
                    batch.dev,
                    base=batch.base,
                    clean_loss_every=self.clean_loss_every,
                    on_epoch=on_epoch,
                    on_teacher_epoch=on_teacher_epoch,
                    checkpoint=checkpoint,
                )
            if any(result.diverged_at for result in results):  # the batch may have ended early
                self._report(index, batch.epochs, {})
        except BatchStopped:
            self._report(index, batch.epochs, {})
            return [], checkpoint
        except BaseException as error:
            self.stop(error)
            raise
        return results, checkpoint

    def _report(self, index: int, epochs_done: int, values: Mapping[str, str]) -> None:
        self._check_stopped()
        with self._lock:
            self._epochs_done[index] = epochs_done
            self.on_progress(sum(self._epochs_done.values()), sum(batch.epochs for batch in self.batches), values)

    def _check_stopped(self) -> None:
        check_interrupted()
        if self._error:
            raise self._error
