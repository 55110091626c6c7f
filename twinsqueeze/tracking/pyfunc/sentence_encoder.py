"""Loads and serves a logged sentence-transformers model: texts in, vectors out; other inputs are refused.

MLflow copies this file into the model and imports it where TwinSqueeze is not installed, so it imports nothing of
TwinSqueeze. MLflow's own loader encodes lists and objects as if they were texts, trusts code in the model's folder, and
lets threads share a tokenizer, which is not thread-safe.
"""

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceEncoderModel:
    """A sentence-transformers model that one thread at a time uses."""

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model
        self._lock = threading.Lock()

    def get_raw_model(self) -> "SentenceTransformer":
        """The model, for `PyFuncModel.get_raw_model`."""
        return self._model

    def predict(self, model_input: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Encode a text, a list of n texts, or a first column with n rows as (n, dim) float32.

        Other input is an `MlflowException`, status 400. The signature has MLflow pass input on without a conversion.
        """
        texts = _to_list(model_input)
        if not texts:
            raise MlflowException.invalid_parameter_value("no text: expected a list of one or more")
        for row, text in enumerate(texts):
            _validate(text, row)
        with self._lock:
            return np.asarray(self._model.encode(texts, show_progress_bar=False))


def _to_list(model_input: Any) -> list[Any]:
    if isinstance(model_input, list):
        return model_input
    if isinstance(model_input, str):
        return [model_input]
    if isinstance(model_input, pd.DataFrame | pd.Series | np.ndarray):
        table = pd.DataFrame(model_input)
        return table.iloc[:, 0].tolist() if table.size else []
    raise MlflowException.invalid_parameter_value(f"expected a list of texts, not {type(model_input).__name__}")


def _validate(text: object, row: int) -> None:
    if not isinstance(text, str):
        raise MlflowException.invalid_parameter_value(f"row {row} is not text but of type {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MlflowException.invalid_parameter_value(f"row {row} has half a character: {error.reason}") from error


def _load_pyfunc(path: str) -> SentenceEncoderModel:
    """Load a model from its folder; MLflow calls this."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds, and encodes nothing yet

    return SentenceEncoderModel(
        SentenceTransformer(path, local_files_only=True, model_kwargs={"use_safetensors": True})
    )
