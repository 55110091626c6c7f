"""Addresses of the tracking store and its UI, and the commands to type next."""

from pathlib import Path

import mlflow

from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.utils.text import redact_credentials


def store_uri() -> str:
    """The tracking store's address without credentials; the path of a SQLite file is absolute."""
    uri = mlflow.get_tracking_uri()
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return redact_credentials(uri)


def run_url(experiment_id: str, run_id: str | None = None) -> str:
    """The page of a run or an experiment, on the tracking server or on a UI started on this machine."""
    uri = mlflow.get_tracking_uri()
    base = redact_credentials(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{base}/#/experiments/{experiment_id}/runs" + (f"/{run_id}" if run_id else "")


def mlflow_run_command(run: RunLogger, entry_point: str, **parameters: str) -> str:
    """The command that runs an entry point in a run's experiment."""
    experiment = "" if run.experiment_id == "0" else f" --experiment-id {run.experiment_id}"
    options = "".join(f" -P {name}={value}" for name, value in parameters.items())
    return f"mlflow run . --env-manager local{experiment} -e {entry_point}{options}"


def ui_steps(run: RunLogger) -> list[tuple[str, str]]:
    """The steps to see a run in MLflow's UI, each with its command or address."""
    uri = mlflow.get_tracking_uri()
    shown = uri if uri == redact_credentials(uri) else '"$MLFLOW_TRACKING_URI"'
    start = [] if uri.startswith("http") else [("start MLflow's UI", f"mlflow ui --backend-store-uri {shown}")]
    look = ("look at the run", run_url(run.experiment_id, run.run_id))
    return [*start, look, ("compare it with others", run_url(run.experiment_id))]
