"""Checkpoints of trainings."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.checkpointing import CheckpointStore, TrainingCheckpoint
from twinsqueeze.training.loop import TrainingResult, train_replicas
from twinsqueeze.training.trainer import TrainingState
from twinsqueeze.utils.disk_cache import write_atomic


class RecordingCheckpoint(TrainingCheckpoint):
    """Collects the content of the checkpoint at every epoch."""

    def __init__(self, recipes: list[Recipe]) -> None:
        super().__init__(None, recipes, None, print)
        self.contents: list[bytes] = []

    def maybe_save(self, get_state: Callable[[], TrainingState]) -> None:
        self.contents.append(self.serialize(get_state()))


class CheckpointFolder:
    """A folder of checkpoints of trainings on `pairs`, train and dev, and the warnings about them."""

    def __init__(self, path: Path, *pairs: EncodedSplit) -> None:
        self.path, self.pairs = path, pairs
        self.warnings: list[str] = []

    def store(self, *pairs: EncodedSplit, **environment: Any) -> CheckpointStore:
        described = {"threads": 2} | environment
        return CheckpointStore(*(pairs or self.pairs), described, self.warnings.append, self.path)

    def open(self, recipes: list[Recipe], *, resume: bool = True) -> AbstractContextManager[TrainingCheckpoint]:
        return self.store().open(recipes, resume=resume)

    def write(self, recipes: list[Recipe], content: bytes | None = None, *, epoch: int = 2) -> None:
        """Writes a checkpoint as an interrupted process would leave it."""
        state = TrainingState({"x": np.arange(50.0)}, {"epoch": epoch})
        with self.open(recipes) as checkpoint:
            write_atomic(checkpoint.path, content or checkpoint.serialize(state))

    def train(self, recipes: list[Recipe], **options: Any) -> list[TrainingResult]:
        """Trains with the checkpoint of the recipes."""
        with self.open(recipes) as checkpoint:
            return train_replicas(recipes, *self.pairs, checkpoint=checkpoint, **options)

    def suffixes(self) -> list[str]:
        return sorted(path.suffix for path in self.path.iterdir())
