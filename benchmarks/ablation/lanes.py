"""Trains the batches of a grid in one process per core: a module that worker processes can import."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self

import torch

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.data.embedding import embed_splits
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.setup import TrainingSetup
from twinsqueeze.training.trainer import BatchedTrainer
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.worker_pool import WorkerPool

# Of a worker process.
_trainers: list[BatchedTrainer] = []


class Lanes:
    """Processes of one thread each, all of which train the same batches, one after the other.

    Args:
        count: Number of processes.
        batches: The batches.
    """

    def __init__(self, count: int, batches: Sequence[Sequence[Recipe]]) -> None:
        self._count, self._batches = count, batches
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        warm_up = partial(_start_trainers, self._batches)
        self._pools = [self._stack.enter_context(WorkerPool(1, warm_up)) for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def train(self, epochs: int) -> None:
        """Trains every batch in every process for a number of epochs."""
        for future in [pool.submit(_train, epochs) for pool in self._pools]:
            future.result()


def load_demo_pairs(encoder: str) -> EncodedSplit:
    """Returns the train split of the demo."""
    return embed_splits(load_pairs("demo", splits=("train",)).splits, resolve_encoder(encoder), DiskCache())["train"]


def make_trainer(recipes: Sequence[Recipe], train: EncodedSplit) -> BatchedTrainer:
    """Returns the trainer of a batch on the CPU."""
    alphas, seeds = sorted({recipe.alpha for recipe in recipes}), sorted({recipe.seed for recipe in recipes})
    return BatchedTrainer.start(TrainingSetup(recipes[0], alphas, seeds, train, torch.device("cpu")))


def _start_trainers(batches: Sequence[Sequence[Recipe]]) -> None:
    torch.set_num_threads(1)
    train = load_demo_pairs(batches[0][0].encoder)
    _trainers.extend(make_trainer(batch, train) for batch in batches)


def _train(epochs: int) -> None:
    for trainer in _trainers:
        for _ in range(epochs):
            trainer.train_epoch()
