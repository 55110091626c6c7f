"""Loads and serves a logged compressor with NumPy, from a safetensors file: without PyTorch and pickle.

MLflow copies this file into the model and runs it where TwinSqueeze is not installed, so it imports nothing of
TwinSqueeze.
"""

import json
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from safetensors import safe_open
from safetensors.numpy import load_file


class CompressorModel(PythonModel):
    """Compresses (n, d) float32 vectors of a sentence encoder to (n, dim) float32 unit vectors."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the layers, sorted by the numbers in their names."""
        file = context.artifacts["compressor"]
        with safe_open(file, framework="numpy") as tensors:
            metadata = json.loads((tensors.metadata() or {}).get("twinsqueeze", "{}"))
        # Trained on vectors that were scaled to unit length, not on an encoder's.
        self.normalizes_inputs = metadata.get("recipe", {}).get("encoder") == "none"
        state = load_file(file)
        numbers = sorted(int(name.split(".")[0]) for name in state if name.endswith(".weight"))
        self.layers = [(state[f"{i}.weight"], state[f"{i}.bias"]) for i in numbers]

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Apply the layers, and normalize; a number that is not finite is an `MlflowException`, status 400."""
        del context, params
        hidden = np.asarray(model_input, dtype=np.float32)
        if not np.isfinite(hidden).all():
            row = int(np.argmin(np.isfinite(hidden).all(1)))
            raise MlflowException.invalid_parameter_value(f"row {row} has a number that is not finite")
        if self.normalizes_inputs:
            hidden = self._normalize(hidden)
        for i, (weight, bias) in enumerate(self.layers):
            if i:
                hidden = np.maximum(hidden, np.float32(0))
            hidden = hidden @ weight.T + bias
        return self._normalize(hidden)

    def _normalize(self, vectors: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(length, np.float32(1e-12))


mlflow.models.set_model(CompressorModel())
