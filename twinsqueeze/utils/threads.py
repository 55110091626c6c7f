"""Work in threads that share the cores.

PyTorch's own threads meet after every operation, and wait for each other longer than small operations take. Threads
that each process one item on its own do not wait, and their data stay in their core's cache.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import TypeVar

import torch

# Held during NumPy's linear algebra where the last bits of results matter. They depend on the thread count of the BLAS,
# which belongs to the whole process and is 1 while k-means runs in another thread.
BLAS_LOCK = RLock()
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_threaded(
    items: Iterator[Item], function: Callable[[Item], Result], threads: int
) -> Generator[tuple[Item, Result]]:
    """Yield items and the function's results in order, computing several at a time.

    Args:
        items: Read in the calling thread, no faster than results are taken.
        function: Called in the threads.
        threads: Number of threads, which share PyTorch's cores.
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "item", initializer=partial(torch.set_num_threads, max(cores // threads, 1)))
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 2 * threads:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


@contextmanager
def batch_invariant_matmul(replicas: int) -> Iterator[None]:
    """Make the products of one replica bit-identical to those of the same replica among several.

    MKL gives each product of a batch to one thread, but splits a single product between threads, on some processors
    along the axis of summation, which changes the last bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if replicas == 1 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
