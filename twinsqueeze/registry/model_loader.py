"""Resolves a run id, model URI or folder to local model files, and loads them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.utils.models import get_model_name_and_version

from twinsqueeze.data.encoder import BFLOAT16, SentenceEncoder, resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.model.sentence_transformer import build_sentence_transformer
from twinsqueeze.task import NO_ENCODER
from twinsqueeze.tracking.mlmodel import read_mlmodel
from twinsqueeze.tracking.model_files import CARD_FILE, EXTRA_FILES
from twinsqueeze.tracking.run import check_tracking_server
from twinsqueeze.tracking.tags import FILE_SHA256, TRAINED_RUN
from twinsqueeze.training.base import Base
from twinsqueeze.utils import files
from twinsqueeze.utils.files import CHECKPOINT_FILE
from twinsqueeze.utils.text import describe_error

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# A file of registered models: JSON that maps each other file to its SHA-256.
DIGESTS_FILE = "sha256.json"
# Tag of a registered version and of its logged model: SHA-256 of that file.
DIGESTS_SHA256 = "twinsqueeze.files_sha256"
# The others are added by MLflow and Python when they load a model.
UNLISTED_FILES = (DIGESTS_FILE, "registered_model_meta", "*.pyc")
MAX_FILES = 1000  # a limit, so that passing "/" or a home directory by mistake fails soon


@dataclass(frozen=True)
class ResolvedModel:
    """The local files of a model and its ids in MLflow; None for what the model does not have."""

    checkpoint: Path
    model_id: str | None
    run_id: str | None  # of the run that trained it
    sentence_transformer: Path | None = None  # folder of the model of encoder and compressor
    model_card: Path | None = None


def resolve_model(model: str) -> ResolvedModel:
    """Find a compressor's files by run id, model URI or folder; download them and verify their recorded digests."""
    folder = files.expand_user(model)
    entry = None
    if not files.is_dir(folder):
        entry = _find_store_entry(model)
        path = f"{entry.name}/{entry.version}" if isinstance(entry, ModelVersion) else entry.model_id
        folder = _download(f"models:/{path}", model)
    paths = _list_files(folder, model)
    checkpoint = _find_checkpoint(paths, model)
    if entry:
        _verify_digests(entry.tags, folder, checkpoint, model)
    sentence_transformer = next((path.parent for path in paths if path.name == "modules.json"), None)
    cards = (checkpoint.with_name(CARD_FILE), folder / EXTRA_FILES / CARD_FILE)
    card = next((path for path in cards if path in paths), None)
    model_id, run_id = _read_ids(folder, entry, model)
    return ResolvedModel(checkpoint, model_id, run_id, sentence_transformer, card)


def load_base(model: str) -> Base:
    """Load a compressor that trainings start from, by run id, model URI or folder."""
    resolved = resolve_model(model)
    return Base.load(model, *read_checkpoint(resolved.checkpoint, model), resolved.run_id)


def load_sentence_transformer_for(
    model: str,
    resolved: ResolvedModel,
    *,
    encoder_name: str | None = None,
    device: str = "cpu",
    allow_bfloat16: bool = False,
) -> tuple["SentenceTransformer", str]:
    """Load the encoder and the compressor of a model as one sentence-transformers model.

    `encoder_name` replaces the model's own encoder. Unless `allow_bfloat16`, the encoder computes in float32, also if
    the model was trained with bfloat16. Returns the model and the fingerprint of its encoder's files.
    """
    compressor, metadata = read_checkpoint(resolved.checkpoint, model)
    if resolved.sentence_transformer and encoder_name is None:
        is_bfloat16 = allow_bfloat16 and metadata is not None and metadata.recipe.encoder.endswith(BFLOAT16)
        text_model = SentenceEncoder(model, resolved.sentence_transformer, device=device, is_bfloat16=is_bfloat16)
        return text_model.load_model(), text_model.fingerprint
    if encoder_name:
        encoder = resolve_encoder(encoder_name, device)
    elif metadata and metadata.recipe.encoder == NO_ENCODER:
        raise InputError(
            f"model {model!r} was trained on vectors and has no encoder: export accepts --format faiss or "
            "safetensors, and compress accepts vectors, or texts with --encoder"
        )
    elif metadata is None:
        raise InputError(
            f"model {model!r} does not record its encoder: name the run that trained it; compress also accepts "
            "--encoder, and export --format safetensors"
        )
    else:
        encoder = resolve_encoder(metadata.recipe.encoder, device)
        if encoder.fingerprint != metadata.encoder_fingerprint:
            raise InputError(
                f"the files of encoder {encoder.name!r} are not those that model {model!r} was trained with: restore "
                "them; compress also accepts another --encoder"
            )
    encoder = replace(encoder, is_bfloat16=encoder.is_bfloat16 and allow_bfloat16)
    return build_sentence_transformer(encoder, compressor), encoder.fingerprint


