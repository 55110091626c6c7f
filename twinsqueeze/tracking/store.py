"""Opens a SQLite tracking store before its first query.

MLflow creates the tables of a new file in whichever process opens it first, and fails if several do so at once
("duplicate column name"). A file lock lets one process create them while the others wait.
"""

import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
from filelock import FileLock

from twinsqueeze.errors import InputError
from twinsqueeze.utils.text import describe_error, redact_credentials

# MLflow logs a traceback for an error that it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def init_sqlite_store(uri: str, what: str, setting: str) -> None:
    """Open a SQLite store, created if it does not exist; errors name `what` and its environment variable `setting`."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    if not match or match[1] == ":memory:":
        return
    file = Path(match[1])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() and not os.access(file.parent, os.W_OK):  # no lock possible, and nothing to create
            _open(file, uri)
        else:
            with FileLock(f"{file}.lock", timeout=120):
                _open(file, uri)
    except Exception as error:  # damaged, unwritable and foreign files raise errors of many types
        raise InputError(
            f"the {what} {redact_credentials(uri)} can't be used ({describe_error(error)}): repair it, or point "
            f"{setting} at another"
        ) from error


def _open(file: Path, uri: str) -> None:
    is_new = not file.is_file() or not file.stat().st_size
    if not is_new:  # MLflow would retry a file that is not a database for 100 seconds; it waits 20 for a lock
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True, timeout=20)) as database:
            database.execute("PRAGMA schema_version")
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except BaseException:
        if is_new:
            file.unlink(missing_ok=True)  # MLflow can't continue with half of its tables
        raise
