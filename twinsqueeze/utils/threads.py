"""Pieces of work in threads, each with its share of the cores.

PyTorch's own threads meet after every operation, and where operations are small they wait for each other more than they
compute. Threads that each go through a piece alone wait nowhere, and what they work on stays in their core's cache.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import TypeVar

import torch

# For NumPy's linear algebra where bits count: its BLAS has one number of threads for the whole process, which k-means
# in another thread sets to one while it runs, and with another number results have other last bits.
BLAS_LOCK = RLock()
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def map_threaded(
    pieces: Iterator[Piece], handle: Callable[[Piece], Result], threads: int
) -> Generator[tuple[Piece, Result]]:
    """Pieces and what `handle` gives for them, in their order; some are handled at once.

    Args:
        pieces: Read no faster than the results are taken, in this thread.
        handle: Called in the threads.
        threads: How many, which share the cores that PyTorch may use.
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "piece", initializer=partial(torch.set_num_threads, max(cores // threads, 1)))
    waiting: deque[tuple[Piece, Future[Result]]] = deque()
    try:
        for piece in pieces:
            waiting.append((piece, pool.submit(handle, piece)))
            if len(waiting) > 2 * threads:
                done, result = waiting.popleft()
                yield done, result.result()
        while waiting:
            done, result = waiting.popleft()
            yield done, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


@contextmanager
def batch_invariant_matmul(replicas: int) -> Iterator[None]:
    """Has one replica's products computed as those of several are.

    Of a batch of products MKL gives each to a thread, while it cuts a single one between threads, on some processors
    along the axis that is summed over: then a replica's last bits would tell whether it was trained alone.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if replicas == 1 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
