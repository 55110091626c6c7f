"""Process identities."""

import os
import socket
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ValidationError

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
