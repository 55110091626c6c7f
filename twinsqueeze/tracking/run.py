"""Starts and ends runs, and waits until they are uploaded.

A run is recorded on disk first, and a thread uploads it from there: a failing tracking server stops no training. What
it has not taken when the command ends stays on disk for `sync`.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import mlflow
from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID
from mlflow.tracking import fluent
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from twinsqueeze.errors import InputError
from twinsqueeze.tracking import store
from twinsqueeze.tracking.links import store_uri
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.spool.journal import RunSpool
from twinsqueeze.tracking.spool.replay import request_timeout
from twinsqueeze.tracking.spool.uploader import EXIT_TIMEOUT, Uploader, flush_timeout, notify
from twinsqueeze.tracking.tags import KIND, PROCESS
from twinsqueeze.utils import signals
from twinsqueeze.utils.processes import ProcessIdentity
from twinsqueeze.utils.text import describe_error, escape_markdown, redact_credentials

logging.getLogger("mlflow").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow would print the run's address with the password in it; `links.ui_steps` leaves that out.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

# The open runs except nested ones, and the uploaders of ended runs, for `flush`.
_open_runs: list[RunLogger] = []
_ended: list[Uploader] = []


def env_run_id() -> str | None:
    """The id of the run that `mlflow run` created for this process; None without one."""
    return os.environ.get("MLFLOW_RUN_ID")


def check_tracking_server() -> None:
    """Raise an `InputError` if the server or store that MLFLOW_TRACKING_URI names can't be used."""

    def query() -> object:
        return mlflow.MlflowClient().search_experiments(max_results=1)

    uri = mlflow.get_tracking_uri()
    _check_server(uri, query, "tracking server" if _is_http(uri) else "tracking store", "MLFLOW_TRACKING_URI")


def check_registry() -> None:
    """Raise an `InputError` if the model registry of the tracking server, or of MLFLOW_REGISTRY_URI, can't be used."""

    def query() -> object:
        return mlflow.MlflowClient().search_registered_models(max_results=1)

    setting = "MLFLOW_REGISTRY_URI" if os.environ.get("MLFLOW_REGISTRY_URI") else "MLFLOW_TRACKING_URI"
    _check_server(mlflow.get_registry_uri(), query, "model registry", setting)


