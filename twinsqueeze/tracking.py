"""Writes runs to MLflow: what a run is called, what it records, and how it ends."""

import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import mlflow
import numpy as np
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined] # made on import
from mlflow.entities import Metric, Param, RunTag
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from twinsqueeze import interrupts, store
from twinsqueeze.digests import bytes_sha256, difference, file_sha256, first_difference, folder_sha256
from twinsqueeze.errors import InputError, one_line
from twinsqueeze.living import Process
from twinsqueeze.paths import is_folder, local_path
from twinsqueeze.texts import markdown, without_password

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from sentence_transformers import SentenceTransformer

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]

LoggedData = MetaDataset

KIND = "twinsqueeze.kind"
DATASET = "twinsqueeze.dataset"
DATASET_DIGEST = "twinsqueeze.dataset_digest"
NOTICE = "twinsqueeze.notice"
TEST_DIGEST = "twinsqueeze.test_digest"
RECIPE_DIGEST = "twinsqueeze.recipe_digest"
TRAINED_RUN = "twinsqueeze.trained_run"
GRID_DIGEST = "twinsqueeze.grid_digest"
# Who writes the run, so that others see whether it still lives.
PROCESS = "twinsqueeze.process"
# From which epoch an interrupted training was gone on with, and the runs that had been at it.
TAKEN_UP = "twinsqueeze.taken_up"
CONTINUES = "twinsqueeze.continues"
# Of a registered version and its model: the SHA-256 of all files, as JSON.
FILES_SHA256 = "twinsqueeze.files_sha256"
# Before the name of one file, of a run or its model.
FILE_SHA256 = "twinsqueeze.sha256."
# What MLflow puts into the folder of a version that is read, and Python into that of a model with code of its own.
LEFT_BY_READING = ("registered_model_meta", "*.pyc")

SERVER_SECONDS = 25.0
FLUSH_SECONDS = 5.0
METRICS_A_CALL = 1000
PARAM_LENGTH = 6000
# What MLflow calls a run that nobody named, such as zealous-crow-123.
MADE_UP_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
MODEL_NAME = "compressor"
MODEL_PACKAGES = ("mlflow", "numpy", "safetensors")
MODEL_CODE = Path(__file__).with_name("compressor_model.py")
TEXT_MODEL_NAME = "text_model"
TEXT_MODEL_CODE = Path(__file__).with_name("text_model_pyfunc.py")
TEXT_MODEL_PACKAGES = ("mlflow", "sentence-transformers", "transformers", "torch")
# The compressor's file, in whatever folder a model lies; a folder with other names must hold one .safetensors alone.
CHECKPOINT_FILE = "compressor.safetensors"
CARD_FILE = "README.md"
# Of a model: whoever names / or a home by mistake should not wait for all of it to be looked through.
MOST_FILES = 1000

# Ours is the progress to show; MLflow's warnings stay.
logging.getLogger("mlflow").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow would print a run's address at its end, with the password that may stand in it; `where_to_look` does without.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def given_run() -> str | None:
    """The id of the run that `mlflow run` made for this process, if it did."""
    return os.environ.get("MLFLOW_RUN_ID")


def check_server(what: str = "tracking server", setting: str = "MLFLOW_TRACKING_URI") -> None:
    """Asks a remote server for an answer, and opens a store that is a file, so that nothing long begins in vain.

    Args:
        what: The tracking server, or the model registry.
        setting: What says where it is.

    Raises:
        InputError: If a server does not give one within 25 seconds, or the file can't be opened.
    """
    uri = mlflow.get_registry_uri() if setting == "MLFLOW_REGISTRY_URI" else mlflow.get_tracking_uri()
    if urlsplit(uri).scheme not in {"http", "https"}:
        store.open_store(uri)
        return
    failure: list[str] = ["no answer"]

    def ask() -> None:
        try:
            with _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="10"):
                mlflow.MlflowClient(uri).search_experiments(max_results=1)
            failure.clear()
        except Exception as error:  # any failure means that there is no server to record to
            failure[:] = [_line(error)]

    thread = threading.Thread(target=ask, daemon=True)  # a server that trickles would hold us for ever
    thread.start()
    thread.join(SERVER_SECONDS)
    if failure:
        raise InputError(
            f"the {what} {without_password(uri)} does not answer ({failure[0]}): start it, or point {setting} elsewhere"
        )


