"""Process identities."""

import os
import socket
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ValidationError

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
