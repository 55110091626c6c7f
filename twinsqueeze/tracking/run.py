"""Starts and ends runs, and waits until they are uploaded.

A run is recorded on disk first, and a thread uploads it from there: a failing tracking server stops no training. What
it has not taken when the command ends stays on disk for `sync`.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import mlflow
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import fluent
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from twinsqueeze.errors import InputError
from twinsqueeze.tracking import store
from twinsqueeze.tracking.links import describe_store, store_uri
from twinsqueeze.tracking.run_logger import RunLogger, RunWriter
from twinsqueeze.tracking.spool import EXIT_TIMEOUT, SERVER_TIMEOUT, RunSpool, Uploader, flush_timeout, request_timeout
from twinsqueeze.tracking.tags import KIND, PROCESS
from twinsqueeze.utils import signals
from twinsqueeze.utils.processes import ProcessIdentity
from twinsqueeze.utils.text import describe_error, escape_markdown, redact_credentials

logging.getLogger("mlflow").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow would print the run's address with the password in it; `links.ui_steps` leaves that out.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

# Uploaders that have not sent everything, and the open runs except nested ones.
_uploaders: list[Uploader] = []
_open_runs: list[RunLogger] = []


class UploadError(InputError):
    """The tracking store has not taken everything; the rest is kept on disk."""


def env_run_id() -> str | None:
    """The id of the run that `mlflow run` created for this process; None without one."""
    return os.environ.get("MLFLOW_RUN_ID")


def check_tracking_server(what: str = "tracking server", setting: str = "MLFLOW_TRACKING_URI") -> None:
    """Check that the tracking server or the model registry can be used, so that nothing long begins in vain.

    Args:
        what: Its name in messages.
        setting: The environment variable with its address.

    Raises:
        InputError: If a server does not answer within 25 seconds, or a SQLite file can't be opened.
    """
    uri = mlflow.get_registry_uri() if setting == "MLFLOW_REGISTRY_URI" else mlflow.get_tracking_uri()
    if urlsplit(uri).scheme not in {"http", "https"}:
        store.init_sqlite_store(uri, what.replace("server", "store"), setting)
        return
    failures = ["no answer"]

    def ping() -> None:
        for _ in range(3):  # an answer may be lost
            try:
                with request_timeout():
                    mlflow.MlflowClient(uri).search_experiments(max_results=1)
                failures.clear()
                return
            except Exception as error:  # whatever fails, there is no server to record to
                failures[:] = [describe_error(error)]

    thread = threading.Thread(target=ping, daemon=True)  # a server may send its answer byte by byte
    thread.start()
    thread.join(SERVER_TIMEOUT)
    if failures:
        raise InputError(
            f"the {what} {redact_credentials(uri)} does not answer ({failures[0]}): "
            f"start it, or point {setting} elsewhere"
        )


@contextmanager
def use_experiment(name: str | None) -> Iterator[None]:
    """Makes an experiment the current one while the context is open; None changes nothing."""
    if name is None:
        yield
        return
    before = fluent._active_experiment_id, os.environ.get("MLFLOW_EXPERIMENT_ID")
    mlflow.set_experiment(name)
    try:
        yield
    finally:
        fluent._active_experiment_id = before[0]  # MLflow has no function that restores it
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        if before[1] is not None:
            os.environ["MLFLOW_EXPERIMENT_ID"] = before[1]


def fail_env_run(reason: str, status: str = "FAILED") -> None:
    """End the run that `mlflow run` created, after an error before `start_run`."""
    run_id = env_run_id()
    if not run_id:
        return
    with signals.defer_signals(then_stop=False), request_timeout():
        try:
            client = mlflow.MlflowClient()
            client.set_tag(run_id, MLFLOW_RUN_NOTE, escape_markdown(redact_credentials(reason)))
            client.set_terminated(run_id, status)
        except Exception as error:  # the caller prints the reason, which matters more
            print(f"twinsqueeze: run {run_id} can't be ended: {describe_error(error)}", file=sys.stderr)


@contextmanager
def start_run(name: str, kind: str, *, nested: bool = False) -> Iterator[RunLogger]:
    """Start a run, or continue the one that `mlflow run` created, and end it as FINISHED, FAILED or KILLED.

    Everything is uploaded when the context is left, unless the tracking server fails; `flush` waits for it then.

    Args:
        name: Name of the run, unless the user has named it.
        kind: train, evaluation, ablation, comparison, registration, compression or export.
        nested: Whether it is a child of the open run.

    Raises:
        InputError: If the tracking store or the record on disk can't be written.
    """
    run: RunLogger | None = None
    monitor: SystemMetricsMonitor | None = None
    try:
        with signals.defer_signals(then_stop=True):
            run = _start_nested(name, kind) if nested else _start(name, kind)
        if not nested and MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            monitor = SystemMetricsMonitor(run.run_id)
            monitor.start()
        yield run
        run.end_run("FINISHED")
    except signals.Interrupted as stop:
        _end(run, "KILLED", f"Killed: {stop}.")
        raise
    except BaseException as error:
        prefix = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        _end(run, "FAILED", f"Failed: {prefix}{describe_error(error)}")
        raise
    finally:
        if run in _open_runs:
            _open_runs.remove(run)
        if monitor:
            monitor.finish()
    if not nested:
        _wait(run.writer.uploader, 0)
        if not run.writer.uploader.unfinished():
            _close(run.writer.uploader)


def _start(name: str, kind: str) -> RunLogger:
    flush_timeout()  # raises for a wrong setting before anything begins
    uri, run_id = store_uri(), env_run_id()
    spool, uploader = RunSpool.create(name, uri), Uploader(describe_store(uri))
    tags = _initial_tags(kind)
    writer = RunWriter(spool, uploader)
    try:
        _write_begin(writer, tags if run_id else resolve_tags({MLFLOW_RUN_NAME: name, **tags}), run_id)
        is_started = uploader.wait(SERVER_TIMEOUT if uri.startswith("http") else EXIT_TIMEOUT)
        if not is_started or writer.replayer.refusal:
            reason = writer.replayer.refusal or uploader.failure or "no answer"
            raise InputError(f"the run can't be recorded in {uri}: {reason}")
    except BaseException:
        uploader.stop()
        spool.remove()
        raise
    os.environ.pop("MLFLOW_RUN_ID", None)  # from here on `start_run` ends it
    run = RunLogger(writer)
    _uploaders.append(uploader)
    _open_runs.append(run)
    return run


def _start_nested(name: str, kind: str) -> RunLogger:
    parent = _open_runs[-1]
    writer = RunWriter(RunSpool.create(name, store_uri()), parent.writer.uploader)
    tags = resolve_tags({MLFLOW_RUN_NAME: name, **_initial_tags(kind), MLFLOW_PARENT_RUN_ID: parent.run_id})
    _write_begin(writer, tags, experiment_id=parent.experiment_id)
    return RunLogger(writer)


def _initial_tags(kind: str) -> dict[str, str]:
    """Tags that a run has however soon its process is killed."""
    return {KIND: kind, PROCESS: ProcessIdentity.current().model_dump_json()}


def _write_begin(
    writer: RunWriter, tags: Mapping[str, str], run_id: str | None = None, experiment_id: str | None = None
) -> None:
    begin = {"op": "begin", "time": writer.spool.start_time, "given": run_id, "experiment": experiment_id, "tags": tags}
    writer.write(begin, durable=True)


def _end(run: RunLogger | None, status: str, reason: str) -> None:
    """End a run early, and wait a few seconds for its uploads."""
    if run is None:
        return
    with signals.defer_signals(then_stop=False):
        run.set_description(escape_markdown(reason))
        run.end_run(status)
        if run in _open_runs:
            uploader = run.writer.uploader
            if not uploader.wait(EXIT_TIMEOUT) or uploader.unfinished():
                uploader.notify(uploader.describe_unfinished())
            _close(uploader)


def _wait(uploader: Uploader, timeout: float) -> bool:
    """Wait for uploads, see `Uploader.wait`; a signal gives them up."""
    try:
        return uploader.wait(timeout)
    except signals.Interrupted:
        if not _is_open(uploader):  # else `start_run` closes it
            uploader.notify(uploader.describe_unfinished())
            _close(uploader)
        raise


def _is_open(uploader: Uploader) -> bool:
    return any(run.writer.uploader is uploader for run in _open_runs)


def _close(uploader: Uploader) -> None:
    uploader.stop()
    _uploaders.remove(uploader)


def flush() -> None:
    """Wait until the tracking store has everything that was logged, for as long as `flush_timeout` says.

    Raises:
        UploadError: If it does not take everything; the message says where the rest is.
    """
    for uploader in _uploaders.copy():
        is_sent = _wait(uploader, flush_timeout())
        if not _is_open(uploader):
            _close(uploader)
        if not is_sent or any(run.refusal for run in uploader.unfinished()):
            raise UploadError(uploader.describe_unfinished())
