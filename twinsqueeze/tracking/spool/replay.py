"""Sends the operations of a run to MLflow so that repeating one duplicates nothing."""

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from mlflow import entities
from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.exceptions import RestException
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NOTE

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.experiment_note import describe_experiment
from twinsqueeze.tracking.mlmodel import read_mlmodel
from twinsqueeze.tracking.parameters import decode_params
from twinsqueeze.tracking.spool.journal import Operation, RunSpool
from twinsqueeze.tracking.store import find_current_experiment

# Tag with the id of the record that a run was created from: finds the run if the server's answer was lost.
RECORD_TAG = "twinsqueeze.record"
# MLflow's names for unnamed runs, such as zealous-crow-123.
GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
PERMANENT_ERRORS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED"}
# Attempts at an operation that fails in MLflow's database. If two processes log the same dataset at once, one of them
# fails, and succeeds at the next attempt.
MAX_DATABASE_ERRORS = 3
# Seconds for one HTTP request of an upload.
REQUEST_TIMEOUT = 30
# MLflow reads these from the environment: its defaults are 7 retries and 120 seconds.
RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
_DEFAULTS = {RETRIES: os.environ.setdefault(RETRIES, "3"), TIMEOUT: os.environ.setdefault(TIMEOUT, "60")}
_lock = threading.Lock()


@contextmanager
def request_timeout(seconds: int = REQUEST_TIMEOUT) -> Iterator[None]:
    """Have MLflow send each request once, with a timeout, while the context is open; one thread at a time is inside.

    MLflow's own retries create a run twice if only the server's answer was lost.
    """
    with _lock:
        os.environ.update({RETRIES: "0", TIMEOUT: str(seconds)})
        try:
            yield
        finally:
            os.environ.update(_DEFAULTS)


