"""Writes one run: its record on disk, an operation for whatever is logged."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined] # made on import
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag
from mlflow.models import Model, ModelSignature
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE

from twinsqueeze.tracking.spool.journal import Operation, RunSpool
from twinsqueeze.tracking.spool.replay import METRICS_A_CALL, RunReplayer
from twinsqueeze.tracking.spool.uploader import Upload, Uploader
from twinsqueeze.tracking.tags import FILE_SHA256, TRAINED_RUN
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.files import CHECKPOINT_FILE, bytes_sha256, file_sha256

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer

LoggedData = MetaDataset
FLUSH_SECONDS = 5.0
PARAM_LENGTH = 6000
MODEL_NAME = "compressor"
MODEL_PACKAGES = ("mlflow", "numpy", "safetensors")
MODEL_CODE = Path(__file__).parent / "pyfunc" / "compressor.py"
TEXT_MODEL_NAME = "text_model"
TEXT_MODEL_CODE = Path(__file__).parent / "pyfunc" / "sentence_encoder.py"
TEXT_MODEL_PACKAGES = ("mlflow", "sentence-transformers", "transformers", "torch")
CARD_FILE = "README.md"


@dataclass(eq=False)
class RunLogger:
    """Writes one run; made by `open_run`."""

    record: RunSpool
    delivery: RunReplayer
    sender: Uploader
    shipment: Upload
    _began: int = field(default_factory=lambda: int(time.time() * 1000))
    _params: dict[str, str] = field(default_factory=dict)
    _tags: dict[str, str] = field(default_factory=dict)
    _metrics: dict[str, float] = field(default_factory=dict)
    _tables: list[dict[str, str]] = field(default_factory=list)
    _pending: list[list[Any]] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)
    _incomplete: bool = False

    @property
    def run_id(self) -> str:
        """MLflow's; empty while a nested run is not there yet."""
        return self.delivery.run_id

    @property
    def experiment_id(self) -> str:
        """Of its experiment."""
        return self.delivery.experiment_id

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters; those that `mlflow run` has logged already stay as they were typed.

        Raises:
            ValueError: If one stands there with another value.
        """
        for name, value in values.items():
            if name in self._params and not _same(self._params[name], value):
                raise ValueError(f"parameter {name} of the run is {self._params[name]!r}, not {value!r}")
        new = {k: str(v)[:PARAM_LENGTH] for k, v in values.items() if k not in self._params}
        self._params |= new
        if new:
            self._write({"op": "params", "values": new})

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._tags |= values
        self._write({"op": "tags", "values": dict(values)})

    def set_description(self, text: str) -> None:
        """Sets the run's description, Markdown."""
        self.set_tags({MLFLOW_RUN_NOTE: text})

    def log_metrics(
        self, values: Mapping[str, float], step: int = 0, model_id: str | None = None, data: LoggedData | None = None
    ) -> None:
        """Notes metrics of a step, and writes what has gathered every few seconds; leaves out what is not finite.

        Args:
            values: By name, such as `dev/spearman`.
            step: The epoch.
            model_id: A logged model that they belong to as well: its id, or what `model` returned.
            data: The data that they were measured on.
        """
        now = int(time.time() * 1000)
        where = (data.name, data.digest) if data else (None, None)
        for name, value in values.items():
            if np.isfinite(value):  # MLflow would store 1.8e308
                self._metrics[name] = float(value)
                self._pending.append([name, float(value), now, step, model_id, *where])
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def as_run(self) -> Run:
        """The run so far, as MLflow would give it, also where the tracking server is away."""
        run_id = self.run_id or self.record.folder.name
        info = RunInfo(run_id, self.experiment_id, "", "FINISHED", self._began, None, "active")
        pairs = (
            [Metric(name, value, self._began, 0) for name, value in self._metrics.items()],
            [Param(name, value) for name, value in self._params.items()],
            [RunTag(name, value) for name, value in self._tags.items()],
        )
        return Run(info, RunData(*pairs))

    def flush(self) -> None:
        """Writes the metrics that are still here."""
        while self._pending:
            rows, self._pending = self._pending[:METRICS_A_CALL], self._pending[METRICS_A_CALL:]
            self._write({"op": "metrics", "rows": rows}, durable=not self._pending)
        self._flushed = time.monotonic()

    def end_run(self, status: str) -> None:
        """Ends the run."""
        self.flush()
        self._write({"op": "end", "status": status, "time": int(time.time() * 1000)}, durable=True)

    def _write(self, operation: Operation, *, durable: bool = False) -> None:
        if not self._incomplete:
            try:
                self.record.append(operation, durable=durable)
            except OSError as error:
                # The server may still take it. The record has no hole: nothing follows what is missing.
                self._incomplete = True
                self.sender.tell(
                    f"WARNING: the record in {self.record.folder} can't be written on ({error.strerror}): what follows "
                    "is lost if the tracking server goes away as well"
                )
        self.sender.put(self.shipment, operation)

    def log_input(self, split: str, name: str, digest: str, source: str) -> LoggedData:
        """Logs a split as an input of the run and returns it."""
        columns = [(DataType.string, "sentence1"), (DataType.string, "sentence2"), (DataType.double, "score")]
        dataset = MetaDataset(  # type: ignore[abstract] # MLflow's annotations say so, its code does not
            source=_source(source),
            name=f"{name} {split}",
            digest=digest,
            schema=Schema([ColSpec(kind, column) for kind, column in columns]),
        )
        self._write({"op": "input", "context": split, "dataset": dict(dataset._to_mlflow_entity())})
        return dataset

    def log_table(self, name: str, frame: "pd.DataFrame") -> None:
        """Logs a table as `NAME.json`, which the UI shows and compares between runs."""
        # As `mlflow.log_table` does, which would add the rows to those of a table that is there.
        with self._files() as folder:
            path = folder / f"{name}.json"
            frame.to_json(path, orient="split", index=False, date_format="iso")
            digest = {f"{FILE_SHA256}{path.name}": file_sha256(path)}
        self._tables.append({"path": path.name, "type": "table"})
        self.set_tags({MLFLOW_LOGGED_ARTIFACTS: json.dumps(self._tables)} | digest)

    def log_parquet(self, name: str, frame: "pd.DataFrame") -> None:
        """Logs a table as `NAME.parquet`, for programs: a tenth of the size and the time of `table`."""
        with self._files() as folder:
            path = folder / f"{name}.parquet"
            frame.to_parquet(path)
            digest = {f"{FILE_SHA256}{path.name}": file_sha256(path)}
        self.set_tags(digest)

    def log_artifact(self, path: Path) -> None:
        """Logs a file under its own name."""
        with self._files() as folder:
            shutil.copyfile(path, folder / path.name)

    def log_artifacts(self, source: Path, path: str | None = None) -> None:
        """Logs a folder's files, under `path` if that is given."""
        with self._files() as folder:
            shutil.copytree(source, folder / (path or ""), dirs_exist_ok=True)

    @contextmanager
    def _files(self) -> Iterator[Path]:
        folder = self.record.new_folder()
        yield folder
        self._write({"op": "files", **self.record.seal(folder)})

    def log_compressor(self, weights: bytes, example: FloatArray, dim: int, params: Mapping[str, Any]) -> str:
        """Logs a compressor as a model that needs neither this package nor PyTorch nor pickle.

        Args:
            weights: A safetensors file, layers named as by `Compressor.state_dict`.
            example: (N, d) float32 vectors of the encoder, shown to users as input.
            dim: Numbers of a compressed vector.
            params: The recipe.

        Returns:
            What `metrics` calls it.
        """
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, example.shape[1]))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, dim))]),
        )

        def save(model: Model, folder: Path) -> None:
            with tempfile.TemporaryDirectory() as place:
                path = Path(place, CHECKPOINT_FILE)
                path.write_bytes(weights)
                mlflow.pyfunc.save_model(
                    str(folder),
                    mlflow_model=model,
                    python_model=str(MODEL_CODE),
                    artifacts={"compressor": str(path)},
                    signature=signature,
                    input_example=example,
                    pip_requirements=[f"{package}=={version(package)}" for package in MODEL_PACKAGES],
                )

        digest = {f"{FILE_SHA256}{CHECKPOINT_FILE}": bytes_sha256(weights)}
        return self._model(MODEL_NAME, save, params, Model(), digest)

    def _model(
        self,
        name: str,
        save: Callable[[Model, Path], None],
        params: Mapping[str, Any],
        description: Model,
        tags: Mapping[str, str],
    ) -> str:
        folder = self.record.new_folder()
        save(description, folder)
        # Saving a model loads it, which may leave these.
        for compiled in list(folder.rglob("__pycache__")):
            shutil.rmtree(compiled, ignore_errors=True)
        self._write(
            {
                "op": "model",
                "name": name,
                "params": {key: str(value) for key, value in params.items()},
                "tags": resolve_tags(dict(tags)),
                **self.record.seal(folder),
            }
        )
        return name

    def log_sentence_transformer(
        self,
        model: "SentenceTransformer",
        checkpoint: Path,
        card: str,
        examples: Sequence[str],
        trained_run: str,
        params: Mapping[str, Any],
    ) -> str:
        """Logs a text model with the sentence-transformers flavour, beside it the compressor's own file and the card.

        Args:
            model: What takes text and gives compressed vectors.
            checkpoint: The compressor's file.
            card: Markdown.
            examples: Texts that are shown to users as input.
            trained_run: The run that trained the compressor.
            params: The recipe.

        Returns:
            What `model_id` knows it by.
        """
        dimension = model.get_embedding_dimension() or -1
        signature = ModelSignature(
            inputs=Schema([ColSpec(AnyType())]),  # a server would make texts of whatever it is sent
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, dimension))]),
        )

        def save(described: Model, folder: Path) -> None:
            with tempfile.TemporaryDirectory() as place:
                files = {name: Path(place, name) for name in (CHECKPOINT_FILE, CARD_FILE)}
                shutil.copyfile(checkpoint, files[CHECKPOINT_FILE])
                files[CARD_FILE].write_text(card, encoding="utf-8")
                _TextFlavor.save_model(
                    str(folder),
                    described,
                    model=model,
                    signature=signature,
                    input_example=list(examples),
                    pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in TEXT_MODEL_PACKAGES],
                    extra_files=[str(path) for path in files.values()],
                    create_model_card=False,  # sentence-transformers' own; ours lies beside it
                )

        return self._model(TEXT_MODEL_NAME, save, params, Model(metadata={TRAINED_RUN: trained_run}), {})

    def model_id(self, name: str) -> str:
        """The id of a model that the tracking store has: `settle` first."""
        return self.delivery.models[name]


class _TextFlavor:
    """MLflow's flavour for sentence-transformers models, but that `text_model_pyfunc` is what is loaded and served."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **parts: Any) -> None:
        """Writes a model's folder."""
        import mlflow.sentence_transformers  # noqa: PLC0415 - takes a second

        code = [str(TEXT_MODEL_CODE)]
        mlflow.sentence_transformers.save_model(path=path, mlflow_model=mlflow_model, code_paths=code, **parts)
        mlflow_model.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.MAIN] = TEXT_MODEL_CODE.stem
        mlflow_model.save(str(Path(path, "MLmodel")))


def _source(source: str) -> DatasetSource:
    return HTTPDatasetSource(source) if source.startswith("http") else LocalArtifactDatasetSource(source)


def _same(logged: str, value: Any) -> bool:
    """Whether a logged text stands for a value: 5 for 5.0, 1e-3 for 0.001."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(logged) == float(value)
        except ValueError:
            return False
    return logged == str(value)
