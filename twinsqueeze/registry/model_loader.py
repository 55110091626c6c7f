"""Resolves a run id, model URI or folder to local model files and verifies their digests."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.models import Model
from mlflow.store.artifact.utils.models import get_model_name_and_version

from twinsqueeze.data.encoder import SentenceEncoder, resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.model.sentence_transformer import build_sentence_transformer
from twinsqueeze.tracking.run import check_tracking_server
from twinsqueeze.tracking.run_logger import CARD_FILE
from twinsqueeze.tracking.tags import FILE_SHA256, TRAINED_RUN
from twinsqueeze.utils.files import (
    CHECKPOINT_FILE,
    describe_change,
    describe_file_change,
    dir_sha256,
    expand_user,
    file_sha256,
    is_dir,
)
from twinsqueeze.utils.text import describe_error, redact_credentials

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Tag of a registered version and of its logged model: JSON that maps each file of the model to its SHA-256.
FILES_SHA256 = "twinsqueeze.files_sha256"
# Files that MLflow and Python add to a model's folder when they load it.
GENERATED_FILES = ("registered_model_meta", "*.pyc")
# A limit, so that passing "/" or a home directory by mistake fails soon.
MAX_FILES = 1000


@dataclass(frozen=True)
class ResolvedModel:
    """The local files of a model.

    Attributes:
        checkpoint: The compressor's safetensors file.
        model_id: Id of the logged model; None for a folder without an MLmodel file.
        run_id: Id of the run that trained the compressor, if known.
        sentence_transformer: Folder of the sentence-transformers model (encoder and compressor), if the model has one.
        model_card: Path of the model card, if the model has one.
    """

    checkpoint: Path
    model_id: str | None
    run_id: str | None
    sentence_transformer: Path | None = None
    model_card: Path | None = None


@dataclass(frozen=True)
class _StoreEntry:
    """A registered version or logged model in the store; its URI names neither an alias nor a run."""

    uri: str
    tags: Mapping[str, str] = field(default_factory=dict)
    model_id: str | None = None
    run_id: str | None = None


def resolve_model(model: str) -> ResolvedModel:
    """Finds a compressor's files, downloads them if necessary and verifies their recorded digests.

    Args:
        model: Run id, model URI (models:/... or runs:/...) or folder, such as `export` writes.

    Raises:
        InputError: If the model does not exist, holds no single compressor, or its files do not match their digests.
    """
    folder = expand_user(model)
    entry = None
    if not is_dir(folder):
        entry = _find_store_entry(_model_uri(model), model)
        folder = _download(entry.uri, model)
    files = _list_files(folder, model)
    if entry:
        _verify_digests(entry.tags, folder, files, model)
    checkpoint = _find_checkpoint(files, model)
    sentence_transformer = next((path.parent for path in files if path.name == "modules.json"), None)
    card = checkpoint.with_name(CARD_FILE)
    return ResolvedModel(
        checkpoint, *_read_ids(folder, entry, model), sentence_transformer, card if card in files else None
    )


def compute_model_digests(model_id: str) -> str:
    """Compute the SHA-256 of each file of a logged model, as the JSON value of the tag `FILES_SHA256`."""
    uri = f"models:/{model_id}"
    return json.dumps(dir_sha256(_download(uri, uri), GENERATED_FILES))


def _model_uri(model: str) -> str:
    """Return the URI for a run id or URI that a user gave."""
    is_uri = re.match(r"(models|runs):/", model)
    if not is_uri and not re.fullmatch(r"[0-9a-f]{32}", model):
        raise InputError(
            f"model {model!r} not found: pass a run id (32 hex digits), a model URI (models:/... or runs:/...) or an "
            "existing folder"
        )
    check_tracking_server()
    if is_uri:
        return model
    try:
        run = mlflow.get_run(model)
    except mlflow.MlflowException as error:
        store = redact_credentials(mlflow.get_tracking_uri())
        raise InputError(f"run {model!r} not found in {store}: {describe_error(error)}") from error
    if not run.outputs or not run.outputs.model_outputs:
        raise InputError(f"run {model} (status {run.info.status}) has no model: pass a run that finished training")
    return f"models:/{run.outputs.model_outputs[-1].model_id}"


def _find_store_entry(uri: str, model: str) -> _StoreEntry:
    client = mlflow.MlflowClient()
    try:
        if uri.startswith("runs:/"):
            run_id, _, name = uri.removeprefix("runs:/").strip("/").partition("/")
            outputs = client.get_run(run_id).outputs
            candidates = [client.get_logged_model(o.model_id) for o in (outputs.model_outputs if outputs else [])]
            matching = [candidate for candidate in candidates if candidate.name == name]
            if not matching:
                return _StoreEntry(uri, run_id=run_id)
            logged = matching[-1]
        else:
            name, *version = get_model_name_and_version(client, uri)
            if version:
                return _StoreEntry(f"models:/{name}/{version[0]}", client.get_model_version(name, version[0]).tags)
            logged = client.get_logged_model(name)
    except Exception as error:  # stores raise exceptions of many types for an unknown model
        raise InputError(f"model {model!r} can't be loaded: {describe_error(error)}") from error
    return _StoreEntry(f"models:/{logged.model_id}", logged.tags, logged.model_id, logged.source_run_id)


def load_sentence_transformer_for(
    model: str, resolved: ResolvedModel, *, encoder_name: str | None = None, device: str = "cpu"
) -> tuple["SentenceTransformer", str]:
    """Load the encoder and the compressor of a model as one sentence-transformers model.

    Args:
        model: The model as the user named it, for messages.
        resolved: Its files.
        encoder_name: The encoder to use, whatever the model was trained with; None for the model's own.
        device: auto, cpu or cuda.

    Returns:
        The model, and the fingerprint of the files of its encoder.

    Raises:
        InputError: If the model does not record its encoder, or the encoder's files have changed since the training.
    """
    if resolved.sentence_transformer and encoder_name is None:
        text_model = SentenceEncoder(model, resolved.sentence_transformer, device=device)
        return text_model.load_model(), text_model.fingerprint
    compressor, metadata = read_checkpoint(resolved.checkpoint, model)
    if encoder_name is None and metadata is None:
        raise InputError(
            f"model {model!r} does not record its encoder: name the run that trained it; compress also accepts "
            "--encoder, and export --format safetensors"
        )
    encoder = resolve_encoder(encoder_name or (metadata.recipe.encoder if metadata else ""), device)
    if encoder_name is None and metadata and encoder.fingerprint != metadata.encoder_fingerprint:
        raise InputError(
            f"the files of encoder {encoder.name!r} are not those that model {model!r} was trained with: restore "
            "them; compress also accepts another --encoder"
        )
    return build_sentence_transformer(encoder, compressor), encoder.fingerprint


def _download(uri: str, model: str) -> Path:
    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except Exception as error:  # as in `_find_store_entry`
        raise InputError(f"model {model!r} can't be loaded: {describe_error(error)}") from error


def _list_files(folder: Path, model: str) -> list[Path]:
    """List a folder's files, sorted; refuse links that leave the folder, since `export` would copy their targets."""
    root = folder.resolve()
    # A snapshot in the Hub's cache consists of links to a sibling folder.
    allowed = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
                name = path.relative_to(folder).as_posix()
                raise InputError(f"{name} of model {model!r} is a link out of the folder: replace it by the file")
        found += [Path(parent, name) for name in files]
        if len(found) > MAX_FILES:
            raise InputError(f"model {model!r} has more than {MAX_FILES:,} files: pass the folder of a single model")
    return sorted(found)