def fail_given_run(reason: str, status: str = "FAILED") -> None:
    """Ends the run that `mlflow run` made, for something that went wrong before it was taken up."""
    run_id = given_run()
    if not run_id:
        return
    with (
        interrupts.shielded(then_stop=False),
        _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="10"),
    ):
        try:
            client = mlflow.MlflowClient()
            client.set_tag(run_id, MLFLOW_RUN_NOTE, markdown(without_password(reason)))
            client.set_terminated(run_id, status)
        except Exception as error:  # the reason itself matters more, and is printed by the caller
            print(f"twinsqueeze: run {run_id} can't be ended: {_line(error)}", file=sys.stderr)


@dataclass
class RunWriter:
    """Writes one run; made by `open_run`."""

    run_id: str
    experiment_id: str
    client: mlflow.MlflowClient
    _pending: list[Metric] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters; those that `mlflow run` has logged already stay as they were typed.

        Raises:
            ValueError: If one stands there with another value.
        """
        there = self.client.get_run(self.run_id).data.params
        for name, value in values.items():
            if name in there and not _same(there[name], value):
                raise ValueError(f"parameter {name} of the run is {there[name]!r}, not {value!r}")
        new = [Param(k, str(v)[:PARAM_LENGTH]) for k, v in values.items() if k not in there]
        self.client.log_batch(self.run_id, params=new)

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in values.items()])

    def describe(self, text: str) -> None:
        """Sets the run's description, Markdown."""
        self.tags({MLFLOW_RUN_NOTE: text})

    def metrics(
        self, values: Mapping[str, float], step: int = 0, model_id: str | None = None, data: LoggedData | None = None
    ) -> None:
        """Notes metrics of a step, and sends what has gathered every few seconds; leaves out what is not finite.

        Args:
            values: By name, such as `dev/spearman`.
            step: The epoch.
            model_id: A logged model that they belong to as well.
            data: The data that they were measured on.
        """
        now = int(time.time() * 1000)
        for name, value in values.items():
            if np.isfinite(value):  # MLflow would store 1.8e308
                where = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
                self._pending.append(
                    Metric(name, float(value), now, step, model_id=model_id, run_id=self.run_id, **where)
                )
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends the metrics that are still here."""
        while self._pending:
            batch = self._pending[:METRICS_A_CALL]
            self.client.log_batch(self.run_id, metrics=batch)
            del self._pending[: len(batch)]
        self._flushed = time.monotonic()

    def data(self, split: str, name: str, digest: str, source: str) -> LoggedData:
        """Logs a split as an input of the run and returns it."""
        columns = [(DataType.string, "sentence1"), (DataType.string, "sentence2"), (DataType.double, "score")]
        dataset = MetaDataset(  # type: ignore[abstract] # MLflow's annotations say so, its code does not
            source=_source(source),
            name=f"{name} {split}",
            digest=digest,
            schema=Schema([ColSpec(kind, column) for kind, column in columns]),
        )
        mlflow.log_input(dataset, context=split)
        return dataset

    def figures(self, figures: Mapping[str, "Figure"]) -> None:
        """Logs figures as `figures/NAME.png`."""
        with tempfile.TemporaryDirectory() as folder:
            for name, figure in figures.items():
                figure.savefig(Path(folder, f"{name}.png"))
            self.client.log_artifacts(self.run_id, folder, "figures")

    def table(self, name: str, frame: "pd.DataFrame") -> None:
        """Logs a table as `NAME.json`, which the UI shows and compares between runs."""
        mlflow.log_table(frame, f"{name}.json")
        written = frame.to_json(None, orient="split", index=False, date_format="iso")  # as MLflow has done
        self.tags({f"{FILE_SHA256}{name}.json": bytes_sha256(written.encode())})

    def frame(self, name: str, frame: "pd.DataFrame") -> None:
        """Logs a table as `NAME.parquet`, for programs: a tenth of the size and the time of `table`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.parquet")
            frame.to_parquet(path)
            self.client.log_artifact(self.run_id, str(path))
            self.tags({f"{FILE_SHA256}{path.name}": file_sha256(path)})

    def file(self, path: Path) -> None:
        """Logs a file under its own name."""
        self.client.log_artifact(self.run_id, str(path))

    def files(self, folder: Path, path: str | None = None) -> None:
        """Logs a folder's files, under `path` if that is given."""
        self.client.log_artifacts(self.run_id, str(folder), path)

    def model(self, weights: bytes, example: FloatArray, dim: int, params: Mapping[str, Any]) -> str:
        """Logs a compressor as a model that needs neither this package nor PyTorch nor pickle.

        Args:
            weights: A safetensors file, layers named as by `Compressor.state_dict`.
            example: (N, d) float32 vectors of the encoder, shown to users as input.
            dim: Numbers of a compressed vector.
            params: The recipe.

        Returns:
            The logged model's id.
        """
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, example.shape[1]))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, dim))]),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, CHECKPOINT_FILE)
            path.write_bytes(weights)
            info = mlflow.pyfunc.log_model(
                name=MODEL_NAME,
                python_model=str(MODEL_CODE),
                artifacts={"compressor": str(path)},
                signature=signature,
                input_example=example,
                pip_requirements=[f"{package}=={version(package)}" for package in MODEL_PACKAGES],
                params={name: str(value) for name, value in params.items()},
                tags={f"{FILE_SHA256}{CHECKPOINT_FILE}": bytes_sha256(weights)},
            )
        return str(info.model_id)

    def text_model(
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
            The logged model's id.
        """
        dimension = model.get_embedding_dimension() or -1
        signature = ModelSignature(
            inputs=Schema([ColSpec(AnyType())]),  # a server would make texts of whatever it is sent
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, dimension))]),
        )
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder, name) for name in (CHECKPOINT_FILE, CARD_FILE)}
            shutil.copyfile(checkpoint, files[CHECKPOINT_FILE])
            files[CARD_FILE].write_text(card, encoding="utf-8")
            info = Model.log(
                None,
                _TextFlavor,
                model=model,
                name=TEXT_MODEL_NAME,
                signature=signature,
                input_example=list(examples),
                pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in TEXT_MODEL_PACKAGES],
                metadata={TRAINED_RUN: trained_run},
                extra_files=[str(path) for path in files.values()],
                params={name: str(value) for name, value in params.items()},
                create_model_card=False,  # sentence-transformers' own; ours lies beside it
            )
        return str(info.model_id)


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


@contextmanager
def open_run(name: str, kind: str, *, nested: bool = False) -> Iterator[RunWriter]:
    """A run of MLflow's, made here or by `mlflow run`, that ends as FINISHED, FAILED with its reason, or KILLED.

    Args:
        name: What it is called, unless the user has named it.
        kind: train, evaluation, ablation, comparison, registration or export.
        nested: Whether it is a child of the run that is open.

    Raises:
        InputError: If the tracking store can't be written to.
    """
    run: RunWriter | None = None
    try:
        with interrupts.shielded(then_stop=True):
            run = _start(name, kind, nested)
        yield run
        run.flush()
        mlflow.end_run("FINISHED")
    except interrupts.Stopped as stop:
        _end(run, "KILLED", f"Killed: {stop}.")
        raise
    except BaseException as error:
        reason = _line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {_line(error)}"
        _end(run, "FAILED", f"Failed: {reason}")
        raise


def _start(name: str, kind: str, nested: bool) -> RunWriter:
    given = given_run()
    # With the run, so that it has them however soon this process is killed.
    tags = {KIND: kind, PROCESS: Process.current().model_dump_json()}
    try:
        active = mlflow.start_run(run_name=None if given else name, nested=nested, tags=tags)
    except Exception as error:
        raise InputError(
            f"the run can't be recorded in {without_password(mlflow.get_tracking_uri())}: {_line(error)}"
        ) from error
    writer = RunWriter(active.info.run_id, active.info.experiment_id, mlflow.MlflowClient())
    if given and MADE_UP_NAME.fullmatch(active.info.run_name or ""):
        writer.client.update_run(writer.run_id, name=name)
    return writer


def _end(run: RunWriter | None, status: str, reason: str) -> None:
    if run is None:
        return
    with interrupts.shielded(then_stop=False):
        try:
            run.flush()
            run.describe(markdown(reason))
        finally:
            mlflow.end_run(status)


@dataclass(frozen=True)
class FoundModel:
    """A model's files, local.

    Attributes:
        file: The compressor's weights, safetensors.
        model_id: Of the logged model, None for a plain folder.
        run_id: Of the run that trained the compressor, where that is known.
        text_model: The folder of the sentence-transformers model of encoder and compressor, where there is one.
        card: The model card, where there is one.
    """

    file: Path
    model_id: str | None
    run_id: str | None
    text_model: Path | None = None
    card: Path | None = None


def find_model(model: str) -> FoundModel:
    """The compressor of a run, a model or a folder, and the text model that it is part of.

    Args:
        model: A run's id, a model's URI (models:/..., runs:/...) or a folder, such as `export` writes.

    Raises:
        InputError: If there is no such thing, no compressor in it, or its files are not those that were recorded.
    """
    folder = local_path(model)
    origin = None
    if not is_folder(folder):
        origin = _origin(_model_uri(model), model)
        folder = _download(origin.uri, model)
    files = _files(folder, model)
    if origin and (all_files := origin.tags.get(FILES_SHA256)):
        _refuse(first_difference(json.loads(all_files), folder_sha256(folder, LEFT_BY_READING)), model)
    weights = [path for path in files if path.name == CHECKPOINT_FILE]
    weights = weights or [path for path in files if path.suffix == ".safetensors"]
    if len(weights) != 1:
        raise InputError(f"model {model!r} has {len(weights)} .safetensors files, where a compressor has one")
    if origin and (recorded := origin.tags.get(f"{FILE_SHA256}{CHECKPOINT_FILE}")):
        _refuse(difference(CHECKPOINT_FILE, recorded, file_sha256(weights[0])), model)
    text_models = sorted(path.parent for path in files if path.name == "modules.json")
    card = weights[0].with_name(CARD_FILE)
    beside = text_models[0] if text_models else None, card if card.is_file() else None
    if not (folder / "MLmodel").is_file():
        return FoundModel(weights[0], None, None, *beside)
    try:
        logged = Model.load(str(folder))
    except Exception as error:  # YAML that is no model's gives errors of many kinds
        raise InputError(f"MLmodel of model {model!r} can't be read: {_line(error)}") from error
    trained_run = (logged.metadata or {}).get(TRAINED_RUN) or (origin and origin.run_id) or logged.run_id
    return FoundModel(weights[0], (origin and origin.model_id) or logged.model_id, trained_run, *beside)


def _refuse(found: str | None, model: str) -> None:
    if found:
        raise InputError(
            f"model {model!r} is not what was recorded: {found}. Put its files back, or train or register it again"
        )


def _files(folder: Path, model: str) -> list[Path]:
    """A model folder's files, sorted.

    The folder may be somebody else's: links out of it are refused, since `export` would copy what they lead to.
    """
    real = folder.resolve()
    # A snapshot in the Hub's cache links to the files of all snapshots.
    within = [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in within):
                name = path.relative_to(folder).as_posix()
                raise InputError(f"{name} of model {model!r} leads out of it: put the file itself there")
        found += [Path(parent, name) for name in files]
        if len(found) > MOST_FILES:
            raise InputError(f"model {model!r} has more than {MOST_FILES:,} files: name the folder of one model")
    return sorted(found)


def _model_uri(model: str) -> str:
    if re.match(r"(models|runs):/", model):
        check_server()
        return model
    if not re.fullmatch(r"[0-9a-f]{32}", model):
        raise InputError(
            f"model {model!r} is neither a run's id (32 hex digits) nor a model's URI (models:/..., runs:/...) nor a "
            "folder that is there"
        )
    check_server()
    try:
        run = mlflow.get_run(model)
    except mlflow.MlflowException as error:
        store = without_password(mlflow.get_tracking_uri())
        raise InputError(f"model {model!r} is no run in {store}: {_line(error)}") from error
    if not run.outputs or not run.outputs.model_outputs:
        raise InputError(f"run {model} has no model, its status is {run.info.status}: name a run that was trained")
    return f"models:/{run.outputs.model_outputs[-1].model_id}"


@dataclass(frozen=True)
class _Origin:
    """What the store says of a model.

    Attributes:
        uri: Of one version, or one logged model, even if an alias or a run was given.
        tags: Of that version or model.
        model_id: Of a logged model.
        run_id: Whose model that is.
    """

    uri: str
    tags: Mapping[str, str]
    model_id: str | None = None
    run_id: str | None = None


def _origin(uri: str, model: str) -> _Origin:
    client = mlflow.MlflowClient()
    try:
        if uri.startswith("runs:/"):
            run_id, _, name = uri.removeprefix("runs:/").strip("/").partition("/")
            outputs = client.get_run(run_id).outputs
            logged = [client.get_logged_model(output.model_id) for output in (outputs.model_outputs if outputs else [])]
            named = [known for known in logged if known.name == name]
            if not named:
                return _Origin(uri, {}, run_id=run_id)
            found = named[-1]
        else:
            name, *number = get_model_name_and_version(client, uri)
            if number:
                return _Origin(f"models:/{name}/{number[0]}", client.get_model_version(name, number[0]).tags)
            found = client.get_logged_model(name)
        return _Origin(f"models:/{found.model_id}", found.tags, found.model_id, found.source_run_id)
    except Exception as error:  # stores answer an unknown model with exceptions of many kinds
        raise InputError(f"model {model!r} can't be had: {_line(error)}") from error


def model_sha256(model_id: str) -> str:
    """The digests of a logged model's files, as the store has them, for `FILES_SHA256`.

    Raises:
        InputError: If it can't be read.
    """
    uri = f"models:/{model_id}"
    return json.dumps(folder_sha256(_download(uri, uri), LEFT_BY_READING))


def _download(uri: str, model: str) -> Path:
    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except Exception as error:  # stores answer an unknown model with exceptions of many kinds
        raise InputError(f"model {model!r} can't be had: {_line(error)}") from error


def address(experiment_id: str, run_id: str | None = None) -> str:
    """Where a run, or all of an experiment, is looked at: on the tracking server or on a UI started here."""
    uri = mlflow.get_tracking_uri()
    base = without_password(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{base}/#/experiments/{experiment_id}/runs" + (f"/{run_id}" if run_id else "")


def next_run(run: RunWriter, entry_point: str, **parameters: str) -> str:
    """The command that runs an entry point in a run's experiment."""
    experiment = [] if run.experiment_id == "0" else [f"--experiment-id {run.experiment_id}"]
    given = [f"-P {name}={value}" for name, value in parameters.items()]
    return " ".join(["mlflow run . --env-manager local", *experiment, f"-e {entry_point}", *given])


def where_to_look(run: RunWriter) -> list[tuple[str, str]]:
    """The steps from a run to MLflow's UI: what to do, and the command or the address."""
    uri = mlflow.get_tracking_uri()
    shown = uri if uri == without_password(uri) else '"$MLFLOW_TRACKING_URI"'
    start = [] if uri.startswith("http") else [("start MLflow's UI", f"mlflow ui --backend-store-uri {shown}")]
    return [
        *start,
        ("look at the run", address(run.experiment_id, run.run_id)),
        ("compare it with others", address(run.experiment_id)),
    ]


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


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _line(error: BaseException) -> str:
    return without_password(one_line(error, limit=500))
