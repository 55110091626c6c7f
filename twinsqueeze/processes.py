"""Processes that this one starts: spawned, ended with it however it ends, and deaf to a Ctrl-C that is meant for it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.resource_tracker import ensure_running
from typing import Any

from twinsqueeze.interrupts import shielded

# What having no processes, or not any more, looks like: no shared memory, no room for another process, a killed one;
# ValueError where one dies while the next is started, and takes away the pipes that it was to have.
NO_PROCESSES = (OSError, NotImplementedError, BrokenProcessPool, ValueError)


class Spawned(SpawnContext):
    """Processes that are not forked, since a fork has the locks of this one's threads and not the threads.

    They are daemons: whatever went wrong, this process ends them when it ends, instead of waiting for them.
    """

    def Process(self, *arguments: Any, **named: Any) -> SpawnProcess:  # type: ignore[override] # noqa: N802 - its name
        """A process that is not started yet, arguments as for `multiprocessing.Process`."""
        return SpawnProcess(*arguments, **named, daemon=True)


@contextmanager
def starting() -> Iterator[None]:
    """While processes start, which must not end half made, and which leave Ctrl-C to this one.

    What this thread does not listen to, they do not either.
    """
    with shielded(then_stop=True):
        ensure_running()  # multiprocessing starts it with the first process, and then unblocks the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """In a process that was started: it ends when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
