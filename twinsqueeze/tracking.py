"""Writes runs: what a run is called, what it records, and how it ends.

A run's record goes to disk first. A thread sends it from there, so that a server that is away, hangs or fails stops no
training; what it has not taken when the command ends stays on disk for the command `sync`.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.models import Model, ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from twinsqueeze import interrupts, store
from twinsqueeze.delivery import METRICS_A_CALL, MlflowDelivery
from twinsqueeze.digests import bytes_sha256, file_sha256
from twinsqueeze.errors import InputError, one_line
from twinsqueeze.journal import Operation, Record, records_folder
from twinsqueeze.living import Process
from twinsqueeze.patience import SERVER_SECONDS, STOP_SECONDS, impatient, patience
from twinsqueeze.sender import Sender, Shipment
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
# Before the name of one file, of a run or its model: its SHA-256.
FILE_SHA256 = "twinsqueeze.sha256."

FLUSH_SECONDS = 5.0
PARAM_LENGTH = 6000
MODEL_NAME = "compressor"
MODEL_PACKAGES = ("mlflow", "numpy", "safetensors")
MODEL_CODE = Path(__file__).with_name("compressor_model.py")
TEXT_MODEL_NAME = "text_model"
TEXT_MODEL_CODE = Path(__file__).with_name("text_model_pyfunc.py")
TEXT_MODEL_PACKAGES = ("mlflow", "sentence-transformers", "transformers", "torch")
# The compressor's file, in whatever folder a model lies; a folder with other names must hold one .safetensors alone.
CHECKPOINT_FILE = "compressor.safetensors"
CARD_FILE = "README.md"

# Ours is the progress to show; MLflow's warnings stay.
logging.getLogger("mlflow").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow would print a run's address at its end, with the password that may stand in it; `where_to_look` does without.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow would ask seven times more for what a failing server does not give, and wait for two minutes each time.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


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
        store.open_store(uri, what.replace("server", "store"), setting)
        return
    failure: list[str] = ["no answer"]

    def ask() -> None:
        for _ in range(3):  # an answer may have been lost on the way
            try:
                with impatient():
                    mlflow.MlflowClient(uri).search_experiments(max_results=1)
                failure.clear()
                return
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
    with interrupts.shielded(then_stop=False), impatient():
        try:
            client = mlflow.MlflowClient()
            client.set_tag(run_id, MLFLOW_RUN_NOTE, markdown(without_password(reason)))
            client.set_terminated(run_id, status)
        except Exception as error:  # the reason itself matters more, and is printed by the caller
            print(f"twinsqueeze: run {run_id} can't be ended: {_line(error)}", file=sys.stderr)


class UnsentError(InputError):
    """The tracking server has not taken all of the records, which are kept."""


@dataclass(eq=False)
class RunWriter:
    """Writes one run; made by `open_run`."""

    record: Record
    delivery: MlflowDelivery
    sender: Sender
    shipment: Shipment
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

    def params(self, values: Mapping[str, Any]) -> None:
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

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._tags |= values
        self._write({"op": "tags", "values": dict(values)})

    def describe(self, text: str) -> None:
        """Sets the run's description, Markdown."""
        self.tags({MLFLOW_RUN_NOTE: text})

    def metrics(
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

    def end(self, status: str) -> None:
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

    def data(self, split: str, name: str, digest: str, source: str) -> LoggedData:
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

    def figures(self, figures: Mapping[str, "Figure"]) -> None:
        """Logs figures as `figures/NAME.png`."""
        with self._files() as folder:
            (folder / "figures").mkdir()
            for name, figure in figures.items():
                figure.savefig(folder / "figures" / f"{name}.png")

    def table(self, name: str, frame: "pd.DataFrame") -> None:
        """Logs a table as `NAME.json`, which the UI shows and compares between runs."""
        # As `mlflow.log_table` does, which would add the rows to those of a table that is there.
        with self._files() as folder:
            path = folder / f"{name}.json"
            frame.to_json(path, orient="split", index=False, date_format="iso")
            digest = {f"{FILE_SHA256}{path.name}": file_sha256(path)}
        self._tables.append({"path": path.name, "type": "table"})
        self.tags({MLFLOW_LOGGED_ARTIFACTS: json.dumps(self._tables)} | digest)

    def frame(self, name: str, frame: "pd.DataFrame") -> None:
        """Logs a table as `NAME.parquet`, for programs: a tenth of the size and the time of `table`."""
        with self._files() as folder:
            path = folder / f"{name}.parquet"
            frame.to_parquet(path)
            digest = {f"{FILE_SHA256}{path.name}": file_sha256(path)}
        self.tags(digest)

    def file(self, path: Path) -> None:
        """Logs a file under its own name."""
        with self._files() as folder:
            shutil.copyfile(path, folder / path.name)

    def files(self, source: Path, path: str | None = None) -> None:
        """Logs a folder's files, under `path` if that is given."""
        with self._files() as folder:
            shutil.copytree(source, folder / (path or ""), dirs_exist_ok=True)

    @contextmanager
    def _files(self) -> Iterator[Path]:
        folder = self.record.new_folder()
        yield folder
        self._write({"op": "files", **self.record.seal(folder)})

    def model(self, weights: bytes, example: FloatArray, dim: int, params: Mapping[str, Any]) -> str:
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

        Raises:
            InputError: If the tracking server does not take it.
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

        name = self._model(TEXT_MODEL_NAME, save, params, Model(metadata={TRAINED_RUN: trained_run}), {})
        settle()
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


# Those that have something to send, and the runs that are open, but for the nested ones.
_senders: list[Sender] = []
_parents: list[RunWriter] = []


@contextmanager
def open_run(name: str, kind: str, *, nested: bool = False) -> Iterator[RunWriter]:
    """A run of MLflow's, made here or by `mlflow run`, that ends as FINISHED, FAILED with its reason, or KILLED.

    What is written to it is there when the block ends, unless the tracking server has gone away by then: `settle` waits
    for it.

    Args:
        name: What it is called, unless the user has named it.
        kind: train, evaluation, ablation, comparison, registration or export.
        nested: Whether it is a child of the run that is open.

    Raises:
        InputError: If the tracking store, or the record, can't be written to.
    """
    run: RunWriter | None = None
    monitor: SystemMetricsMonitor | None = None
    try:
        with interrupts.shielded(then_stop=True):
            run = _start_nested(name, kind) if nested else _start(name, kind)
        if not nested:
            _parents.append(run)
            monitor = _monitor(run)
        yield run
        run.end("FINISHED")
    except interrupts.Stopped as stop:
        _end(run, "KILLED", f"Killed: {stop}.")
        raise
    except BaseException as error:
        reason = _line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {_line(error)}"
        _end(run, "FAILED", f"Failed: {reason}")
        raise
    finally:
        if run in _parents:
            _parents.remove(run)
        if monitor:
            monitor.finish()
    if not nested:
        _close(run.sender, 0)


def _start(name: str, kind: str) -> RunWriter:
    patience()  # a setting that is wrong is told before anything begins
    uri, given = store_uri(), given_run()
    record = Record.create(name, uri)
    known = _known_tags(kind)
    tags = known if given else resolve_tags({MLFLOW_RUN_NAME: name, **known})
    sender = Sender(called(uri))
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


def _start_nested(name: str, kind: str) -> RunWriter:
    parent = _parents[-1]
    tags = resolve_tags({MLFLOW_RUN_NAME: name, **_known_tags(kind), MLFLOW_PARENT_RUN_ID: parent.run_id})
    record = Record.create(name, store_uri())
    return _begin(record, parent.sender, {"given": None, "experiment": parent.experiment_id, "tags": tags})


def _known_tags(kind: str) -> dict[str, str]:
    """What a run has from its beginning, so that it has it however soon this process is killed."""
    return {KIND: kind, PROCESS: Process.current().model_dump_json()}


def _begin(record: Record, sender: Sender, what: Mapping[str, Any]) -> RunWriter:
    delivered = delivery(record)
    run = RunWriter(record, delivered, sender, sender.add(record, delivered))
    run._write({"op": "begin", "time": run._began, **what}, durable=True)
    return run


def _monitor(run: RunWriter) -> SystemMetricsMonitor | None:
    """What MLflow notes of the machine where the user has asked it to, which is not in the record."""
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return None
    monitor = SystemMetricsMonitor(run.run_id)
    monitor.start()
    return monitor


def _end(run: RunWriter | None, status: str, reason: str) -> None:
    if run is None:
        return
    with interrupts.shielded(then_stop=False):
        run.describe(markdown(reason))
        run.end(status)
        if run in _parents:
            _parents.remove(run)
            if not _close(run.sender, STOP_SECONDS):
                run.sender.tell(_kept(run.sender))
                _give_up(run.sender)


def _close(sender: Sender, seconds: float, *, aloud: bool = False) -> bool:
    """Waits for a sender, and lets it go once it has sent everything; whether it has."""
    try:
        done = sender.wait(seconds, aloud=aloud)
    except interrupts.Stopped:
        sender.tell(_kept(sender))
        _give_up(sender)
        raise
    if any(run.sender is sender for run in _parents):
        return done and not any(shipment.refused for shipment in sender.unsent())
    if not done or sender.unsent():
        return False
    _give_up(sender)
    return True


def _give_up(sender: Sender) -> None:
    sender.stop()
    _senders.remove(sender)


def settle() -> None:
    """Waits until the tracking store has everything that was recorded, or for as long as `patience` says.

    Raises:
        UnsentError: If it does not come to that; the message says where the records are.
    """
    for sender in _senders.copy():
        if not _close(sender, patience(), aloud=True) and sender.unsent():
            message = _kept(sender)
            if not any(run.sender is sender for run in _parents):
                _give_up(sender)
            raise UnsentError(message)


def _kept(sender: Sender) -> str:
    unsent = sender.unsent()
    why = next((s.refused for s in unsent if s.refused), sender.failure) or "no answer"
    if len(unsent) == 1:
        what = f"the record of {unsent[0].record.about['name']} is kept in {unsent[0].record.folder}"
    else:
        what = f"the records of {len(unsent)} runs are kept in {records_folder()}"
    return f"{sender.where} has not taken everything ({why}): {what}, and `python -m twinsqueeze sync` sends it later"


def delivery(record: Record) -> MlflowDelivery:
    """Who sends a record to the tracking store."""
    return MlflowDelivery(mlflow.MlflowClient(), record)


def store_uri() -> str:
    """The tracking store's address as records name it: without password, the same from whatever folder it is named."""
    uri = mlflow.get_tracking_uri()
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return without_password(uri)


def called(uri: str) -> str:
    """A tracking store in words."""
    return f"the tracking {'server' if uri.startswith('http') else 'store'} {uri}"


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


def _line(error: BaseException) -> str:
    return without_password(one_line(error, limit=500))
