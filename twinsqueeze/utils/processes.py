"""Identities of processes, and the end of this process with the `mlflow run` that started it."""

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ValidationError

from twinsqueeze.utils.signals import POLL_SECONDS

# Start times seem to move when the clock is adjusted, in seconds.
START_TOLERANCE = 2.0


class ProcessIdentity(BaseModel):
    """A process, distinguished from other processes that had the same id before or after."""

    host: str  # with the container's id
    pid: int
    started: float  # in seconds since 1970

    @classmethod
    def current(cls) -> "ProcessIdentity":
        """This process."""
        pid = os.getpid()
        return cls(host=_host(), pid=pid, started=psutil.Process(pid).create_time())

    @classmethod
    def parse(cls, text: str) -> "ProcessIdentity | None":
        """Parse the output of `model_dump_json`; None for any other text."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    @property
    def state(self) -> Literal["alive", "dead", "remote"]:
        """Whether the process is alive; "remote" if it is on another host, so that nobody here knows."""
        if self.host != _host():
            return "remote"
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started) < START_TOLERANCE
            return "alive" if is_same and process.status() != psutil.STATUS_ZOMBIE else "dead"
        except psutil.NoSuchProcess:
            return "dead"
        except psutil.Error:  # of another user
            return "alive"


def _host() -> str:
    """The host name, with the number of the process namespace, which a container has of its own."""
    name = socket.gethostname()
    try:
        return f"{name} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return name


def find_mlflow_run_child(run_id: str) -> psutil.Process | None:
    """Return the process that `mlflow run` started, this one or an ancestor; None if MLFLOW_RUN_ID was set otherwise.

    `mlflow run` starts a shell with MLFLOW_RUN_ID in its environment, and the shell starts us.
    """
    child = None
    with suppress(psutil.Error):  # an ancestor of another user, or gone
        for process in (psutil.Process(), *psutil.Process().parents()):
            if process.environ().get("MLFLOW_RUN_ID") != run_id:
                break
            child = process
    return child


def enter_dir_of_parent(child: psutil.Process) -> None:
    """Change to the working directory of the `mlflow run` that started a process.

    `mlflow run` starts its command in the project's folder. Relative paths are meant from where the user typed them.
    """
    if Path("MLproject").is_file():
        with suppress(psutil.Error, OSError):  # gone, or of another user
            os.chdir(psutil.Process(child.ppid()).cwd())


def exit_with_parent(child: psutil.Process) -> None:
    """Send this process SIGTERM when the `mlflow run` that started `child` is gone, even by SIGKILL.

    The child gets another parent then.
    """
    parent_id = child.ppid()

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            while child.ppid() == parent_id:
                time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
