"""Logs one run, with the verbs of MLflow's API."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined] # made on import
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types.schema import ColSpec, DataType, Schema
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE

from twinsqueeze.tracking import model_files
from twinsqueeze.tracking.spool import Operation, RunReplayer, RunSpool, Uploader
from twinsqueeze.tracking.tags import FILE_SHA256
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.files import CHECKPOINT_FILE, bytes_sha256, file_sha256

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer

LoggedData = MetaDataset
COMPRESSOR_NAME = "compressor"
SENTENCE_TRANSFORMER_NAME = "text_model"
# Seconds between two writes of metrics.
WRITE_INTERVAL = 5.0
# MLflow's limits.
MAX_METRICS_PER_BATCH = 1000
MAX_PARAM_LENGTH = 6000


class RunWriter:
    """Writes a run's operations to its record on disk and to the upload queue.

    Args:
        spool: The run's record.
        uploader: Sends it; a nested run has its parent's.
    """

    def __init__(self, spool: RunSpool, uploader: Uploader) -> None:
        self.spool = spool
        self.uploader = uploader
        self.replayer = RunReplayer(spool)
        self._disk_failed = False

    def write(self, *operations: Operation, durable: bool = False) -> None:
        """Write operations; `durable` waits until they are on the disk."""
        if not self._disk_failed:
            try:
                self.spool.append(*operations, durable=durable)
            except OSError as error:  # nothing is appended behind the gap, but the server may still take everything
                self._disk_failed = True
                self.uploader.notify(
                    f"WARNING: the record in {self.spool.folder} can't be written ({error.strerror}): what follows is "
                    "lost if the tracking server fails as well"
                )
        self.uploader.enqueue(self.replayer, *operations)

    @contextmanager
    def write_files(self) -> Iterator[Path]:
        """Yield an empty folder, and write an operation for each file that is in it at the end."""
        folder = self.spool.new_dir()
        yield folder
        self.write(*self.spool.hash_files(folder))


class RunLogger:
    """Logs a run; `start_run` makes one."""

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer
        self._params: dict[str, str] = dict(writer.replayer.params)
        self._tags: dict[str, str] = {}
        self._metrics: dict[str, float] = {}
        self._tables: list[dict[str, str]] = []
        self._unwritten: list[dict[str, Any]] = []
        self._last_write = time.monotonic()

    @property
    def run_id(self) -> str:
        """MLflow's id; empty while the tracking store does not have a nested run."""
        return self.writer.spool.run_id

    @property
    def experiment_id(self) -> str:
        """Id of the run's experiment."""
        return self.writer.spool.experiment_id

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, except those that `mlflow run` has logged with the same value.

        Raises:
            ValueError: If a parameter has another value already.
        """
        for name, value in values.items():
            if name in self._params and not _is_same(self._params[name], value):
                raise ValueError(f"parameter {name} of the run is {self._params[name]!r}, not {value!r}")
        new = {name: str(value)[:MAX_PARAM_LENGTH] for name, value in values.items() if name not in self._params}
        self._params |= new
        if new:
            self.writer.write({"op": "batch", "params": new})

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._tags |= values
        self.writer.write({"op": "batch", "tags": dict(values)})

    def set_description(self, text: str) -> None:
        """Set the run's description, Markdown."""
        self.set_tags({MLFLOW_RUN_NOTE: text})

    def log_metrics(
        self, values: Mapping[str, float], step: int = 0, model_id: str | None = None, data: LoggedData | None = None
    ) -> None:
        """Log metrics; they are written every five seconds. Values that are not finite are left out.

        Args:
            values: By name, such as `dev/spearman`.
            step: The epoch.
            model_id: A logged model that they belong to: its id or what `log_compressor` returned.
            data: The data that they were measured on.
        """
        row: dict[str, Any] = {"timestamp": int(time.time() * 1000), "step": step}
        if model_id:
            row["model_id"] = model_id
        if data:
            row |= {"dataset_name": data.name, "dataset_digest": data.digest}
        finite = {name: float(value) for name, value in values.items() if np.isfinite(value)}
        self._metrics |= finite
        self._unwritten += [{"key": name, "value": value, **row} for name, value in finite.items()]
        if time.monotonic() - self._last_write > WRITE_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Write the metrics that are still in memory."""
        rows, self._unwritten = self._unwritten, []
        batches = [rows[start : start + MAX_METRICS_PER_BATCH] for start in range(0, len(rows), MAX_METRICS_PER_BATCH)]
        if batches:
            self.writer.write(*({"op": "batch", "metrics": batch} for batch in batches), durable=True)
        self._last_write = time.monotonic()

    def end_run(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self.writer.write({"op": "end", "status": status, "time": int(time.time() * 1000)}, durable=True)

    def as_run(self) -> Run:
        """The run so far as an MLflow entity, also if the tracking store does not have it yet."""
        start = self.writer.spool.start_time
        run_id = self.run_id or self.writer.spool.folder.name
        data = RunData(
            [Metric(name, value, start, 0) for name, value in self._metrics.items()],
            [Param(*item) for item in self._params.items()],
            [RunTag(*item) for item in self._tags.items()],
        )
        return Run(RunInfo(run_id, self.experiment_id, "", "FINISHED", start, None, "active"), data)

    def log_input(self, split: str, name: str, digest: str, source: str) -> LoggedData:
        """Log a split as an input of the run, and return it."""
        columns = [(DataType.string, "sentence1"), (DataType.string, "sentence2"), (DataType.double, "score")]
        source_type = HTTPDatasetSource if source.startswith("http") else LocalArtifactDatasetSource
        dataset = MetaDataset(  # type: ignore[abstract] # MLflow's annotations say so, its code does not
            source=source_type(source),
            name=f"{name} {split}",
            digest=digest,
            schema=Schema([ColSpec(dtype, column) for dtype, column in columns]),
        )
        self.writer.write({"op": "input", "context": split, "dataset": dict(dataset._to_mlflow_entity())})
        return dataset

    def log_table(self, name: str, frame: "pd.DataFrame") -> None:
        """Log a table as `NAME.json`, which the UI shows and compares between runs."""
        # `mlflow.log_table` appends to a table of that name, so a retry would double its rows.
        with self.writer.write_files() as folder:
            path = folder / f"{name}.json"
            frame.to_json(path, orient="split", index=False, date_format="iso")
            digest = {f"{FILE_SHA256}{path.name}": file_sha256(path)}
        self._tables.append({"path": path.name, "type": "table"})
        self.set_tags({MLFLOW_LOGGED_ARTIFACTS: json.dumps(self._tables)} | digest)

    def log_parquet(self, name: str, frame: "pd.DataFrame") -> None:
        """Log a table as `NAME.parquet`, for programs: a tenth of the size and the time of `log_table`."""
        with self.writer.write_files() as folder:
            path = folder / f"{name}.parquet"
            frame.to_parquet(path)
            digest = {f"{FILE_SHA256}{path.name}": file_sha256(path)}
        self.set_tags(digest)

    def log_artifact(self, path: Path) -> None:
        """Log a file under its own name."""
        with self.writer.write_files() as folder:
            shutil.copyfile(path, folder / path.name)

    def log_artifacts(self, source: Path, artifact_path: str = "") -> None:
        """Log the files of a folder, under `artifact_path` if given."""
        with self.writer.write_files() as folder:
            shutil.copytree(source, folder / artifact_path, dirs_exist_ok=True)

    def log_compressor(self, checkpoint: bytes, example: FloatArray, dim: int, params: Mapping[str, Any]) -> str:
        """Log a compressor, see `model_files.save_compressor`; `params` is its recipe.

        Returns:
            The model's name, for `log_metrics` and `model_id`.
        """
        digest = {f"{FILE_SHA256}{CHECKPOINT_FILE}": bytes_sha256(checkpoint)}
        with self._log_model(COMPRESSOR_NAME, params, digest) as folder:
            model_files.save_compressor(folder, checkpoint, example, dim)
        return COMPRESSOR_NAME

    def log_sentence_transformer(
        self,
        model: "SentenceTransformer",
        checkpoint: Path,
        card: str,
        examples: Sequence[str],
        trained_run: str,
        params: Mapping[str, Any],
    ) -> str:
        """Log a sentence-transformers model, see `model_files.save_sentence_transformer`; `params` is its recipe.

        Returns:
            The model's name, for `model_id`.
        """
        with self._log_model(SENTENCE_TRANSFORMER_NAME, params, {}) as folder:
            model_files.save_sentence_transformer(folder, model, checkpoint, card, examples, trained_run)
        return SENTENCE_TRANSFORMER_NAME

    @contextmanager
    def _log_model(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[Path]:
        """Yield an empty folder, and log the model that is in it at the end."""
        folder = self.writer.spool.new_dir()
        yield folder
        for compiled in list(folder.rglob("__pycache__")):  # saving a model imports its code
            shutil.rmtree(compiled, ignore_errors=True)
        files = [{**operation, "model": name} for operation in self.writer.spool.hash_files(folder)]
        texts = {key: str(value) for key, value in params.items()}
        create = {"op": "create_model", "name": name, "params": texts, "tags": resolve_tags(dict(tags))}
        self.writer.write(create, *files, {"op": "finalize_model", "name": name})  # a killed process writes all or none

    def model_id(self, name: str) -> str:
        """The id of a logged model; needs `tracking.run.flush` first."""
        model_id: str = self.writer.spool.ids["models"][name]
        return model_id


def _is_same(logged: str, value: Any) -> bool:
    """Whether a logged text stands for a value: 5 for 5.0, 1e-3 for 0.001."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(logged) == float(value)
        except ValueError:
            return False
    return logged == str(value)