class RunReplayer:
    """Sends the operations of one run to the tracking store, and sets the ids of its record."""

    def __init__(self, spool: RunSpool) -> None:
        self.spool = spool
        self.params: dict[str, str] = {}  # those that the run has, also by `mlflow run`
        self.refusal: str | None = None  # why the tracking store refuses the run
        self._models: dict[str, str] = spool.ids.setdefault("models", {})
        self._client = mlflow.MlflowClient()
        self._num_database_errors = 0

    def send(self, operation: Operation) -> None:
        """Send the next operation, unless the store has it already; raise an `InputError` if a retry would fail too."""
        try:
            with request_timeout():
                getattr(self, f"_send_{operation['op']}")(operation)
        except mlflow.MlflowException as error:
            # A proxy's error page does not come from the tracking server.
            if isinstance(error, RestException) or not self.spool.uri.startswith("http"):
                self._num_database_errors += error.error_code == "BAD_REQUEST"
                if error.error_code in PERMANENT_ERRORS or self._num_database_errors == MAX_DATABASE_ERRORS:
                    raise InputError(str(error)) from error
            raise
        self._num_database_errors = 0

    def _send_begin(self, operation: Operation) -> None:
        env_run_id = operation["run_id"]
        run = self._client.get_run(env_run_id) if env_run_id else self._create_run(operation)
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            raise InputError(f"run {run.info.run_id} has been deleted")
        self.spool.ids |= {"experiment_id": run.info.experiment_id, "run_id": run.info.run_id}
        if env_run_id:
            self.params = decode_params(run)
            name = run.info.run_name or ""
            name = self.spool.name if GENERATED_NAME.fullmatch(name) else name
            self.spool.ids |= {"run_name": name}
            self._client.update_run(env_run_id, "RUNNING", name)
            self._send_batch(operation)
        if not operation["experiment_id"]:  # not nested
            with suppress(mlflow.MlflowException):  # such as a missing permission: the run matters more
                describe_experiment(run.info.experiment_id)

    def _create_run(self, operation: Operation) -> entities.Run:
        experiment_id = operation["experiment_id"] or find_current_experiment()
        if not experiment_id:
            experiment_id = self._client.create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
        tags = {**operation["tags"], RECORD_TAG: self.spool.folder.name}
        is_same = f"tags.`{RECORD_TAG}` = '{self.spool.folder.name}'"
        if found := self._client.search_runs([experiment_id], is_same, entities.ViewType.ALL, max_results=1):
            return found[0]
        return self._client.create_run(experiment_id, self.spool.start_time, tags, self.spool.name)

    def _send_batch(self, operation: Operation) -> None:
        # MLflow's databases store metrics of the same name, time, step and value once.
        metrics = []
        for row in operation.get("metrics", ()):
            model = row.get("model_id")
            ids = {"model_id": self._models.get(model, model), "run_id": self.spool.run_id}
            metrics.append(entities.Metric(**row | ids))
        params = [entities.Param(*item) for item in operation.get("params", {}).items()]
        tags = [entities.RunTag(*item) for item in operation.get("tags", {}).items()]
        self._client.log_batch(self.spool.run_id, metrics, params, tags)

    def _send_input(self, operation: Operation) -> None:
        tags = [entities.InputTag(MLFLOW_DATASET_CONTEXT, operation["context"])]
        dataset = entities.Dataset(**operation["dataset"])
        self._client.log_inputs(self.spool.run_id, [entities.DatasetInput(dataset, tags)])

    def _send_create_model(self, operation: Operation) -> None:
        name, run_id, experiment_id = operation["name"], self.spool.run_id, self.spool.experiment_id
        run = self._client.get_run(run_id)
        is_same = f"source_run_id = '{run_id}' AND name = '{name}'"
        if found := self._client.search_logged_models([experiment_id], is_same, max_results=1):
            model = found[0]
        else:
            params = {**operation["params"], **decode_params(run)}
            model = self._client.create_logged_model(experiment_id, name, run_id, operation["tags"] or None, params)
        outputs = run.outputs.model_outputs if run.outputs else []
        if model.model_id not in {output.model_id for output in outputs}:
            self._client.log_outputs(run_id, [entities.LoggedModelOutput(model.model_id, step=0)])
        self._models[name] = model.model_id

    def _send_file(self, operation: Operation) -> None:
        path = self.spool.verify_file(operation)
        folder = operation["name"].rpartition("/")[0] or None
        if "model" not in operation:
            self._client.log_artifact(self.spool.run_id, str(path), folder)
        elif operation["name"] == MLMODEL_FILE_NAME:
            self._send_mlmodel(path, self._models[operation["model"]])
        else:
            self._client.log_model_artifact(self._models[operation["model"]], str(path), folder)

    def _send_mlmodel(self, path: Path, model_id: str) -> None:
        """Send an MLmodel file with the model's ids, as MLflow does when it saves a model for a run."""
        saved = read_mlmodel(path.parent)
        saved.model_id = saved.model_uuid = model_id
        saved.run_id = self.spool.run_id
        saved.artifact_path = self._client.get_logged_model(model_id).artifact_location
        with tempfile.TemporaryDirectory() as folder:
            copy = str(Path(folder, MLMODEL_FILE_NAME))
            saved.save(copy)
            self._client.log_model_artifact(model_id, copy)

    def _send_finalize_model(self, operation: Operation) -> None:
        self._client.finalize_logged_model(self._models[operation["name"]], entities.LoggedModelStatus.READY)

    def _send_end(self, operation: Operation) -> None:
        self._client.set_terminated(self.spool.run_id, operation["status"], operation["time"])

    def _send_abandon(self, operation: Operation) -> None:
        """End the run of a dead process, unless another process has ended it."""
        if self._client.get_run(self.spool.run_id).info.status == "RUNNING":
            self._client.set_tag(self.spool.run_id, MLFLOW_RUN_NOTE, operation["note"])
            self._client.set_terminated(self.spool.run_id, "KILLED", operation["time"])
