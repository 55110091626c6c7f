"""Checkpoints of trainings in progress, from which the same training resumes bit for bit.

The name of a checkpoint contains digests of recipes, data, versions, the package's code, CPU, threads and device, which
fix a training's bits. A training with anything different does not find it.
"""

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.trainer import TrainingState
from twinsqueeze.utils.disk_cache import ChecksumError, read_verified, write_atomic
from twinsqueeze.utils.files import state_dir

PACKAGE_DIR = Path(__file__).parents[1]
SUFFIX = ".checkpoint"
HEADER = "header"  # name of the array with the recipes and the values of a state, as JSON
MAX_OVERHEAD = 0.02  # share of a training's time that saving may take


@dataclass
class TrainingCheckpoint:
    """The checkpoint of one batch. `warn` is called with a message if it cannot be saved."""

    path: Path | None  # None saves nothing
    recipes: Sequence[Recipe]
    resume_state: TrainingState | None
    warn: Callable[[str], None]
    save_seconds: float = 0.0  # that all saves have taken
    next_save_seconds: float = 0.02  # expected of the next save; the first one is due after 0.02 s / MAX_OVERHEAD = 1 s
    _started: float | None = None

    @property
    def epoch(self) -> int:
        """Epochs that an interrupted process has completed."""
        return self.resume_state.epoch if self.resume_state else 0

    def maybe_save(self, get_state: Callable[[], TrainingState]) -> None:
        """Saves the state, unless saving would take more than its share of the time since the first call."""
        now = time.perf_counter()
        self._started = self._started or now
        if self.path is None or self.save_seconds + self.next_save_seconds >= MAX_OVERHEAD * (now - self._started):
            return
        try:
            write_atomic(self.path, self.serialize(get_state()))
        except OSError as error:
            self.warn(f"the training cannot be saved, so an interruption would lose it: {error}")
            self.next_save_seconds = math.inf  # no further attempts
            return
        self.next_save_seconds = time.perf_counter() - now
        self.save_seconds += self.next_save_seconds

    def serialize(self, state: TrainingState) -> bytes:
        """Returns the content of the file."""
        recipes = [recipe.model_dump(exclude={"dataset", "device"}) for recipe in self.recipes]
        header: Any = json.dumps({"recipes": recipes, "values": state.values})
        file = io.BytesIO()
        np.savez(file, **{**state.arrays, HEADER: header})
        return file.getvalue()

    def discard(self) -> None:
        """Removes the file and its lock."""
        if self.path:
            _remove(self.path, self.path.with_suffix(".lock"))


class CheckpointStore:
    """The checkpoints of all trainings on the same data, code and machine; `warn` reports files that cannot be used.

    `environment` has what else fixes the bits: versions, CPU, threads, device, epochs between measurements.
    """

    def __init__(
        self,
        train: EncodedSplit,
        dev: EncodedSplit,
        environment: Mapping[str, Any],
        warn: Callable[[str], None],
        folder: Path | None = None,
    ) -> None:
        self.folder = folder or state_dir() / "trainings"
        self._warn = warn
        self._digest = _environment_digest(train, dev, environment)

    @contextmanager
    def open(self, recipes: Sequence[Recipe], *, resume: bool) -> Iterator[TrainingCheckpoint]:
        """Yields the checkpoint of a batch, locked until the context ends; if it cannot be locked, it saves nothing."""
        path = self.path(recipes)
        with _lock(path) as problem:
            if problem:
                self._warn(f"an interruption would lose this training, since {problem}")
                yield TrainingCheckpoint(None, recipes, None, self._warn)
                return
            _remove(*self.folder.glob(f"{path.name}.*"))  # unfinished files of killed processes
            if not resume:
                _remove(path)
            yield self._read(path) or TrainingCheckpoint(path, recipes, None, self._warn)

    def interrupted(self) -> list[TrainingCheckpoint]:
        """Returns the checkpoints that can be resumed, whose recipes have the default dataset and device."""
        found = []
        for path in sorted(self.folder.glob(f"{self._digest}-*{SUFFIX}")):
            with _lock(path) as problem:  # that of a running process is left out
                found.append(None if problem else self._read(path))
        return [checkpoint for checkpoint in found if checkpoint]

    def path(self, recipes: Sequence[Recipe]) -> Path:
        """Returns the file of a batch."""
        digest = hashlib.sha256("".join(sorted(recipe.digest for recipe in recipes)).encode()).hexdigest()
        return self.folder / f"{self._digest}-{digest[:16]}{SUFFIX}"

    def _read(self, path: Path) -> TrainingCheckpoint | None:
        try:
            arrays = dict(np.load(io.BytesIO(read_verified(path))))
        except FileNotFoundError:
            return None
        except (OSError, ChecksumError) as error:
            self._warn(f"an interrupted training starts again, since its checkpoint is unusable: {error}")
            _remove(path)
            return None
        header = json.loads(str(arrays.pop(HEADER)))
        recipes = [Recipe.parse(recipe) for recipe in header["recipes"]]
        return TrainingCheckpoint(path, recipes, TrainingState(arrays, header["values"]), self._warn)


def _environment_digest(train: EncodedSplit, dev: EncodedSplit, environment: Mapping[str, Any]) -> str:
    """Returns 16 hex digits over everything but the recipe that fixes a training's bits."""
    digest = hashlib.sha256(json.dumps(dict(environment), sort_keys=True, default=str).encode())
    digest.update(torch.backends.cpu.get_cpu_capability().encode())
    if torch.cuda.is_available():
        digest.update(torch.cuda.get_device_name().encode())
    for module in sorted(PACKAGE_DIR.rglob("*.py")):
        digest.update(module.read_bytes())
    for pairs in (train, dev):
        for array in (pairs.embeddings, pairs.examples, pairs.scores, pairs.stored_rows):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


@contextmanager
def _lock(path: Path) -> Iterator[str | None]:
    """Locks a checkpoint against other processes. Yields None, or the reason why it cannot be locked."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except (OSError, Timeout) as error:
        yield "another process trains the same" if isinstance(error, Timeout) else str(error)
        return
    try:
        yield None
    finally:
        if not path.exists():
            _remove(Path(lock.lock_file))  # FileLock notices if another process has just removed its file
        lock.release()


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):  # a read-only disk
            path.unlink(missing_ok=True)