def store_model_digests(model_id: str) -> str:
    """Add `DIGESTS_FILE` to a logged model, and return its SHA-256."""
    uri = f"models:/{model_id}"
    digests = files.dir_sha256(_download(uri, uri), UNLISTED_FILES)
    with TemporaryDirectory() as folder:
        path = Path(folder, DIGESTS_FILE)
        path.write_text(json.dumps(digests), encoding="utf-8")
        mlflow.MlflowClient().log_model_artifact(model_id, str(path))
        return files.file_sha256(path)


def _find_store_entry(model: str) -> ModelVersion | LoggedModel:
    is_run_id = re.fullmatch(r"[0-9a-f]{32}", model)
    if not is_run_id and not model.startswith(("models:/", "runs:/")):
        raise InputError(
            f"model {model!r} not found: pass a run id (32 hex digits), a model URI (models:/... or runs:/...) or an "
            "existing folder"
        )
    check_tracking_server()
    client = mlflow.MlflowClient()
    try:
        if model.startswith("models:/"):
            name, *version = get_model_name_and_version(client, model)
            return client.get_model_version(name, version[0]) if version else client.get_logged_model(name)
        run_id, _, name = model.removeprefix("runs:/").strip("/").partition("/")
        outputs = client.get_run(run_id).outputs
        logged = [client.get_logged_model(output.model_id) for output in (outputs.model_outputs if outputs else [])]
    except Exception as error:  # stores raise exceptions of many types for an unknown model
        raise _not_loaded(model, error) from error
    named = [candidate for candidate in logged if is_run_id or candidate.name == name]
    if not named:
        raise InputError(f"run {run_id} has no model{name and f' {name!r}'}: pass a run that finished training")
    return named[-1]


def _download(uri: str, model: str) -> Path:
    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except Exception as error:  # as in `_find_store_entry`
        raise _not_loaded(model, error) from error


def _not_loaded(model: str, error: Exception) -> InputError:
    return InputError(f"model {model!r} can't be loaded: {describe_error(error)}")


def _list_files(folder: Path, model: str) -> list[Path]:
    """List a folder's files, sorted; refuse links that leave the folder, since `export` would copy their targets."""
    paths = list(islice(folder.rglob("*"), MAX_FILES + 1))
    if len(paths) > MAX_FILES:
        raise InputError(f"model {model!r} has more than {MAX_FILES:,} files: pass the folder of a single model")
    root = folder.resolve()
    # A snapshot in the Hub's cache consists of links to a sibling folder.
    allowed = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in paths:
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            name = path.relative_to(folder).as_posix()
            raise InputError(f"{name} of model {model!r} is a link out of the folder: replace it by the file")
    return sorted(path for path in paths if path.is_file())


def _find_checkpoint(paths: Sequence[Path], model: str) -> Path:
    checkpoints = [path for path in paths if path.name == CHECKPOINT_FILE]
    checkpoints = checkpoints or [path for path in paths if path.suffix == ".safetensors"]
    if len(checkpoints) != 1:
        raise InputError(f"model {model!r} has {len(checkpoints)} .safetensors files: a compressor has exactly one")
    return checkpoints[0]


def _verify_digests(tags: Mapping[str, str], folder: Path, checkpoint: Path, model: str) -> None:
    change = None
    if recorded := tags.get(DIGESTS_SHA256):
        listed = folder / DIGESTS_FILE
        found = {DIGESTS_FILE: files.file_sha256(listed)} if listed.is_file() else {}
        change = files.describe_change({DIGESTS_FILE: recorded}, found) or files.describe_change(
            json.loads(listed.read_bytes()), files.dir_sha256(folder, UNLISTED_FILES)
        )
    elif recorded := tags.get(f"{FILE_SHA256}{CHECKPOINT_FILE}"):
        change = files.describe_file_change(CHECKPOINT_FILE, recorded, files.file_sha256(checkpoint))
    if change:
        raise InputError(
            f"model {model!r} does not match its recorded digests: {change}. Restore its files, or train or register "
            "the model again"
        )


def _read_ids(folder: Path, entry: ModelVersion | LoggedModel | None, model: str) -> tuple[str | None, str | None]:
    """Return the id of the logged model and of the run that trained it, from MLmodel and the store."""
    if not (folder / "MLmodel").is_file():
        return None, None
    try:
        logged = read_mlmodel(folder)
    except Exception as error:  # invalid YAML raises exceptions of many types
        raise _not_loaded(model, error) from error
    trained_run = (logged.metadata or {}).get(TRAINED_RUN)
    if isinstance(entry, LoggedModel):  # its MLmodel has no digest, so the store's ids take precedence
        return entry.model_id, trained_run or entry.source_run_id
    return logged.model_id, trained_run or logged.run_id
