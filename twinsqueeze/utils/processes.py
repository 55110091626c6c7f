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


def exit_with_parent(run_id: str) -> None:
    """Send this process SIGTERM when the `mlflow run` that started it is gone, even by SIGKILL.

    `mlflow run` starts a shell with MLFLOW_RUN_ID in its environment, and the shell starts us. The highest ancestor
    with that variable is the child of `mlflow run`, and gets another parent when `mlflow run` is gone.
    """
    child = psutil.Process()
    with suppress(psutil.Error):  # an ancestor of another user, or gone
        for ancestor in child.parents():
            if ancestor.environ().get("MLFLOW_RUN_ID") != run_id:
                break
            child = ancestor
    parent_id = child.ppid()

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            while child.ppid() == parent_id:
                time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
