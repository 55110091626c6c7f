"""Trainings that were interrupted, as files that the same training goes on from, bit for bit.

A file is found by all that fixes a training's bits: recipes, vectors, scores, versions, the code itself, CPU, threads
and device. Where one of them is another the file is not found, so nothing is gone on with that would end otherwise.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.recipe import Recipe
from twinsqueeze.utils.disk_cache import UNFINISHED, ChecksumError, read_verified, write_atomic
from twinsqueeze.utils.files import state_dir
from twinsqueeze.utils.signals import defer_signals

SUFFIX = ".snapshot"
LOCK = ".lock"
HEADER = "twinsqueeze"
# Of a training's time, what its snapshots may take in all.
MAX_OVERHEAD = 0.02
# What the first one is reckoned to take, before one was measured: seconds, and bytes a second.
LEAST_SECONDS = 0.01
BYTES_A_SECOND = 1e8
KEPT_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class TrainerState:
    """A training between two epochs.

    Attributes:
        tensors: By name.
        numbers: What JSON can hold; of a whole training also `epoch`, how many are done.
    """

    tensors: dict[str, torch.Tensor]
    numbers: dict[str, Any]

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return int(self.numbers["epoch"])

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class InterruptedTraining:
    """What an interrupted process left.

    Attributes:
        recipes: That were trained together; their dataset and device are the defaults, whatever they were.
        state: How far they came.
    """

    recipes: list[Recipe]
    state: TrainerState


class TrainingCheckpoint:
    """The file of one training, which one process alone writes.

    Args:
        path: The file; None to keep nothing.
        recipes: What is trained.
        left: What the file holds.
        say: Told what goes wrong.
        share: Of the training's time, what writing may take.

    Attributes:
        left: How far an earlier process came, None if there is nothing to go on from.
        say: Told what goes wrong.
        seconds: That writing took so far.
    """

    def __init__(
        self,
        path: Path | None,
        recipes: Sequence[Recipe],
        left: TrainerState | None = None,
        say: Callable[[str], None] = print,
        share: float = MAX_OVERHEAD,
    ) -> None:
        self.path = path
        self.left = left
        self.seconds = 0.0
        self._recipes = [recipe.model_dump(exclude={"dataset", "device"}) for recipe in recipes]
        self.say = say
        self._share = share
        self._began = time.perf_counter()
        self._next = 0.0  # seconds that the next one is reckoned to take
        self._failed = False

    def begin(self) -> TrainerState | None:
        """Returns what to go on from. The time that may be spent counts from here."""
        self._began = time.perf_counter()
        return self.left

    def offer(self, state: Callable[[], TrainerState]) -> None:
        """Writes a state if that keeps within the share of time; a disk that can't be written to is said once."""
        if self.path is None:
            return
        if not self._next:
            self._next = LEAST_SECONDS + state().bytes / BYTES_A_SECOND
        start = time.perf_counter()
        if self.seconds + self._next > self._share * (start - self._began):
            return
        with defer_signals(then_stop=True):
            try:
                write_atomic(self.path, self._bytes(state()))
            except OSError as error:
                if not self._failed:
                    self.say(f"the training can't be kept against interruptions: {error}")
                self._failed = True
        self._next = time.perf_counter() - start
        self.seconds += self._next

    def _bytes(self, state: TrainerState) -> bytes:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        return save(tensors, {HEADER: json.dumps({"recipes": self._recipes, "numbers": state.numbers})})

    def discard(self) -> None:
        """Removes the file: what it would be gone on from is recorded."""
        if self.path is not None:
            _remove(self.path)


