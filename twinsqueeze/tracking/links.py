"""Addresses of the tracking store and its UI, and the commands to type next."""

import shlex
from pathlib import Path

import mlflow

from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.store import canonical_uri, sqlite_path
from twinsqueeze.utils.commands import SOURCE_DIR, own_command
from twinsqueeze.utils.text import redact_credentials


def store_uri() -> str:
    """The tracking store's address without credentials; the path of a SQLite file is absolute."""
    return canonical_uri(mlflow.get_tracking_uri())


def run_url(experiment_id: str, run_id: str | None = None) -> str:
    """The page of a run or an experiment, on the tracking server or on a UI started on this machine."""
    uri = mlflow.get_tracking_uri()
    base = redact_credentials(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{base}/#/experiments/{experiment_id}/runs" + (f"/{run_id}" if run_id else "")


def next_command(run: RunLogger, command: str, **options: str) -> str:
    """A command for a run's experiment, spelled as the one that made the run: by `mlflow run` or directly."""
    if run.is_of_project:
        project = "." if Path.cwd() == SOURCE_DIR else str(SOURCE_DIR)
        experiment = [] if run.experiment_id == "0" else ["--experiment-id", run.experiment_id]
        parameters = [part for name, value in options.items() for part in ("-P", f"{name}={value}")]
        return shlex.join(["mlflow", "run", project, "--env-manager", "local", *experiment, "-e", command, *parameters])
    return own_command(command, *(part for name, value in options.items() for part in (f"--{name}", value)))


def ui_steps(run: RunLogger) -> list[tuple[str, str]]:
    """The steps to see a run in MLflow's UI, each with its command or address."""
    uri, shown = mlflow.get_tracking_uri(), store_uri()
    has_credentials = not sqlite_path(uri) and uri != shown
    shown = '"$MLFLOW_TRACKING_URI"' if has_credentials else shlex.quote(shown)
    look = ("look at the run", run_url(run.experiment_id, run.run_id))
    if uri.startswith("http"):
        return [look, ("compare it with others", run_url(run.experiment_id))]
    return [("start MLflow's UI", f"mlflow ui --backend-store-uri {shown}"), look]
