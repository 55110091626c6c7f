"""Opens tracking stores before their first query, and finds the current experiment.

MLflow creates the tables of a new SQLite file in whichever process opens it first, and fails if several do so at once
("duplicate column name"). A file lock lets one process create them while the others wait.
"""

import logging
import multiprocessing
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from filelock import FileLock
from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service.utils import _SERVER_ARTIFACT_ROOT_ENV_VAR
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from twinsqueeze.errors import InputError
from twinsqueeze.utils.files import expand_user
from twinsqueeze.utils.text import describe_error, redact_credentials

# MLflow logs a traceback for an error that it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
CONNECT_TIMEOUT = 20  # seconds


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store's file; None for any other store."""
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # a path or an address
        return None
    if url.get_backend_name() != "sqlite" or not url.database or url.database.startswith((":memory:", "file:")):
        return None
    return Path(url.database).resolve()


def canonical_uri(uri: str) -> str:
    """Return a store's URI without credentials; that of a SQLite file has its absolute path."""
    path = sqlite_path(uri)
    if path:
        return _sqlite_uri(path)
    return redact_credentials(uri) if "//" in uri else redact_credentials(f"//{uri}").removeprefix("//")


def _sqlite_uri(path: Path) -> str:
    """Return a SQLite file's URI that is right for MLflow, too."""
    # MLflow creates the folder of any path behind sqlite:///, without decoding it.
    encoded = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" if str(path) == encoded else f"sqlite+pysqlite:///{encoded}"


def check_store(uri: str, ping: Callable[[], object], what: str, setting: str) -> None:
    """Open a store other than an HTTP server; a SQLite file is created if it does not exist.

    `ping` queries it. An error names the store as `what`, and its environment variable `setting`.
    """
    try:
        if _is_temporary(uri):
            raise FileNotFoundError
        if file := sqlite_path(uri):
            _set_artifact_root()
            readable = _sqlite_uri(file) + "".join(uri.partition("?")[1:])
            if "%" in uri and uri != readable:  # MLflow's default address is encoded
                os.environ[setting] = readable
            _open_sqlite(file, ping)
        else:
            if urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
                _connect(uri)
            ping()
    except Exception as error:  # damaged, unwritable and foreign stores raise errors of many types
        reason, advice = _diagnose(uri, setting, error)
        raise InputError(f"the {what} {canonical_uri(uri)} can't be used ({reason}): {advice}") from error


def _is_temporary(uri: str) -> bool:
    """Return whether a SQLite store is in the memory of a connection, as without a file's name."""
    return uri.startswith("sqlite") and uri.partition("?")[0].endswith((":///", "://", ":memory:"))


def _set_artifact_root() -> None:
    """Have MLflow write the artifacts of a new store to the working directory, even if its name is like "a%20b"."""
    folder = Path.cwd()  # MLflow decodes its path, and would write to "a b"
    if unquote(str(folder)) != str(folder) or not str(folder).isprintable():
        os.environ.setdefault(_SERVER_ARTIFACT_ROOT_ENV_VAR, f"{folder.as_uri()}/mlruns")


def _connect(uri: str) -> None:
    """Connect to a database once, since MLflow retries for 100 seconds."""
    with ThreadPool(1) as pool:  # drivers have no common option for a timeout
        try:
            pool.apply_async(lambda: create_engine(uri).connect().close()).get(CONNECT_TIMEOUT)
        except multiprocessing.TimeoutError as error:
            raise TimeoutError(f"no answer in {CONNECT_TIMEOUT} s") from error


def _diagnose(uri: str, setting: str, error: Exception) -> tuple[str, str]:
    """Return why a store can't be used, and what to do."""
    scheme, replace = urlsplit(uri).scheme, f"set {setting} to"
    rest = uri.partition(":")[2].lstrip("/")
    is_http = scheme in {"http", "https"}
    if is_http or re.fullmatch(r"[^/\s]+:\d+(/\S*)?", uri):
        return "http:// is missing", f"{replace} {f'{scheme}://{rest}' if is_http else f'http://{uri}'}"
    if scheme.startswith("sqlite") and (isinstance(error, IsADirectoryError) or not sqlite_path(uri)):
        path = sqlite_path(uri) or rest.replace(":memory:", "")
        return "no file is named behind sqlite:///", f"{replace} {_suggest_sqlite(path)}"
    if scheme in {"", "file"} and uri not in {"databricks", "databricks-uc", "uc"}:
        file = _suggest_sqlite(local_file_uri_to_path(uri))
        return "MLflow no longer stores runs in folders", f"{replace} {file}, or for a server to http://HOST:PORT"
    if isinstance(error, ModuleNotFoundError):
        return f"its driver {error.name} is not installed", f"install it, or {replace} DATABASE+DRIVER://..."
    if isinstance(error, UnsupportedModelRegistryStoreURIException):
        return "unknown scheme", f"{replace} http://HOST:PORT, sqlite:///FILE or postgresql://HOST/DATABASE"
    return describe_error(error), f"repair or start it, or {replace} another"


def _suggest_sqlite(path: str | Path) -> str:
    path = expand_user(path).absolute()
    return _sqlite_uri(path if path.suffix and not path.is_dir() else path / "mlflow.db")


def _open_sqlite(file: Path, ping: Callable[[], object]) -> None:
    if file.is_dir():  # MLflow would retry for 100 seconds
        raise IsADirectoryError
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file() and not os.access(file.parent, os.W_OK):  # no lock possible, and nothing to create
        _open(file, ping)
    else:
        with FileLock(f"{file}.lock", timeout=120):
            _open(file, ping)


def _open(file: Path, ping: Callable[[], object]) -> None:
    is_new = not file.is_file() or not file.stat().st_size
    if not is_new:  # MLflow would retry a file that is not a database for 100 seconds; it waits 20 for a lock
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True, timeout=20)) as database:
            database.execute("PRAGMA schema_version")
    try:
        ping()
    except BaseException:
        if is_new:
            file.unlink(missing_ok=True)  # MLflow can't continue with half of its tables
        raise


def find_current_experiment() -> str | None:
    """Return the id of the experiment of new runs; None if MLFLOW_EXPERIMENT_NAME names one that does not exist.

    Raise an `InputError` if no experiment has MLFLOW_EXPERIMENT_ID, or one of another name.
    """
    name, experiment_id = MLFLOW_EXPERIMENT_NAME.get(), MLFLOW_EXPERIMENT_ID.get()
    if fluent._active_experiment_id or name is None:
        try:
            return str(fluent._get_experiment_id())
        except mlflow.MlflowException as error:
            raise InputError(describe_error(error)) from error
    found = mlflow.MlflowClient().get_experiment_by_name(name)
    if experiment_id and not (found and found.experiment_id == experiment_id):
        raise InputError(
            f"MLFLOW_EXPERIMENT_NAME is {name!r} and MLFLOW_EXPERIMENT_ID is {experiment_id!r}, which is not the id of "
            "that experiment: unset one of them"
        )
    return str(found.experiment_id) if found else None
