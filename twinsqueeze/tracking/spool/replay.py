"""How the operations of a record reach MLflow, each as often as need be: what is there already is not made twice."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.exceptions import RestException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.tracking.fluent import _get_experiment_id
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NOTE

from twinsqueeze.tracking.spool.journal import Operation, RunSpool
from twinsqueeze.tracking.spool.timeouts import REQUEST_SECONDS, UPLOAD_SECONDS, request_timeout
from twinsqueeze.tracking.spool.uploader import RefusedError
from twinsqueeze.tracking.store import ensure_experiment

# Of a run: the record that it was made from, by which it is found where only the server's answer was lost.
RECORD = "twinsqueeze.record"
# What MLflow calls a run that nobody named, such as zealous-crow-123.
MADE_UP_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
METRICS_A_CALL = 1000
PARAMS_A_CALL = 100
# Answers that stay the same: what is named is not there, or was deleted; or it says something else already.
PERMANENT_ERRORS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED"}
# What MLflow calls whatever its database can't do. It may be for good, or because another process has just made the
# same row (MLflow looks for data of that digest, then inserts it), which the next attempt finds.
DATABASE = "BAD_REQUEST"
DATABASE_ATTEMPTS = 3


class RunReplayer:
    """Sends one record to a tracking store.

    Args:
        client: Of the store.
        record: What is sent.

    Attributes:
        run_id: Of the run, once it has begun.
        experiment_id: Of its experiment, likewise.
        params: What it had when it began, of a run that `mlflow run` made.
    """

    def __init__(self, client: mlflow.MlflowClient, record: RunSpool) -> None:
        self.client = client
        self.record = record
        self.run_id: str = record.known.get("run_id", "")
        self.experiment_id: str = record.known.get("experiment_id", "")
        self.models: dict[str, str] = dict(record.known.get("models", {}))
        self.params: dict[str, str] = {}
        self._created: dict[str, LoggedModel] = {}
        self._uploaded: set[Path] = set()
        self._database_errors = 0

    @property
    def known(self) -> Mapping[str, Any]:
        """What has been found out so far."""
        return {"run_id": self.run_id, "experiment_id": self.experiment_id, "models": self.models}

    @property
    def progress(self) -> int:
        """Grows with every part of an operation that is there for good."""
        return len(self._created) + len(self._uploaded)

    def send(self, operation: Operation, *, again: bool) -> None:
        """Sends an operation, see `sender.Delivery`."""
        kind = operation["op"]
        try:
            with request_timeout(UPLOAD_SECONDS if kind in {"files", "model"} else REQUEST_SECONDS):
                getattr(self, f"_{kind}")(operation, again)
        except mlflow.MlflowException as error:
            remote = self.record.about["uri"].startswith("http")
            # What a proxy in front of the server says is not the server's answer.
            answered = isinstance(error, RestException) or not remote
            if error.error_code == DATABASE:
                self._database_errors += answered
            if answered and (error.error_code in PERMANENT_ERRORS or self._database_errors == DATABASE_ATTEMPTS):
                raise RefusedError(str(error)) from error
            raise
        self._database_errors = 0

    def _begin(self, operation: Operation, again: bool) -> None:
        run = self._given(operation) if operation["given"] else self._made(operation, again)
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            raise RefusedError(f"run {run.info.run_id} has been deleted")
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id

    def _given(self, operation: Operation) -> Run:
        run_id = operation["given"]
        run = self.client.get_run(run_id)
        self.params = dict(run.data.params)
        if run.info.lifecycle_stage != LifecycleStage.DELETED:
            nameless = MADE_UP_NAME.fullmatch(run.info.run_name or "")
            self.client.update_run(run_id, status="RUNNING", name=self.record.about["name"] if nameless else None)
            self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in operation["tags"].items()])
        return run

    def _made(self, operation: Operation, again: bool) -> Run:
        # Found by the environment, which is this process's: a run that could not begin has no record that is kept.
        experiment_id = operation["experiment"] or self.experiment_id or _experiment_id()
        if again:
            mine = f"tags.`{RECORD}` = '{self.record.about['record']}'"
            if found := self.client.search_runs([experiment_id], mine, ViewType.ALL, max_results=1):
                return found[0]
        tags = {**operation["tags"], RECORD: self.record.about["record"]}
        return self.client.create_run(experiment_id, operation["time"], tags, self.record.about["name"])

    def _params(self, operation: Operation, again: bool) -> None:
        del again  # MLflow takes a parameter twice if it says the same
        params = [Param(name, value) for name, value in operation["values"].items()]
        for start in range(0, len(params), PARAMS_A_CALL):
            self.client.log_batch(self.run_id, params=params[start : start + PARAMS_A_CALL])

    def _tags(self, operation: Operation, again: bool) -> None:
        del again
        self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in operation["values"].items()])

    def _metrics(self, operation: Operation, again: bool) -> None:
        del again  # MLflow's databases keep one of metrics that agree in name, time, step and value
        metrics = []
        for name, value, time, step, model, data_name, data_digest in operation["rows"]:
            data = {"dataset_name": data_name, "dataset_digest": data_digest} if data_name else {}
            model_id = self.models.get(model, model) if model else None
            metrics.append(Metric(name, value, time, step, model_id=model_id, run_id=self.run_id, **data))
        for start in range(0, len(metrics), METRICS_A_CALL):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_A_CALL])

    def _input(self, operation: Operation, again: bool) -> None:
        del again  # MLflow takes the same data twice
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, operation["context"])]
        self.client.log_inputs(self.run_id, [DatasetInput(Dataset(**operation["dataset"]), tags)])

    def _files(self, operation: Operation, again: bool) -> None:
        del again  # a file takes the place of one of its name
        folder = self.record.sealed(operation)
        for path in self._left(folder, operation):
            beside = path.parent.relative_to(folder).as_posix()
            self.client.log_artifact(self.run_id, str(path), None if beside == "." else beside)

    def _model(self, operation: Operation, again: bool) -> None:
        folder, name = self.record.sealed(operation), operation["name"]
        run = self.client.get_run(self.run_id)
        model = self._created.get(name) or (self._model_of(name) if again else None)
        if model is None:
            params = {**operation["params"], **run.data.params}
            model = self.client.create_logged_model(
                self.experiment_id, name, self.run_id, operation["tags"] or None, params
            )
        self._created[name] = model
        outputs = run.outputs.model_outputs if run.outputs else []
        if model.model_id not in {output.model_id for output in outputs}:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        with tempfile.TemporaryDirectory() as place:
            for number, path in enumerate(self._left(folder, operation)):
                alone, beside = Path(place, str(number)), path.parent.relative_to(folder).as_posix()
                alone.mkdir()
                shutil.copyfile(path, alone / path.name)
                if path.name == MLMODEL_FILE_NAME:
                    _address(alone / path.name, model)
                self.client.log_model_artifacts(model.model_id, str(alone), None if beside == "." else beside)
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        self.models[name] = model.model_id

    def _left(self, folder: Path, operation: Operation) -> Iterator[Path]:
        """The files of an operation that have not been sent yet: an attempt goes on where the one before it failed."""
        for name in operation["sha256"]:
            path = folder / name
            if path not in self._uploaded:
                yield path
                self._uploaded.add(path)

    def _model_of(self, name: str) -> LoggedModel | None:
        mine = f"source_run_id = '{self.run_id}' AND name = '{name}'"
        found = self.client.search_logged_models([self.experiment_id], mine, max_results=1)
        return found[0] if found else None

    def _end(self, operation: Operation, again: bool) -> None:
        del again
        self.client.set_terminated(self.run_id, operation["status"], operation["time"])

    def _abandon(self, operation: Operation, again: bool) -> None:
        """Ends the run of a process that is gone, where nobody else has ended it or taken it up."""
        del again
        if operation["text"] and self.client.get_run(self.run_id).info.status == "RUNNING":
            self.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, operation["text"])
            self.client.set_terminated(self.run_id, "KILLED", operation["time"])


def _experiment_id() -> str:
    """Of the experiment that the environment names, made if it is not there."""
    ensure_experiment()
    return str(_get_experiment_id())


def _address(file: Path, model: LoggedModel) -> None:
    """Writes into a model that was saved what it is called, as MLflow does where it saves a model for a run."""
    saved = Model.load(str(file))
    saved.model_id = saved.model_uuid = model.model_id
    saved.run_id = model.source_run_id
    saved.artifact_path = model.artifact_location
    saved.save(str(file))
