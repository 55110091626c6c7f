"""Opens the tracking store before its first query.

MLflow creates the tables of a new SQLite file in whichever process opens it first, and fails if several do so at once
("duplicate column name"). A file lock lets one process create them while the others wait.
"""

import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout

from twinsqueeze.errors import InputError
from twinsqueeze.utils.text import describe_error, redact_credentials

LOCK_TIMEOUT = 120.0
# MLflow's own timeout for another process's write.
BUSY_TIMEOUT = 20.0

# MLflow logs a traceback for an error that it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def init_sqlite_store(uri: str, what: str, setting: str) -> None:
    """Open a SQLite store, and create it if it does not exist; other stores are left alone.

    Args:
        uri: Address of the store.
        what: Its name in messages.
        setting: The environment variable with its address.

    Raises:
        InputError: If it can't be opened.
    """
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    if not match or match[1] == ":memory:":
        return
    file = Path(match[1])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() and not os.access(file.parent, os.W_OK):  # no lock possible, and nothing to create
            _open(file, uri)
        else:
            with FileLock(f"{file}.lock", timeout=LOCK_TIMEOUT):
                _open(file, uri)
    except Timeout as error:
        raise InputError(
            f"the {what} {uri} is being opened by another process for {LOCK_TIMEOUT:.0f} seconds: end that process"
        ) from error
    except Exception as error:  # damaged, unwritable and foreign files raise errors of many types
        raise InputError(
            f"the {what} {redact_credentials(uri)} can't be used ({describe_error(error)}): repair it, or point "
            f"{setting} at another"
        ) from error


def ensure_experiment() -> None:
    """Create the experiment that MLFLOW_EXPERIMENT_NAME names, unless it exists."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    client = mlflow.MlflowClient()
    if name and not client.get_experiment_by_name(name):
        try:
            client.create_experiment(name)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another process
                raise


def _open(file: Path, uri: str) -> None:
    is_new = not file.is_file() or not file.stat().st_size
    if not is_new:
        _check_sqlite(file)
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except BaseException:
        if is_new:
            file.unlink(missing_ok=True)  # MLflow can't continue with half of its tables
        raise


def _check_sqlite(file: Path) -> None:
    """Raise sqlite3.Error for a file that is not a database, which MLflow would retry for 100 seconds."""
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT)) as database:
        try:
            database.execute("PRAGMA schema_version")
        except sqlite3.OperationalError as error:
            # Only MLflow's connection, which may write, can roll back the transaction of a killed process.
            if not error.sqlite_errorname.startswith("SQLITE_READONLY"):
                raise
