"""Opens runs, ends them and waits until they are sent.

A run's record goes to disk first. A thread sends it from there, so that a server that is away, hangs or fails stops no
training; what it has not taken when the command ends stays on disk for the command `sync`.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import mlflow
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from twinsqueeze.errors import InputError
from twinsqueeze.tracking import store
from twinsqueeze.tracking.spool.journal import RunSpool, records_folder
from twinsqueeze.tracking.spool.replay import RunReplayer
from twinsqueeze.tracking.spool.timeouts import SERVER_SECONDS, STOP_SECONDS, flush_timeout, request_timeout
from twinsqueeze.tracking.spool.uploader import Uploader
from twinsqueeze.utils import signals
from twinsqueeze.utils.processes import ProcessIdentity
from twinsqueeze.utils.text import describe_error, escape_markdown, redact_credentials

if TYPE_CHECKING:
    pass
from twinsqueeze.tracking.links import describe_store, store_uri
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import KIND, PROCESS

# Ours is the progress to show; MLflow's warnings stay.
logging.getLogger("mlflow").setLevel(logging.WARNING)


os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


# MLflow would print a run's address at its end, with the password that may stand in it; `where_to_look` does without.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


# MLflow would ask seven times more for what a failing server does not give, and wait for two minutes each time.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")


os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


def env_run_id() -> str | None:
    """The id of the run that `mlflow run` made for this process, if it did."""
    return os.environ.get("MLFLOW_RUN_ID")


def check_tracking_server(what: str = "tracking server", setting: str = "MLFLOW_TRACKING_URI") -> None:
    """Asks a remote server for an answer, and opens a store that is a file, so that nothing long begins in vain.

    Args:
        what: The tracking server, or the model registry.
        setting: What says where it is.

    Raises:
        InputError: If a server does not give one within 25 seconds, or the file can't be opened.
    """
    uri = mlflow.get_registry_uri() if setting == "MLFLOW_REGISTRY_URI" else mlflow.get_tracking_uri()
    if urlsplit(uri).scheme not in {"http", "https"}:
        store.init_sqlite_store(uri, what.replace("server", "store"), setting)
        return
    failure: list[str] = ["no answer"]

    def ask() -> None:
        for _ in range(3):  # an answer may have been lost on the way
            try:
                with request_timeout():
                    mlflow.MlflowClient(uri).search_experiments(max_results=1)
                failure.clear()
                return
            except Exception as error:  # any failure means that there is no server to record to
                failure[:] = [describe_error(error)]

    thread = threading.Thread(target=ask, daemon=True)  # a server that trickles would hold us for ever
    thread.start()
    thread.join(SERVER_SECONDS)
    if failure:
        raise InputError(
            f"the {what} {redact_credentials(uri)} does not answer ({failure[0]}): "
            f"start it, or point {setting} elsewhere"
        )


def fail_env_run(reason: str, status: str = "FAILED") -> None:
    """Ends the run that `mlflow run` made, for something that went wrong before it was taken up."""
    run_id = env_run_id()
    if not run_id:
        return
    with signals.defer_signals(then_stop=False), request_timeout():
        try:
            client = mlflow.MlflowClient()
            client.set_tag(run_id, MLFLOW_RUN_NOTE, escape_markdown(redact_credentials(reason)))
            client.set_terminated(run_id, status)
        except Exception as error:  # the reason itself matters more, and is printed by the caller
            print(f"twinsqueeze: run {run_id} can't be ended: {describe_error(error)}", file=sys.stderr)


class UnsentError(InputError):
    """The tracking server has not taken all of the records, which are kept."""


# Those that have something to send, and the runs that are open, but for the nested ones.
_senders: list[Uploader] = []


_parents: list[RunLogger] = []


@contextmanager
def start_run(name: str, kind: str, *, nested: bool = False) -> Iterator[RunLogger]:
    """A run of MLflow's, made here or by `mlflow run`, that ends as FINISHED, FAILED with its reason, or KILLED.

    What is written to it is there when the block ends, unless the tracking server has gone away by then: `flush` waits
    for it.

    Args:
        name: What it is called, unless the user has named it.
        kind: train, evaluation, ablation, comparison, registration or export.
        nested: Whether it is a child of the run that is open.

    Raises:
        InputError: If the tracking store, or the record, can't be written to.
    """
    run: RunLogger | None = None
    monitor: SystemMetricsMonitor | None = None
    try:
        with signals.defer_signals(then_stop=True):
            run = _start_nested(name, kind) if nested else _start(name, kind)
        if not nested:
            _parents.append(run)
            monitor = _monitor(run)
        yield run
        run.end_run("FINISHED")
    except signals.Interrupted as stop:
        _end(run, "KILLED", f"Killed: {stop}.")
        raise
    except BaseException as error:
        reason = (
            describe_error(error)
            if isinstance(error, InputError)
            else f"{type(error).__name__}: {describe_error(error)}"
        )
        _end(run, "FAILED", f"Failed: {reason}")
        raise
    finally:
        if run in _parents:
            _parents.remove(run)
        if monitor:
            monitor.finish()
    if not nested:
        _close(run.sender, 0)


def _start(name: str, kind: str) -> RunLogger:
    flush_timeout()  # a setting that is wrong is told before anything begins
    uri, given = store_uri(), env_run_id()
    record = RunSpool.create(name, uri)
    known = _known_tags(kind)
    tags = known if given else resolve_tags({MLFLOW_RUN_NAME: name, **known})
    sender = Uploader(describe_store(uri))
    try:
        run = _begin(record, sender, {"given": given, "experiment": None, "tags": tags})
        seconds = SERVER_SECONDS if uri.startswith("http") else STOP_SECONDS
        began = sender.wait(seconds, lambda: run.shipment.begun or run.shipment.refused is not None)
        if not began or run.shipment.refused:
            why = run.shipment.refused or sender.failure or "no answer"
            raise InputError(f"the run can't be recorded in {uri}: {why}")
    except BaseException:
        sender.stop()
        record.remove()
        raise
    os.environ.pop("MLFLOW_RUN_ID", None)  # it is taken up; whatever happens now, we end it
    run._params |= run.delivery.params
    _senders.append(sender)
    return run


def _start_nested(name: str, kind: str) -> RunLogger:
    parent = _parents[-1]
    tags = resolve_tags({MLFLOW_RUN_NAME: name, **_known_tags(kind), MLFLOW_PARENT_RUN_ID: parent.run_id})
    record = RunSpool.create(name, store_uri())
    return _begin(record, parent.sender, {"given": None, "experiment": parent.experiment_id, "tags": tags})


def _known_tags(kind: str) -> dict[str, str]:
    """What a run has from its beginning, so that it has it however soon this process is killed."""
    return {KIND: kind, PROCESS: ProcessIdentity.current().model_dump_json()}


def _begin(record: RunSpool, sender: Uploader, what: Mapping[str, Any]) -> RunLogger:
    delivered = delivery(record)
    run = RunLogger(record, delivered, sender, sender.add(record, delivered))
    run._write({"op": "begin", "time": run._began, **what}, durable=True)
    return run


def _monitor(run: RunLogger) -> SystemMetricsMonitor | None:
    """What MLflow notes of the machine where the user has asked it to, which is not in the record."""
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return None
    monitor = SystemMetricsMonitor(run.run_id)
    monitor.start()
    return monitor


def _end(run: RunLogger | None, status: str, reason: str) -> None:
    if run is None:
        return
    with signals.defer_signals(then_stop=False):
        run.set_description(escape_markdown(reason))
        run.end_run(status)
        if run in _parents:
            _parents.remove(run)
            if not _close(run.sender, STOP_SECONDS):
                run.sender.tell(_kept(run.sender))
                _abandon(run.sender)


def _close(sender: Uploader, seconds: float, *, aloud: bool = False) -> bool:
    """Waits for a sender, and lets it go once it has sent everything; whether it has."""
    try:
        done = sender.wait(seconds, aloud=aloud)
    except signals.Interrupted:
        sender.tell(_kept(sender))
        _abandon(sender)
        raise
    if any(run.sender is sender for run in _parents):
        return done and not any(shipment.refused for shipment in sender.unsent())
    if not done or sender.unsent():
        return False
    _abandon(sender)
    return True


def _abandon(sender: Uploader) -> None:
    sender.stop()
    _senders.remove(sender)


def flush() -> None:
    """Waits until the tracking store has everything that was recorded, or for as long as `flush_timeout` says.

    Raises:
        UnsentError: If it does not come to that; the message says where the records are.
    """
    for sender in _senders.copy():
        if not _close(sender, flush_timeout(), aloud=True) and sender.unsent():
            message = _kept(sender)
            if not any(run.sender is sender for run in _parents):
                _abandon(sender)
            raise UnsentError(message)


def _kept(sender: Uploader) -> str:
    unsent = sender.unsent()
    why = next((s.refused for s in unsent if s.refused), sender.failure) or "no answer"
    if len(unsent) == 1:
        what = f"the record of {unsent[0].record.about['name']} is kept in {unsent[0].record.folder}"
    else:
        what = f"the records of {len(unsent)} runs are kept in {records_folder()}"
    return f"{sender.where} has not taken everything ({why}): {what}, and `python -m twinsqueeze sync` sends it later"


def delivery(record: RunSpool) -> RunReplayer:
    """Who sends a record to the tracking store."""
    return RunReplayer(mlflow.MlflowClient(), record)
