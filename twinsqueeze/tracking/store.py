"""The tracking store, made ready before anything is asked of it.

MLflow makes the tables of a fresh SQLite file in whatever process opens it first, and several that open it at once
crash ("duplicate column name"). So here one process makes them, and the others wait.
"""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.utils.text import redact_credentials

# Making the tables takes a second or two, and others may be before us.
OPENING_SECONDS = 120.0
# As long as MLflow waits for another's write.
BUSY_SECONDS = 20.0
ALREADY_THERE = "RESOURCE_ALREADY_EXISTS"


# What it logs with a traceback it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def init_sqlite_store(uri: str, what: str, setting: str) -> None:
    """Opens a SQLite store, and makes it where it is not there; leaves stores of other kinds alone.

    Args:
        uri: As in MLFLOW_TRACKING_URI.
        what: The tracking store, or the model registry.
        setting: What says where it is.

    Raises:
        InputError: If it can't be opened.
    """
    file = _sqlite_file(uri)
    if file is None:
        return
    try:
        with _one_at_a_time(file):
            if file.is_file() and file.stat().st_size:
                _check(file)
            else:
                _make(file, uri)
        _ping(uri)
    except Timeout as error:
        raise InputError(
            f"the {what} {uri} is being opened by another process for {OPENING_SECONDS:.0f} seconds: end that process"
        ) from error
    except Exception as error:  # what is damaged, of another version or can't be written has errors of many kinds
        raise InputError(
            f"the {what} {redact_credentials(uri)} can't be used ({one_line(error)}): put it right, or point "
            f"{setting} at another"
        ) from error


def ensure_experiment() -> None:
    """Makes the experiment that MLFLOW_EXPERIMENT_NAME names, unless it is there or somebody makes it just now."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    client = mlflow.MlflowClient()
    if not name or client.get_experiment_by_name(name):
        return
    try:
        client.create_experiment(name)
    except mlflow.MlflowException as error:
        if error.error_code != ALREADY_THERE:
            raise


def _sqlite_file(uri: str) -> Path | None:
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(found[1]) if found and found[1] != ":memory:" else None


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Holds the lock beside a store; goes without where the store is there and its folder can't be written."""
    lock = FileLock(f"{file}.lock", timeout=OPENING_SECONDS)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:  # an OSError as well
        raise
    except OSError:
        if not file.is_file():
            raise
    try:
        yield
    finally:
        lock.release()


def _make(file: Path, uri: str) -> None:
    """Makes the tables, all of them or no file."""
    try:
        _ping(uri)
    except BaseException:
        file.unlink(missing_ok=True)  # MLflow can't go on from half of the tables
        raise


def _check(file: Path) -> None:
    """Looks whether it is a database; MLflow would try again for 100 seconds before it says that it is none."""
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as database:
        try:
            database.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            # A writer was killed within a transaction, which only a connection that may write can roll back: MLflow's.
            if not error.sqlite_errorname.startswith("SQLITE_READONLY"):
                raise


def _ping(uri: str) -> None:
    mlflow.MlflowClient(uri).search_experiments(max_results=1)