class CheckpointStore:
    """The files of all trainings on the same data, with the same code, on the same machine.

    Args:
        train: What is trained on.
        dev: What trainings are followed with.
        facts: What else fixes the bits: versions, CPU, threads, device, epochs between measurements.
        say: Told what goes wrong.
        folder: Where they are; by default `trainings` in the state folder.
    """

    def __init__(
        self,
        train: EncodedPairs,
        dev: EncodedPairs,
        facts: Mapping[str, Any],
        say: Callable[[str], None],
        folder: Path | None = None,
    ) -> None:
        self.folder = folder or state_dir() / "trainings"
        self._say = say
        self._made_of = _environment_digest(train, dev, facts)

    @contextmanager
    def open(self, recipes: Sequence[Recipe], *, resume: bool) -> Iterator[TrainingCheckpoint]:
        """The file of a training, kept from other processes until the block ends.

        Args:
            recipes: What is trained together.
            resume: Whether to go on from what was left; otherwise that is removed.

        Yields:
            One that keeps nothing where another process trains the same, or the folder can't be written to.
        """
        path = self._path(recipes)
        lock = _lock(path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except (OSError, Timeout) as error:
            why = "another process trains the same" if isinstance(error, Timeout) else str(error)
            self._say(f"the training is not kept against interruptions: {why}")
            yield TrainingCheckpoint(None, recipes)
            return
        try:
            self._sweep(path)
            if not resume:
                _remove(path)
            left = self._read(path) if resume else None
            yield TrainingCheckpoint(path, recipes, left.state if left else None, self._say)
        finally:
            if not path.exists():
                _remove(Path(lock.lock_file))  # whoever is about to take it sees that it is gone, and makes another
            lock.release()

    def left(self) -> list[InterruptedTraining]:
        """What interrupted processes left, the newest first; not what a living one is at."""
        found = []
        for path in sorted(self.folder.glob(f"{self._made_of}-*{SUFFIX}"), key=_age):
            with _held(path) as free:
                if free and (left := self._read(path)):
                    found.append(left)
        return found

    def _path(self, recipes: Sequence[Recipe]) -> Path:
        digest = hashlib.sha256("".join(sorted(recipe.digest for recipe in recipes)).encode()).hexdigest()
        return self.folder / f"{self._made_of}-{digest[:16]}{SUFFIX}"

    def _read(self, path: Path) -> InterruptedTraining | None:
        try:
            payload = read_verified(path)
        except FileNotFoundError:
            return None
        except (OSError, ChecksumError) as error:
            self._say(f"an interrupted training can't be gone on with and begins anew: {error}")
            _remove(path)
            return None
        length = int.from_bytes(payload[:8], "little")
        header = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"][HEADER])
        return InterruptedTraining(
            [Recipe.parse(recipe) for recipe in header["recipes"]], TrainerState(load(payload), header["numbers"])
        )

    def _sweep(self, ours: Path) -> None:
        """Removes what nobody has come back to for 30 days, and what processes that were killed left half written."""
        for path in self.folder.glob(f"{ours.name}.*{UNFINISHED}"):
            _remove(path)
        trainings: dict[str, list[Path]] = {}
        for path in self.folder.iterdir():
            trainings.setdefault(path.name.partition(".")[0], []).append(path)
        for name, paths in trainings.items():
            if name != ours.stem and min(map(_age, paths)) > KEPT_SECONDS:
                with _held(self.folder / name) as free:
                    for path in paths if free else []:
                        _remove(path)


def _environment_digest(train: EncodedPairs, dev: EncodedPairs, facts: Mapping[str, Any]) -> str:
    """16 hex digits over all that fixes a training's bits besides its recipe."""
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True, default=str).encode())
    digest.update(torch.backends.cpu.get_cpu_capability().encode())
    if torch.cuda.is_available():
        digest.update(torch.cuda.get_device_name().encode())
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    for pairs in (train, dev):
        for array in (pairs.embeddings, pairs.first, pairs.second, pairs.scores):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_suffix(LOCK))


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Keeps other processes from a training for a moment; yields False where a living one is at it."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except (OSError, Timeout):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _remove(path: Path) -> None:
    with suppress(OSError):  # a disk that turned read-only keeps it, and costs nothing else
        path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