def _is_http(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def _check_server(uri: str, query: Callable[[], object], what: str, setting: str) -> None:
    if not _is_http(uri):
        store.check_store(uri, query, what, setting)
        return
    for _ in range(3):  # an answer may be lost
        try:
            with request_timeout(seconds=7):
                query()
            return
        except Exception as error:  # whatever fails, nothing can be recorded
            reason = describe_error(error)
    raise InputError(
        f"the {what} {redact_credentials(uri)} does not answer ({reason}): start it, or point {setting} elsewhere"
    )


@contextmanager
def use_experiment(name: str | None) -> Iterator[None]:
    """Makes an experiment the current one while the context is open; None changes nothing."""
    before = fluent._active_experiment_id, MLFLOW_EXPERIMENT_ID.get()
    if name is not None:
        mlflow.set_experiment(name)
    try:
        yield
    finally:  # MLflow has no function that restores them
        fluent._active_experiment_id = before[0]
        if before[1] is None:
            MLFLOW_EXPERIMENT_ID.unset()
        else:
            MLFLOW_EXPERIMENT_ID.set(before[1])


def fail_env_run(reason: str, status: str = "FAILED") -> None:
    """End the run that `mlflow run` created, after an error before `start_run`."""
    run_id = os.environ["MLFLOW_RUN_ID"]
    with signals.defer_signals(then_stop=False), request_timeout():
        try:
            client = mlflow.MlflowClient()
            client.set_tag(run_id, MLFLOW_RUN_NOTE, escape_markdown(redact_credentials(reason)))
            client.set_terminated(run_id, status)
        except Exception as error:  # the caller prints the reason, which matters more
            print(f"twinsqueeze: run {run_id} can't be ended: {describe_error(error)}", file=sys.stderr)


@contextmanager
def start_run(
    name: str, kind: str, *, nested: bool = False, tags: Mapping[str, str] = MappingProxyType({})
) -> Iterator[RunLogger]:
    """Start a run, or continue the one that `mlflow run` created, and end it as FINISHED, FAILED or KILLED.

    It is a child of the open run if `nested`, and has the tags from the start. Everything is uploaded when the context
    is left, unless the tracking server fails; `flush` waits for it then. A store or a record on disk that can't be
    written is an `InputError`.
    """
    run: RunLogger | None = None
    try:
        with signals.defer_signals(then_stop=True):
            run = _start(name, {KIND: kind, **tags}, _open_runs[-1] if nested else None)
        yield run
        run.end_run("FINISHED")
    except BaseException as error:
        if run:
            _end(run, error)
        raise
    finally:
        if run in _open_runs:
            _open_runs.remove(run)
    if not nested:
        _ended.append(run.uploader)
        _wait(run.uploader, 0)


def _start(name: str, tags: Mapping[str, str], parent: RunLogger | None) -> RunLogger:
    """Record the start of a run; without a parent, wait until the tracking store has it."""
    flush_timeout()  # raises for a wrong setting before anything begins
    uri, run_id = store_uri(), env_run_id()
    # Tags that a run has however soon its process is killed.
    tags = {**tags, PROCESS: ProcessIdentity.current().model_dump_json()}
    if parent:
        tags[MLFLOW_PARENT_RUN_ID] = parent.run_id
    if not run_id:
        tags = resolve_tags({MLFLOW_RUN_NAME: name, **tags})
    begin = {"op": "begin", "run_id": run_id, "experiment_id": parent and parent.experiment_id, "tags": tags}
    spool = RunSpool.create(name, uri, begin)
    run = RunLogger(spool, parent.uploader if parent else Uploader(uri))
    run.is_of_project = run_id is not None
    run.uploader.enqueue(run.replayer, begin)
    if parent:
        return run
    try:
        if reason := run.uploader.wait(25 if uri.startswith("http") else EXIT_TIMEOUT):
            raise InputError(f"the run can't be recorded in {uri}: {reason}")
    except BaseException:
        run.uploader.stop()
        spool.remove()
        raise
    os.environ.pop("MLFLOW_RUN_ID", None)  # from here on `start_run` ends it
    _open_runs.append(run)
    return run


def _end(run: RunLogger, error: BaseException) -> None:
    """End a run because of an error or a signal, and wait a few seconds for its uploads."""
    status, reason = "FAILED", f"Failed: {type(error).__name__}: {describe_error(error)}"
    if isinstance(error, signals.Interrupted):
        status, reason = "KILLED", f"Killed: {error}."
    elif isinstance(error, InputError):
        reason = f"Failed: {describe_error(error)}"
    with signals.defer_signals(then_stop=False):
        run.set_description(escape_markdown(reason))
        run.end_run(status)
        if run in _open_runs:
            if missing := run.uploader.wait(EXIT_TIMEOUT):
                notify(run.uploader.describe_unfinished(missing))
            run.uploader.stop()


def _wait(uploader: Uploader, timeout: float) -> str | None:
    """Wait for the uploads of ended runs, see `Uploader.wait`; a signal gives them up."""
    try:
        return uploader.wait(timeout)
    except signals.Interrupted as stop:
        uploader.stop()
        notify(uploader.describe_unfinished(str(stop)))
        raise


def flush() -> None:
    """Wait until the tracking store has all ended runs; raise an `InputError` if it fails for `flush_timeout`."""
    while _ended:
        uploader = _ended.pop()
        reason = _wait(uploader, flush_timeout())
        uploader.stop()
        if reason:
            raise InputError(uploader.describe_unfinished(reason))
