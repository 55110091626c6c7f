"""Logs one run, with the verbs of MLflow's API."""

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined] # made on import
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types.schema import ColSpec, Schema
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.spool.journal import Operation, RunSpool
from twinsqueeze.tracking.spool.replay import RunReplayer
from twinsqueeze.tracking.spool.uploader import Uploader, flush_timeout, notify
from twinsqueeze.tracking.tags import FILE_SHA256
from twinsqueeze.utils.files import file_sha256
from twinsqueeze.utils.text import format_value

LoggedData = MetaDataset
PAIR_COLUMNS = Schema([ColSpec("string", "sentence1"), ColSpec("string", "sentence2"), ColSpec("double", "score")])
MAX_METRICS_PER_BATCH = 1000  # MLflow's limit


class RunLogger:
    """Logs a run to its record on disk, which `uploader` sends; `start_run` makes one."""

    def __init__(self, spool: RunSpool, uploader: Uploader) -> None:
        self.spool = spool
        self.uploader = uploader
        self.replayer = RunReplayer(spool)
        self.is_of_project = False  # whether `mlflow run` made the run
        self._tags: dict[str, str] = {}
        self._metrics: dict[str, float] = {}
        self._tables: list[dict[str, str]] = []
        self._unwritten: list[dict[str, Any]] = []
        self._last_write = time.monotonic()
        self._disk_failed = False

    @property
    def run_id(self) -> str:
        """MLflow's id; empty while the tracking store does not have a nested run."""
        return self.spool.run_id

    @property
    def experiment_id(self) -> str:
        """Id of the run's experiment."""
        return self.spool.experiment_id

    def log_params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Log parameters, except those that `mlflow run` has logged; return those of them that have another value."""
        known = self.replayer.params
        typed_otherwise = {n: value for n, value in values.items() if known.get(n) not in {None, format_value(value)}}
        # MLflow takes at most 6,000 characters of a value.
        new = {name: format_value(value)[:6000] for name, value in values.items() if name not in known}
        if new:
            known |= new
            self._write({"op": "batch", "params": new})
        return typed_otherwise

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._tags |= values
        self._write({"op": "batch", "tags": dict(values)})

    def set_parent(self, run_id: str) -> None:
        """Have MLflow's UI show the run below another one, if that is in the same experiment."""
        with suppress(mlflow.MlflowException):  # the other run is in another store, or deleted
            if mlflow.get_run(run_id).info.experiment_id == self.experiment_id:
                self.set_tags({MLFLOW_PARENT_RUN_ID: run_id})

    def set_description(self, text: str) -> None:
        """Set the run's description, Markdown."""
        self.set_tags({MLFLOW_RUN_NOTE: text})

    def log_metrics(
        self, values: Mapping[str, float], step: int = 0, model_id: str | None = None, data: LoggedData | None = None
    ) -> None:
        """Log metrics, which are written every five seconds; values that are not finite are left out.

        `model_id` is the id of a logged model or its name in this run; `data` is what they were measured on.
        """
        row: dict[str, Any] = {"timestamp": int(time.time() * 1000), "step": step}
        if model_id:
            row["model_id"] = model_id
        if data:
            row |= {"dataset_name": data.name, "dataset_digest": data.digest}
        finite = {name: float(value) for name, value in values.items() if np.isfinite(value)}
        self._metrics |= finite
        self._unwritten += [{"key": name, "value": value, **row} for name, value in finite.items()]
        if time.monotonic() - self._last_write > 5:
            self._write_metrics()

    def log_input(self, split: str, name: str, digest: str, source: str) -> LoggedData:
        """Log a split as an input of the run, and return it."""
        source_type = HTTPDatasetSource if source.startswith("http") else LocalArtifactDatasetSource
        # MLflow's annotations call the class abstract, its code does not.
        dataset = MetaDataset(source_type(source), f"{name} {split}", digest, PAIR_COLUMNS)  # type: ignore[abstract]
        self._write({"op": "input", "context": split, "dataset": dict(dataset._to_mlflow_entity())})
        return dataset

    def log_table(self, file_name: str, frame: pd.DataFrame) -> None:
        """Log a table as a .json file, which the UI shows and compares between runs, or as a smaller .parquet file."""
        # `mlflow.log_table` appends to a table of that name, so a retry would double its rows.
        tags = {}
        with self._write_files() as folder:
            path = folder / file_name
            if path.suffix == ".parquet":
                frame.to_parquet(path)
            else:
                frame.to_json(path, orient="split", index=False, date_format="iso")
                self._tables.append({"path": file_name, "type": "table"})
                tags[MLFLOW_LOGGED_ARTIFACTS] = json.dumps(self._tables)
            tags[f"{FILE_SHA256}{file_name}"] = file_sha256(path)
        self.set_tags(tags)

    def log_artifact(self, path: Path) -> None:
        """Log a file under its own name."""
        with self._write_files() as folder:
            shutil.copyfile(path, folder / path.name)

    def log_artifacts(self, source: Path, artifact_path: str) -> None:
        """Log the files of a folder under `artifact_path`."""
        with self._write_files() as folder:
            shutil.copytree(source, folder / artifact_path)

    @contextmanager
    def log_model(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[Path]:
        """Yield an empty folder, and log the MLflow model that is in it at the end under `model_name`."""
        name = self.model_name
        folder = self.spool.new_dir()
        yield folder
        for compiled in list(folder.rglob("__pycache__")):  # saving a model imports its code
            shutil.rmtree(compiled, ignore_errors=True)
        files = [{**operation, "model": name} for operation in self.spool.hash_files(folder)]
        texts = {key: format_value(value) for key, value in params.items()}
        create = {"op": "create_model", "name": name, "params": texts, "tags": resolve_tags(dict(tags))}
        self._write(create, *files, {"op": "finalize_model", "name": name})  # a killed process writes all or none

    @property
    def model_name(self) -> str:
        """The name of the run's model: that of the run, without the characters that MLflow refuses."""
        return re.sub(r"[/:.%\"']", "_", self.spool.ids.get("run_name", self.spool.name))

    def model_id(self) -> str:
        """The id of the logged model, once the tracking store has it; raise an `InputError` if the store fails."""
        if reason := self.uploader.wait(flush_timeout()):
            raise InputError(self.uploader.describe_unfinished(reason))
        return str(self.spool.ids["models"][self.model_name])

    def end_run(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self._write_metrics()
        self._write({"op": "end", "status": status, "time": int(time.time() * 1000)})

    def as_run(self) -> Run:
        """The run so far as an MLflow entity, also if the tracking store does not have it yet."""
        start = self.spool.start_time
        data = RunData(
            [Metric(name, value, start, 0) for name, value in self._metrics.items()],
            [Param(*item) for item in self.replayer.params.items()],
            [RunTag(*item) for item in self._tags.items()],
        )
        run_id = self.run_id or self.spool.folder.name
        return Run(RunInfo(run_id, self.experiment_id, "", "FINISHED", start, None, "active"), data)

    @contextmanager
    def _write_files(self) -> Iterator[Path]:
        """Yield an empty folder, and write an operation for each file that is in it at the end."""
        folder = self.spool.new_dir()
        yield folder
        self._write(*self.spool.hash_files(folder))

    def _write_metrics(self) -> None:
        rows, self._unwritten = self._unwritten, []
        starts = range(0, len(rows), MAX_METRICS_PER_BATCH)
        self._write(*({"op": "batch", "metrics": rows[start : start + MAX_METRICS_PER_BATCH]} for start in starts))
        self._last_write = time.monotonic()

    def _write(self, *operations: Operation) -> None:
        """Write operations to the record on disk and to the upload queue."""
        if not self._disk_failed:
            try:
                self.spool.append(*operations)
            except OSError as error:  # nothing is appended behind the gap, but the server may still take everything
                self._disk_failed = True
                notify(f"WARNING: {self.spool.folder} can't be written ({error.strerror}): an outage would lose data")
        self.uploader.enqueue(self.replayer, *operations)
