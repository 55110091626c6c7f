"""Trains batches of a grid in processes of their own.

Of a step a tenth is Python, and threads that train take turns at it: between any two operations each waits until it has
Python's lock. Processes wait for nobody. They take seconds to start, so small grids are trained in threads.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from multiprocessing.connection import Connection
from typing import Any

import torch

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.checkpointing import TrainerState, TrainingCheckpoint
from twinsqueeze.training.loop import EpochMetrics, History, TrainingResult, train_replicas
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.processes import SPAWN_ERRORS, DaemonSpawnContext, end_with_parent, spawning
from twinsqueeze.utils.signals import POLL_SECONDS, check_interrupted

# Pairs in the epochs of all replicas, of which a core trains 100,000 to 200,000 a second in the published network. With
# fewer of them processes, which take 2.4 s of a core to start, would save less.
FEWEST_PAIRS = 5_000_000
# Of the processes, so that what is trained is recorded before more is: a run counts as done once it is recorded.
LESS_URGENT = 5


# What a process says while it trains, and at the end.
EPOCH, HEADS, WARNING, TRAINED, FAILED = "epoch", "heads", "warning", "trained", "failed"


# What a pipe raises whose other end is gone.
GONE = (EOFError, BrokenPipeError, ConnectionResetError)
# What trains a batch: `training.train_replicas`, or what takes and gives the same.
TrainFunction = Callable[..., list[TrainingResult]]


@contextmanager
def training_pool(pairs: int, threads: int) -> Iterator[TrainFunction]:
    """Yields a `TrainFunction` for threads; each thread gets a training process with the cores of that thread.

    They end with the context, or with this process, whatever they are at. What the callbacks raise ends the training.

    Args:
        pairs: That there are in the epochs of all replicas. For a few, for one thread, and where there can be no
            processes, the threads train themselves.
        threads: How many there are.
    """
    if threads == 1 or pairs < FEWEST_PAIRS:
        yield train_replicas
        return
    mine = threading.local()
    with ExitStack() as stack:

        def fit_there(*arguments: Any, **named: Any) -> list[TrainingResult]:
            try:
                if not hasattr(mine, "process"):
                    mine.process = _Worker()
                    stack.callback(mine.process.end)
                trains: TrainFunction = mine.process.fit
            except SPAWN_ERRORS:
                trains = train_replicas
            try:
                return trains(*arguments, **named)
            except BaseException:  # who knows what the process is at
                if hasattr(mine, "process"):
                    mine.process.end()
                    del mine.process
                raise

        yield fit_there


class _Worker:
    """A process that trains one batch after the other.

    Raises:
        OSError: Or whatever else is in `SPAWN_ERRORS`, if it can't be had.
    """

    def __init__(self) -> None:
        context = DaemonSpawnContext()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="training")
        try:
            with spawning():
                self._process.start()
            theirs.close()  # so that its end can be heard
            self._hear()
        except BaseException as error:
            self.end()
            if isinstance(error, GONE):
                raise ChildProcessError("it ended before it began") from None
            raise

    def fit(
        self,
        recipes: Sequence[Recipe],
        *data: EncodedPairs,
        on_epoch: Callable[[EpochMetrics], None],
        on_teacher_epoch: Callable[[int, int], None],
        snapshot: TrainingCheckpoint,
        **named: Any,
    ) -> list[TrainingResult]:
        """See `training.train_replicas`; in the process."""
        heard: dict[str, Callable[..., None]] = {EPOCH: on_epoch, HEADS: on_teacher_epoch, WARNING: snapshot.say}
        without = copy(snapshot)  # what is sent for itself
        without.say, without.left = print, None
        left = snapshot.left and (_arrays(snapshot.left.tensors), snapshot.left.numbers)
        with self._there(len(recipes)):
            self._connection.send((torch.get_num_threads(), (recipes, *data), named, without, left))
        while True:
            with self._there(len(recipes)):
                what, *said = self._hear()
            if what == TRAINED:
                return [_unpacked(*packed) for packed in said[0]]
            if what == FAILED:
                raise said[0]
            heard[what](*said)

    def _hear(self) -> Any:
        while not self._connection.poll(POLL_SECONDS):
            check_interrupted()
        return self._connection.recv()

    @contextmanager
    def _there(self, recipes: int) -> Iterator[None]:
        """Says in a line that the process is gone."""
        try:
            yield
        except GONE:
            self._process.join()
            code = self._process.exitcode
            why = ", which a system does to one when memory runs out" if code == -signal.SIGKILL else ""
            raise InputError(
                f"the process that trained {recipes} of the recipes is gone (exit code {code}){why}: "
                "give the same command again, and it goes on"
            ) from None

    def end(self) -> None:
        """Ends it, whatever it is at."""
        if self._process.pid is not None:
            self._process.terminate()
            self._process.join()
        self._connection.close()


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, FloatArray]:
    # Tensors would be passed on as shared memory, of which containers have little.
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _tensors(arrays: Mapping[str, FloatArray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _packed(fitted: TrainingResult) -> tuple[Any, ...]:
    compressor = fitted.compressor
    return (
        fitted.recipe,
        _arrays(compressor.state_dict()),
        compressor.precision,
        fitted.history,
        fitted.resumed_from_epoch,
    )


def _unpacked(
    recipe: Recipe, arrays: Mapping[str, FloatArray], precision: str, history: History, resumed_from_epoch: int
) -> TrainingResult:
    return TrainingResult(
        recipe, CompressorNetwork.from_state_dict(_tensors(arrays), precision), history, resumed_from_epoch
    )


def _serve(connection: Connection) -> None:
    """What the process does: trains what it is given, until nobody is there any more."""
    end_with_parent()
    os.nice(LESS_URGENT)
    with suppress(*GONE):
        connection.send(None)  # it is there
        while True:
            _train_next(connection)


def _train_next(connection: Connection) -> None:
    def tell(what: str) -> Callable[..., None]:
        return lambda *said: connection.send((what, *said))

    threads, arguments, named, snapshot, left = connection.recv()
    torch.set_num_threads(threads)
    snapshot.say = tell(WARNING)
    snapshot.left = left and TrainerState(_tensors(left[0]), left[1])
    try:
        trained = train_replicas(
            *arguments, **named, snapshot=snapshot, on_epoch=tell(EPOCH), on_teacher_epoch=tell(HEADS)
        )
    except Exception as error:  # which is for the one that asked
        error.add_note(traceback.format_exc())
        tell(FAILED)(error)
    else:
        tell(TRAINED)([_packed(fitted) for fitted in trained])
