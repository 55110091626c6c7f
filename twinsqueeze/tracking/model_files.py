"""Logs MLflow models: compressors and sentence-transformers models."""

import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, ColSpec, Schema, TensorSpec

from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import FILE_SHA256, TRAINED_RUN
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.files import CHECKPOINT_FILE, bytes_sha256

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

COMPRESSOR_NAME = "compressor"
COMPRESSOR_PACKAGES = ("mlflow", "numpy", "safetensors")
COMPRESSOR_CODE = Path(__file__).parent / "pyfunc" / "compressor.py"
SENTENCE_TRANSFORMER_NAME = "text_model"
SENTENCE_TRANSFORMER_PACKAGES = ("mlflow", "sentence-transformers", "transformers", "torch")
SENTENCE_TRANSFORMER_CODE = Path(__file__).parent / "pyfunc" / "sentence_encoder.py"
EXAMPLE_TEXTS = ("A man is playing a guitar.", "Two dogs run through the snow.")
# The model card in a model's folder.
CARD_FILE = "README.md"


def log_compressor(run: RunLogger, checkpoint: bytes, example: FloatArray, dim: int, params: Mapping[str, Any]) -> str:
    """Log a compressor as a model that loads without this package, PyTorch and pickle; return its name in the run.

    Args:
        run: Its run.
        checkpoint: A safetensors file.
        example: Vectors of the encoder, (n, encoder's dimension) float32, as the model's input example.
        dim: Output dimension.
        params: Its recipe.
    """
    tags = {f"{FILE_SHA256}{CHECKPOINT_FILE}": bytes_sha256(checkpoint)}
    with run.log_model(COMPRESSOR_NAME, params, tags) as folder, tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, CHECKPOINT_FILE)
        path.write_bytes(checkpoint)
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(COMPRESSOR_CODE),
            artifacts={"compressor": str(path)},
            signature=ModelSignature(inputs=_vectors(example.shape[1]), outputs=_vectors(dim)),
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in COMPRESSOR_PACKAGES],
        )
    return COMPRESSOR_NAME


def save_sentence_transformer(
    folder: Path, model: "SentenceTransformer", checkpoint: Path, card: str, trained_run: str
) -> None:
    """Write a sentence-transformers model that ends with a compressor to the folder of an MLflow model.

    Args:
        folder: Where to.
        model: Takes text, and returns compressed vectors.
        checkpoint: The compressor's file, which is stored beside the model.
        card: The model card, Markdown, stored likewise.
        trained_run: Id of the run that trained the compressor.
    """
    import mlflow.sentence_transformers  # noqa: PLC0415 - takes a second

    described = Model(metadata={TRAINED_RUN: trained_run})
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = shutil.copyfile(checkpoint, Path(temporary, CHECKPOINT_FILE))
        card_file = Path(temporary, CARD_FILE)
        card_file.write_text(card, encoding="utf-8")
        versions = {package: version(package).partition("+")[0] for package in SENTENCE_TRANSFORMER_PACKAGES}
        mlflow.sentence_transformers.save_model(
            path=str(folder),
            mlflow_model=described,
            model=model,
            code_paths=[str(SENTENCE_TRANSFORMER_CODE)],
            signature=ModelSignature(
                inputs=Schema([ColSpec(AnyType())]),  # with a string column, a server converts any input to text
                outputs=_vectors(model.get_embedding_dimension() or -1),
            ),
            input_example=list(EXAMPLE_TEXTS),
            pip_requirements=[f"{package}=={number}" for package, number in versions.items()],
            extra_files=[str(checkpoint), str(card_file)],
            create_model_card=False,
        )
    # Load and serve it by our module instead of MLflow's.
    described.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.MAIN] = SENTENCE_TRANSFORMER_CODE.stem
    described.save(str(folder / "MLmodel"))


def _vectors(dim: int) -> Schema:
    return Schema([TensorSpec(np.dtype(np.float32), (-1, dim))])
