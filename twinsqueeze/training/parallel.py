"""Trains the batches of a grid in worker processes.

A tenth of a training step is Python code, so threads that train at once wait for the interpreter lock. Processes do
not, but take seconds to start: small grids are trained in threads.
"""

from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import TrainingResult, train_replicas
from twinsqueeze.utils.worker_pool import WorkerPool

# A core trains 100,000 to 200,000 pairs per second with the published network; a worker takes 2.4 s to start.
MIN_PAIRS_FOR_POOL = 5_000_000
# Workers yield to this process, since a run counts as done only once it is recorded.
NICENESS = 5
# `train_replicas`, or a function with its arguments and result.
TrainFunction = Callable[..., list[TrainingResult]]


@contextmanager
def training_pool(num_pairs: int, threads: int) -> Iterator[TrainFunction]:
    """Yields a `TrainFunction` for `threads` threads, each of which gets a worker process with that thread's cores.

    A single thread and few pairs, summed over the epochs of all replicas, need no workers: the threads train.
    """
    if threads == 1 or num_pairs < MIN_PAIRS_FOR_POOL:
        yield train_replicas
        return
    with WorkerPool(threads, _warm_up, NICENESS) as pool:
        yield partial(_train_in_worker, pool) if pool.wait_until_ready() else train_replicas


def _train_in_worker(
    pool: WorkerPool,
    *arguments: Any,
    base: CompressorNetwork | None = None,
    clean_loss_every: int,
    checkpoint: TrainingCheckpoint | None,
    **callbacks: Callable[..., None],
) -> list[TrainingResult]:
    """Calls `train_replicas` in a worker, and the callbacks here, among them the checkpoint's `warn`."""
    if checkpoint:
        callbacks["warn"] = checkpoint.warn
        checkpoint = replace(checkpoint, warn=print)  # until the worker sets its own
    options = {"base": base, "clean_loss_every": clean_loss_every, "checkpoint": checkpoint}
    options["threads"] = torch.get_num_threads()
    _send_tensors_as_arrays()
    try:
        return list(pool.call(_train, arguments, options, on_message=lambda name, *values: callbacks[name](*values)))
    except BrokenProcessPool:
        raise InputError(
            "a training process was killed, as systems do when memory runs out: "
            "run the same command again to resume the trainings"
        ) from None


def _train(send: Callable[..., None], arguments: tuple[Any, ...], options: dict[str, Any]) -> list[TrainingResult]:
    torch.set_num_threads(options.pop("threads"))
    _send_tensors_as_arrays()
    if options["checkpoint"]:
        options["checkpoint"].warn = partial(send, "warn")
    return train_replicas(
        *arguments, **options, on_epoch=partial(send, "on_epoch"), on_teacher_epoch=partial(send, "on_teacher_epoch")
    )


def _send_tensors_as_arrays() -> None:
    """Changes how this process sends tensors: PyTorch uses shared memory, of which containers have little."""
    ForkingPickler.register(torch.Tensor, lambda tensor: (torch.tensor, (tensor.numpy(),)))


def _warm_up() -> None:
    """Has a worker import this module."""
