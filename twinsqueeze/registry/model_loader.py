"""Finds models: a run's, a registered one's or a folder's compressor as local files, and whether they have changed."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.models import Model
from mlflow.store.artifact.utils.models import get_model_name_and_version

from twinsqueeze.errors import InputError
from twinsqueeze.tracking import run_logger
from twinsqueeze.tracking.run import check_tracking_server
from twinsqueeze.tracking.tags import FILE_SHA256, TRAINED_RUN
from twinsqueeze.utils.files import describe_change, describe_file_change, dir_sha256, expand_user, file_sha256, is_dir
from twinsqueeze.utils.text import describe_error, redact_credentials

# Of a registered version and its model: the SHA-256 of all files, as JSON.
FILES_SHA256 = "twinsqueeze.files_sha256"


# What MLflow puts into the folder of a version that is read, and Python into that of a model with code of its own.
LEFT_BY_READING = ("registered_model_meta", "*.pyc")
# Of a model: whoever names / or a home by mistake should not wait for all of it to be looked through.
MOST_FILES = 1000


@dataclass(frozen=True)
class ResolvedModel:
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


def resolve_model(model: str) -> ResolvedModel:
    """The compressor of a run, a model or a folder, and the text model that it is part of.

    Args:
        model: A run's id, a model's URI (models:/..., runs:/...) or a folder, such as `export` writes.

    Raises:
        InputError: If there is no such thing, no compressor in it, or its files are not those that were recorded.
    """
    folder = expand_user(model)
    origin = None
    if not is_dir(folder):
        origin = _origin(_model_uri(model), model)
        folder = _download(origin.uri, model)
    files = _files(folder, model)
    if origin and (all_files := origin.tags.get(FILES_SHA256)):
        _raise_if_modified(describe_change(json.loads(all_files), dir_sha256(folder, LEFT_BY_READING)), model)
    weights = [path for path in files if path.name == run_logger.CHECKPOINT_FILE]
    weights = weights or [path for path in files if path.suffix == ".safetensors"]
    if len(weights) != 1:
        raise InputError(f"model {model!r} has {len(weights)} .safetensors files, where a compressor has one")
    if origin and (recorded := origin.tags.get(f"{FILE_SHA256}{run_logger.CHECKPOINT_FILE}")):
        _raise_if_modified(describe_file_change(run_logger.CHECKPOINT_FILE, recorded, file_sha256(weights[0])), model)
    text_models = sorted(path.parent for path in files if path.name == "modules.json")
    card = weights[0].with_name(run_logger.CARD_FILE)
    beside = text_models[0] if text_models else None, card if card.is_file() else None
    if not (folder / "MLmodel").is_file():
        return ResolvedModel(weights[0], None, None, *beside)
    try:
        logged = Model.load(str(folder))
    except Exception as error:  # YAML that is no model's gives errors of many kinds
        raise InputError(f"MLmodel of model {model!r} can't be read: {describe_error(error)}") from error
    trained_run = (logged.metadata or {}).get(TRAINED_RUN) or (origin and origin.run_id) or logged.run_id
    return ResolvedModel(weights[0], (origin and origin.model_id) or logged.model_id, trained_run, *beside)


def _raise_if_modified(found: str | None, model: str) -> None:
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
        check_tracking_server()
        return model
    if not re.fullmatch(r"[0-9a-f]{32}", model):
        raise InputError(
            f"model {model!r} is neither a run's id (32 hex digits) nor a model's URI (models:/..., runs:/...) nor a "
            "folder that is there"
        )
    check_tracking_server()
    try:
        run = mlflow.get_run(model)
    except mlflow.MlflowException as error:
        store = redact_credentials(mlflow.get_tracking_uri())
        raise InputError(f"model {model!r} is no run in {store}: {describe_error(error)}") from error
    if not run.outputs or not run.outputs.model_outputs:
        raise InputError(f"run {model} has no model, its status is {run.info.status}: name a run that was trained")
    return f"models:/{run.outputs.model_outputs[-1].model_id}"


@dataclass(frozen=True)
class _StoreEntry:
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


def _origin(uri: str, model: str) -> _StoreEntry:
    client = mlflow.MlflowClient()
    try:
        if uri.startswith("runs:/"):
            run_id, _, name = uri.removeprefix("runs:/").strip("/").partition("/")
            outputs = client.get_run(run_id).outputs
            logged = [client.get_logged_model(output.model_id) for output in (outputs.model_outputs if outputs else [])]
            named = [known for known in logged if known.name == name]
            if not named:
                return _StoreEntry(uri, {}, run_id=run_id)
            found = named[-1]
        else:
            name, *number = get_model_name_and_version(client, uri)
            if number:
                return _StoreEntry(f"models:/{name}/{number[0]}", client.get_model_version(name, number[0]).tags)
            found = client.get_logged_model(name)
        return _StoreEntry(f"models:/{found.model_id}", found.tags, found.model_id, found.source_run_id)
    except Exception as error:  # stores answer an unknown model with exceptions of many kinds
        raise InputError(f"model {model!r} can't be had: {describe_error(error)}") from error


def model_sha256(model_id: str) -> str:
    """The digests of a logged model's files, as the store has them, for `FILES_SHA256`.

    Raises:
        InputError: If it can't be read.
    """
    uri = f"models:/{model_id}"
    return json.dumps(dir_sha256(_download(uri, uri), LEFT_BY_READING))


def _download(uri: str, model: str) -> Path:
    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except Exception as error:  # stores answer an unknown model with exceptions of many kinds
        raise InputError(f"model {model!r} can't be had: {describe_error(error)}") from error
