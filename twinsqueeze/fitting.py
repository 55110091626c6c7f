"""Trains batches of a grid in processes of their own.

Of a step a tenth is Python, and threads that train take turns at it: between any two operations each waits until it has
Python's lock. Processes wait for nobody. They take seconds to start, so small grids are trained in threads.
"""

import os
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from multiprocessing.connection import Connection
from typing import Any

import torch

from twinsqueeze.embeddings import EncodedPairs
from twinsqueeze.errors import InputError
from twinsqueeze.processes import NO_PROCESSES, Spawned, end_with_parent, starting
from twinsqueeze.recipe import Recipe
from twinsqueeze.snapshots import Snapshot
from twinsqueeze.training import Fitted, Progress, fit

# Pairs in the epochs of all replicas, of which a core trains 100,000 to 200,000 a second in the published network. With
# fewer of them processes, which take 2.4 s of a core to start, would save less.
FEWEST_PAIRS = 5_000_000
# Of the processes, so that what is trained is recorded before more is: a run counts as done once it is recorded.
LESS_URGENT = 5
# What a process says while it trains, and at the end.
EPOCH, HEADS, WARNING, TRAINED, FAILED = "epoch", "heads", "warning", "trained", "failed"

# What trains a batch: `training.fit`, or what takes and gives the same.
Fit = Callable[..., list[Fitted]]


@contextmanager
def processes(pairs: int, threads: int) -> Iterator[Fit]:
    """A `Fit` for threads, each of which gets a process that trains for it, on as many cores as the thread has.

    They end with the context, or with this process, whatever they are at. What the callbacks raise ends the training.

    Args:
        pairs: That there are in the epochs of all replicas. For a few, for one thread, and where there can be no
            processes, the threads train themselves.
        threads: How many there are.
    """
    if threads == 1 or pairs < FEWEST_PAIRS:
        yield fit
        return
    mine = threading.local()
    with ExitStack() as stack:

        def fit_there(*arguments: Any, **named: Any) -> list[Fitted]:
            try:
                if not hasattr(mine, "process"):
                    mine.process = _TrainingProcess()
                    stack.callback(mine.process.end)
                trains: Fit = mine.process.fit
            except NO_PROCESSES:
                trains = fit
            try:
                return trains(*arguments, **named)
            except BaseException:  # who knows what the process is at
                if hasattr(mine, "process"):
                    mine.process.end()
                    del mine.process
                raise

        yield fit_there


class _TrainingProcess:
    """A process that trains one batch after the other.

    Raises:
        OSError: Or whatever else is in `NO_PROCESSES`, if it can't be had.
    """

    def __init__(self) -> None:
        context = Spawned()
        self._connection, theirs = context.Pipe()
        with starting():
            self._process = context.Process(target=_serve, args=(theirs,), name="training")
            self._process.start()
        theirs.close()  # so that its end can be heard
        try:
            self._connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            self.end()
            raise ChildProcessError("it ended before it began") from None

    def fit(
        self,
        recipes: Sequence[Recipe],
        *data: EncodedPairs,
        on_epoch: Callable[[Progress], None],
        on_heads: Callable[[int, int], None],
        snapshot: Snapshot,
        **named: Any,
    ) -> list[Fitted]:
        """See `training.fit`; in the process."""
        heard: dict[str, Callable[..., None]] = {EPOCH: on_epoch, HEADS: on_heads, WARNING: snapshot.say}
        travelling = copy(snapshot)
        travelling.say = print
        with self._there(len(recipes)):
            _send(self._connection, torch.get_num_threads(), (recipes, *data), {**named, "snapshot": travelling})
        while True:
            with self._there(len(recipes)):
                what, *said = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - our own process
            if what == TRAINED:
                trained: list[Fitted] = said[0]
                return trained
            if what == FAILED:
                raise said[0]
            heard[what](*said)

    @contextmanager
    def _there(self, recipes: int) -> Iterator[None]:
        """Says in a line that the process is gone."""
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            raise InputError(
                f"the process that trained {recipes} of the recipes is gone (exit code {self._process.exitcode}), "
                "which a system does to one when memory runs out: give the same command again, and it goes on"
            ) from None

    def end(self) -> None:
        """Ends it, whatever it is at."""
        self._process.terminate()
        self._process.join()
        self._connection.close()


def _send(connection: Connection, *what: object) -> None:
    # By plain pickle: what multiprocessing has tensors pickled by passes them on as shared memory.
    connection.send_bytes(pickle.dumps(what))


def _serve(connection: Connection) -> None:
    """What the process does: trains what it is given, until nobody is there any more."""
    end_with_parent()
    os.nice(LESS_URGENT)

    def tell(what: str) -> Callable[..., None]:
        return lambda *said: _send(connection, what, *said)

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _send(connection)  # it is there
        while True:
            threads, arguments, named = pickle.loads(connection.recv_bytes())  # noqa: S301 - our own process
            torch.set_num_threads(threads)
            named["snapshot"].say = tell(WARNING)
            try:
                trained = fit(*arguments, **named, on_epoch=tell(EPOCH), on_heads=tell(HEADS))
            except Exception as error:  # which is for the one that asked
                error.add_note(traceback.format_exc())
                tell(FAILED)(error)
            else:
                tell(TRAINED)(trained)
