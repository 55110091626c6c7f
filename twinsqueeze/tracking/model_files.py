"""Logs MLflow models: compressors and sentence-transformers models."""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import mlflow
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec

from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import FILE_SHA256, TRAINED_RUN
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.files import CHECKPOINT_FILE

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PYFUNC = Path(__file__).parent / "pyfunc"
EXAMPLE_TEXTS = ("A man is playing a guitar.", "Two dogs run through the snow.")
# A vector per row. From a tensor of two dimensions `mlflow.pyfunc.spark_udf` would infer an array of arrays per row.
EMBEDDINGS = Schema([ColSpec(Array(DataType.float), "embedding")])
# The model card in a model's folder.
CARD_FILE = "README.md"
# MLflow's folder for such files.
EXTRA_FILES = "extra_files"
# Models require the installed versions. To compare these with the installed ones takes MLflow a second.
_unchecked_requirements = partial(patch, "mlflow.utils.environment.warn_dependency_requirement_mismatches")


def log_compressor(run: RunLogger, checkpoint: bytes, example: FloatArray, params: Mapping[str, Any]) -> str:
    """Log a compressor as a model that loads without this package, PyTorch and pickle; return its name in the run.

    `checkpoint` is a safetensors file, `example` (n, encoder's dimension) float32, and `params` is the recipe.
    """
    tags = {f"{FILE_SHA256}{CHECKPOINT_FILE}": hashlib.sha256(checkpoint).hexdigest()}
    with run.log_model(params, tags) as folder:
        save_compressor(folder, checkpoint, example)
    return run.model_name


def save_compressor(
    folder: Path, checkpoint: bytes, example: FloatArray, card: str = "", trained_run: str = ""
) -> None:
    """Write a compressor as an MLflow model, with its model card and the id of its training if these are given."""
    with tempfile.TemporaryDirectory() as temporary, _unchecked_requirements():
        path = Path(temporary, CHECKPOINT_FILE)
        path.write_bytes(checkpoint)
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(PYFUNC / "compressor.py"),
            artifacts={"compressor": str(path)},
            metadata={TRAINED_RUN: trained_run} if trained_run else None,
            signature=ModelSignature(
                inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, example.shape[1]))]), outputs=EMBEDDINGS
            ),
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", "safetensors")],
        )
    if card:
        (folder / EXTRA_FILES).mkdir()
        (folder / EXTRA_FILES / CARD_FILE).write_text(card, encoding="utf-8")


def save_sentence_transformer(
    folder: Path, model: "SentenceTransformer", checkpoint: Path, card: str, trained_run: str
) -> None:
    """Write a sentence-transformers model that ends with a compressor as an MLflow model.

    The compressor's file and the model card, Markdown, are stored beside it. `trained_run` is the id of the training.
    """
    import mlflow.sentence_transformers  # noqa: PLC0415 - takes a second

    described = Model(metadata={TRAINED_RUN: trained_run})
    with tempfile.TemporaryDirectory() as temporary, _unchecked_requirements():
        checkpoint = shutil.copyfile(checkpoint, Path(temporary, CHECKPOINT_FILE))
        card_file = Path(temporary, CARD_FILE)
        card_file.write_text(card, encoding="utf-8")
        packages = ("mlflow", "sentence-transformers", "transformers", "torch")
        mlflow.sentence_transformers.save_model(
            path=str(folder),
            mlflow_model=described,
            model=model,
            code_paths=[str(PYFUNC / "sentence_encoder.py")],
            signature=ModelSignature(inputs=Schema([ColSpec(DataType.string)]), outputs=EMBEDDINGS),
            input_example=list(EXAMPLE_TEXTS),
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in packages],
            extra_files=[str(checkpoint), str(card_file)],
            create_model_card=False,
        )
    # Load and serve it by our module instead of MLflow's.
    described.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.MAIN] = "sentence_encoder"
    # As for a model with the type hint `list[str]`: a server passes values on, instead of converting null to "None".
    Model.from_dict(described.to_dict() | {"is_signature_from_type_hint": True}).save(str(folder / "MLmodel"))
