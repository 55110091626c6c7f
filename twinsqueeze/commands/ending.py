"""Ends the program after an error. Imports neither PyTorch nor MLflow."""

import atexit
import os
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from types import TracebackType
from typing import NoReturn

import click

from twinsqueeze.utils.text import escape_control_chars, redact_credentials


def exit_with_error(text: str) -> NoReturn:
    """Prints an error that the user can fix on one line, and exits with 2."""
    line = " ".join(text.split())
    fail_env_run(f"Failed: {line}")
    click.echo(f"twinsqueeze: {escape_control_chars(redact_credentials(line))}", err=True)
    sys.exit(2)


def exit_without_threads(code: int) -> NoReturn:
    """Exits with a code after the exit functions, and does not wait for threads.

    A signal may have interrupted a thread pool between the start of a thread and its registration. Python would wait
    for such a thread forever.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it
            stream.flush()
    os._exit(code)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback without the passwords that libraries put into their messages."""
    click.echo(redact_credentials("".join(traceback.format_exception(kind, error, trace))), err=True, nl=False)


def fail_env_run(reason: str, status: str = "FAILED") -> None:
    """Ends the run that `mlflow run` created, unless a command has adopted it: that ends it itself."""
    if os.environ.get("MLFLOW_RUN_ID"):  # deleted by the command
        run = import_module("twinsqueeze.tracking.run")  # imports MLflow
        run.fail_env_run(reason, status)
