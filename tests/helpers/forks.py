"""Processes that are forked from one in which PyTorch and MLflow are imported already: a start costs no imports.

Each is a real process in a session of its own, with its own environment, working directory, standard streams and exit
status. A test of the start itself uses `subprocess`.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.helpers import shortcuts

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]
    + [f"twinsqueeze.{name}" for name in ("cli", "api", "commands.train", "commands.ablation", "commands.compress")]
)
# Variables that the package sets when it is imported, unless the user has set them.
SET_BY_IMPORTS = (
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
)


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # if no init process reaps orphans
    except psutil.NoSuchProcess:
        return True


class ForkedProcess:
    """`python -m MODULE` or `python -c PROGRAM` with arguments, as a `subprocess.Popen` whose output is piped."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, *, stdin: bool = False
    ) -> None:
        self.args = list(command)
        (stdin_reader, stdin_writer), (stdout_reader, stdout_writer), (stderr_reader, stderr_writer) = (
            os.pipe() for _ in range(3)
        )
        # Connections, since multiprocessing sends their descriptors to the new process.
        streams = [Connection(stdin_reader, writable=False)]
        streams += [Connection(writer, readable=False) for writer in (stdout_writer, stderr_writer)]
        self._process = FORKS.Process(target=_run, args=(streams, self.args, dict(environment), folder))
        self._process.start()
        for stream in streams:
            stream.close()
        self.stdin, self.stdout, self.stderr = (
            open(descriptor, mode, encoding="utf-8", errors="replace")  # noqa: SIM115, PTH123 - closed in __exit__
            for descriptor, mode in ((stdin_writer, "w"), (stdout_reader, "r"), (stderr_reader, "r"))
        )
        if not stdin:
            self.stdin.close()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        """Waits for the end; what it printed on both streams."""
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.append(self.stderr.read()))
        reader.start()
        output = self.stdout.read()
        reader.join()
        self.wait()
        return output, errors[0]

    def finish(self, code: int = 0) -> tuple[str, str]:
        """Waits for the end with an exit status; what it printed on both streams."""
        output, errors = self.communicate()
        assert self.returncode == code, errors
        return output, errors

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Waits until a condition holds; fails with the process's errors if it ends before."""
        while not condition():
            if self.returncode is not None:
                assert condition(), self.stderr.read()
                return
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if error:
            self.kill()
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()
        self.wait()


def _run(streams: Sequence[Connection], command: list[str], environment: dict[str, str], folder: Path) -> None:
    """Runs the command in the forked process, with its standard streams."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the server may have been started while signals were blocked
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, stream in enumerate(streams):
        os.dup2(stream.fileno(), standard)
        stream.close()
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor
    os.chdir(folder)
    defaults = {name: os.environ[name] for name in SET_BY_IMPORTS if name in os.environ}
    os.environ.clear()
    os.environ.update(defaults | environment)
    if shortcuts.DRAW_FIGURES not in environment:
        shortcuts.skip_drawing(pytest.MonkeyPatch())
    option, what, *arguments = command
    sys.argv = [what if option == "-m" else "-c", *arguments]
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        if not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
            sys.exit(1)
        raise
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