def _verify_digests(tags: Mapping[str, str], folder: Path, files: Sequence[Path], model: str) -> None:
    change = None
    if FILES_SHA256 in tags:
        change = describe_change(json.loads(tags[FILES_SHA256]), dir_sha256(folder, GENERATED_FILES))
    elif recorded := tags.get(f"{FILE_SHA256}{CHECKPOINT_FILE}"):
        checkpoint = _find_checkpoint(files, model)
        change = describe_file_change(CHECKPOINT_FILE, recorded, file_sha256(checkpoint))
    if change:
        raise InputError(
            f"model {model!r} does not match its recorded digests: {change}. Restore its files, or train or register "
            "the model again"
        )


def _find_checkpoint(files: Sequence[Path], model: str) -> Path:
    checkpoints = [path for path in files if path.name == CHECKPOINT_FILE]
    checkpoints = checkpoints or [path for path in files if path.suffix == ".safetensors"]
    if len(checkpoints) != 1:
        raise InputError(f"model {model!r} has {len(checkpoints)} .safetensors files: a compressor has exactly one")
    return checkpoints[0]


def _read_ids(folder: Path, entry: _StoreEntry | None, model: str) -> tuple[str | None, str | None]:
    """Return the id of the logged model and of the run that trained it, from MLmodel and the store."""
    if not (folder / "MLmodel").is_file():
        return None, None
    try:
        logged = Model.load(str(folder))
    except Exception as error:  # invalid YAML raises exceptions of many types
        raise InputError(f"MLmodel of model {model!r} can't be read: {describe_error(error)}") from error
    entry = entry or _StoreEntry("")
    trained_run = (logged.metadata or {}).get(TRAINED_RUN)
    return entry.model_id or logged.model_id, trained_run or entry.run_id or logged.run_id
