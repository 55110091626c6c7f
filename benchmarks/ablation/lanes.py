"""Steps of a grid's batches in processes, one for each core: a module of its own, which processes can import."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Self

import torch

from twinsqueeze.data.encoder import EncodedPairs, embed_pairs, resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.trainer import BatchedTrainer
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.processes import DaemonSpawnContext, end_with_parent

# Of this process, if it is one of the lanes.
_trainers: list[BatchedTrainer] = []


class Lanes:
    """Processes of one thread each, all of which train the same batches, one after the other.

    Args:
        count: How many processes.
        cut: The batches.
    """

    def __init__(self, count: int, cut: Sequence[Sequence[Recipe]]) -> None:
        self._count, self._cut = count, cut
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        pools = [ProcessPoolExecutor(1, DaemonSpawnContext(), _begin, (self._cut,)) for _ in range(self._count)]
        self._pools = [self._stack.enter_context(pool) for pool in pools]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def train(self, epochs: int) -> None:
        """Every lane trains every batch for so many epochs."""
        for training in [pool.submit(_train, epochs) for pool in self._pools]:
            training.result()


def demo(encoder: str) -> EncodedPairs:
    """The train split of the demo."""
    return embed_pairs(load_pairs("demo", splits=("train",)).splits, resolve_encoder(encoder), DiskCache())["train"]


def trainer(recipes: Sequence[Recipe], train: EncodedPairs) -> BatchedTrainer:
    """Of a batch, on the CPU."""
    alphas, seeds = ({getattr(recipe, name) for recipe in recipes} for name in ("alpha", "seed"))
    return BatchedTrainer(recipes[0], sorted(alphas), sorted(seeds), train, torch.device("cpu"))


def _begin(cut: Sequence[Sequence[Recipe]]) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    train = demo(cut[0][0].encoder)
    _trainers.extend(trainer(batch, train) for batch in cut)


def _train(epochs: int) -> None:
    for each in _trainers:
        for _ in range(epochs):
            each.epoch()
