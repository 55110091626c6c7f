"""The compressor as MLflow loads it: models from code, one safetensors file, NumPy.

MLflow copies this file into every logged model and runs it where TwinSqueeze is not installed, so it imports nothing of
ours. It needs neither PyTorch nor pickle.
"""

from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from safetensors.numpy import load_file


class CompressorModel(PythonModel):
    """Vectors of a sentence encoder in, (N, d) float32; unit vectors of `dim` numbers out, (N, dim) float32."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the layers, in the order of the numbers in their names."""
        state = load_file(context.artifacts["compressor"])
        numbers = sorted(int(name.split(".")[0]) for name in state if name.endswith(".weight"))
        self.layers = [(state[f"{i}.weight"], state[f"{i}.bias"]) for i in numbers]

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Linear layers with ReLU between them, then each vector scaled to length 1.

        Raises:
            MlflowException: If a number is not finite, such as what MLflow makes of null; a server answers with 400.
        """
        del context, params
        hidden = np.asarray(model_input, dtype=np.float32)
        if not np.isfinite(hidden).all():
            row = int(np.argmin(np.isfinite(hidden).all(1)))
            raise MlflowException.invalid_parameter_value(f"row {row} has a number that is not finite")
        for i, (weight, bias) in enumerate(self.layers):
            if i:
                hidden = np.maximum(hidden, np.float32(0))
            hidden = hidden @ weight.T + bias
        length = np.linalg.norm(hidden, axis=1, keepdims=True)
        return hidden / np.maximum(length, np.float32(1e-12))


mlflow.models.set_model(CompressorModel())
