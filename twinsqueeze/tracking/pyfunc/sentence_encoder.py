"""The text model as MLflow loads and serves it: texts in, vectors out, and everything else refused.

MLflow copies this file into every logged text model and imports it where TwinSqueeze is not installed, so it imports
nothing of ours. MLflow's own loader compresses whatever sentence-transformers takes, such as lists and objects in the
place of texts, trusts code that lies with a model, and lets threads share a tokenizer, which keeps settings as state.
"""

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceEncoderModel:
    """A sentence-transformers model that any number of threads may ask.

    Args:
        model: Asked by one thread at a time.
    """

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model
        self._turn = threading.Lock()

    def get_raw_model(self) -> "SentenceTransformer":
        """What `PyFuncModel.get_raw_model` gives."""
        return self._model

    def predict(self, model_input: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The vectors of texts.

        Args:
            model_input: A column of texts; the model's signature makes a frame of a list, an array or one text.

        Raises:
            MlflowException: If something in it is no text, which a server answers with 400.
        """
        texts = pd.DataFrame(model_input).iloc[:, 0].tolist()
        for row, text in enumerate(texts):
            _check(text, row)
        with self._turn:
            vectors: np.ndarray[Any, np.dtype[np.float32]] = self._model.encode(texts, show_progress_bar=False)
        return vectors


def _check(text: object, row: int) -> None:
    if not isinstance(text, str):
        raise MlflowException.invalid_parameter_value(f"row {row} is no text, but of type {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MlflowException.invalid_parameter_value(f"row {row} has half a character: {error.reason}") from error


def _load_pyfunc(path: str) -> SentenceEncoderModel:
    """What MLflow calls.

    Args:
        path: The folder of the sentence-transformers model.
    """
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds, and encodes nothing yet

    return SentenceEncoderModel(
        SentenceTransformer(path, local_files_only=True, model_kwargs={"use_safetensors": True})
    )
