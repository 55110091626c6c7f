"""Child processes and process identities."""

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ValidationError

from twinsqueeze.utils.signals import defer_signals

# What having no processes, or not any more, looks like: no shared memory, no room for another process, a killed one;
# ValueError where one dies while the next is started, and takes away the pipes that it was to have.
SPAWN_ERRORS = (OSError, NotImplementedError, BrokenProcessPool, ValueError)


class DaemonSpawnContext(SpawnContext):
    """Processes that are not forked, since a fork has the locks of this one's threads and not the threads.

    They are daemons: whatever went wrong, this process ends them when it ends, instead of waiting for them.
    """

    def Process(self, *arguments: Any, **named: Any) -> SpawnProcess:  # type: ignore[override] # noqa: N802 - its name
        """A process that is not started yet, arguments as for `multiprocessing.Process`."""
        return SpawnProcess(*arguments, **named, daemon=True)


@contextmanager
def spawning() -> Iterator[None]:
    """While processes start, which must not end half made, and which leave Ctrl-C to this one.

    What this thread does not listen to, they do not either.
    """
    with defer_signals(then_stop=True):
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


# Clocks are set right now and then, by which times of starting seem to move.
SAME_SECONDS = 2.0


class ProcessIdentity(BaseModel):
    """A process as others can tell it from all that ever had its number.

    Attributes:
        host: Where it runs; containers of one machine are hosts of their own.
        pid: Its number there.
        started: When, in seconds since 1970.
    """

    host: str
    pid: int
    started: float

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """This one."""
        pid = os.getpid()
        return cls(host=_host(), pid=pid, started=psutil.Process(pid).create_time())

    @classmethod
    def parse(cls, text: str) -> "ProcessIdentity | None":
        """What `model_dump_json` wrote; None for anything else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    @property
    def state(self) -> Literal["living", "gone", "elsewhere"]:
        """Of a process of another host nobody here knows whether it lives."""
        if self.host != _host():
            return "elsewhere"
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < SAME_SECONDS
            return "living" if same and process.status() != psutil.STATUS_ZOMBIE else "gone"
        except psutil.NoSuchProcess:
            return "gone"
        except psutil.Error:
            return "living"  # it is there, and somebody else's


def _host() -> str:
    """The host's name, with the container's number where process numbers belong to one."""
    name = socket.gethostname()
    try:
        return f"{name} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return name
