"""The PyTorch device, and work in threads that share the cores.

PyTorch's own threads meet after every operation, and wait for each other longer than small operations take. Threads
that each process one item on its own do not wait, and their data stay in their core's cache.
"""

import os
import platform
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import TypeVar

import torch

from twinsqueeze.errors import InputError

# Held during NumPy's linear algebra where the last bits of results matter. They depend on the thread count of the BLAS,
# which belongs to the whole process and is 1 while k-means runs in another thread.
BLAS_LOCK = RLock()
Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve_device(name: str) -> torch.device:
    """Return the device named `auto`, `cpu` or `cuda`; raise an `InputError` if PyTorch finds no CUDA device."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device is cuda, but PyTorch finds no CUDA device: use cpu or auto")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def describe_cpu() -> str:
    """Return the processor's name and its number of cores."""
    info = Path("/proc/cpuinfo")  # Linux's
    found = re.search(r"^model name\s*:\s*(.*\S)", info.read_text(), re.MULTILINE) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def map_threaded(
    items: Iterator[Item], function: Callable[[Item], Result], threads: int
) -> Generator[tuple[Item, Result]]:
    """Yield items and the function's results in order, computing several at a time in threads that share the cores.

    Items are read in the calling thread, no faster than results are taken.
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "item", initializer=partial(torch.set_num_threads, max(cores // threads, 1)))
    submitted = ((item, pool.submit(function, item)) for item in items)
    try:
        waiting = deque(islice(submitted, 2 * threads))
        while waiting:
            item, future = waiting.popleft()
            waiting.extend(islice(submitted, 1))
            yield item, future.result()
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
