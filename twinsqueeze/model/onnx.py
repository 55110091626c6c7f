"""Exports of text model and compressor as ONNX graphs, verified against PyTorch."""

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.quantizers import EPSILON
from twinsqueeze.types import FloatArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

OUTPUT_NAME = "sentence_embedding"
# Largest difference of a graph's unit vectors from PyTorch's.
TOLERANCE = 1e-5
# Of several lengths, so that verification covers padding and truncation.
SAMPLE_TEXTS = ["A man is playing a guitar.", "", "Two dogs run through the snow, and a child laughs.", "word " * 600]


def check_onnx_installed() -> None:
    """Raises an `InputError` that names the missing packages of the ONNX extra."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")


class _TextGraph(nn.Module):
    """A text model without its tokenizer: named tensors (N, T) to vectors (N, dim)."""

    def __init__(self, model: "SentenceTransformer", names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        features: Any = dict(zip(self.names, tensors, strict=True))
        vectors: torch.Tensor = self.model(features)[OUTPUT_NAME]
        return vectors


class _CompressorGraph(nn.Module):
    """`CompressorNetwork.compress` without in-place operations and inference mode, which graphs do not support."""

    def __init__(self, compressor: CompressorNetwork) -> None:
        super().__init__()
        self.weights = nn.ParameterList([weight for weight, _ in compressor.layers])
        self.biases = nn.ParameterList([bias for _, bias in compressor.layers])

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        (hidden,) = tensors
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = functional.linear(functional.relu(hidden) if i else hidden, weight, bias)
        return functional.normalize(hidden, dim=-1, eps=EPSILON)


def export_text_model(folder: Path, model: "SentenceTransformer") -> None:
    """Writes the graph of a text model, and its tokenizer with the model's padding and truncation."""
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
    if tokenizer is None:
        raise InputError("the encoder has no fast tokenizer, which an ONNX graph needs: export the model as a folder")
    features = model.preprocess(SAMPLE_TEXTS)
    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    # Two texts: the exporter would fix a batch size of one.
    example = {name: value[:2] for name, value in tensors.items()}
    graph = folder / "model.onnx"
    _write_graph(graph, _TextGraph(model, list(tensors)), example, dynamic_axes=2)
    for texts in (SAMPLE_TEXTS, SAMPLE_TEXTS[:1]):
        inputs = {name: value.numpy() for name, value in model.preprocess(texts).items() if name in tensors}
        _verify_graph(graph, inputs, model.encode(texts, show_progress_bar=False))
    tokenizer.enable_truncation(max_length=model.max_seq_length)
    tokenizer.enable_padding(pad_id=model.tokenizer.pad_token_id, pad_token=model.tokenizer.pad_token)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


def export_compressor(folder: Path, compressor: CompressorNetwork) -> None:
    """Writes the compressor's graph: float32 vectors (N, d) to unit vectors (N, dim)."""
    vectors = np.random.default_rng(0).normal(size=(5, compressor.input_dim)).astype(np.float32)
    vectors[-1] = 0
    inputs = {"vectors": torch.from_numpy(vectors)}
    graph = folder / "compressor.onnx"
    _write_graph(graph, _CompressorGraph(compressor), inputs, dynamic_axes=1)
    expected = compressor.compress(inputs["vectors"]).numpy()
    for rows in (len(vectors), 1):
        _verify_graph(graph, {"vectors": vectors[:rows]}, expected[:rows])


def _write_graph(file: Path, module: nn.Module, inputs: dict[str, torch.Tensor], *, dynamic_axes: int) -> None:
    """Writes the graph of a module whose `forward` takes `*tensors` of any length along the first `dynamic_axes`."""
    dynamic = tuple(dict.fromkeys(range(dynamic_axes), torch.export.Dim.DYNAMIC) for _ in inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside PyTorch
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=[OUTPUT_NAME],
                dynamic_shapes=(dynamic,),
                verbose=False,
            )
        assert program
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces with paths of this machine
        program.save(file, external_data=False)
    except OSError:
        raise
    except Exception as error:  # any error of a user's encoder
        raise InputError(f"the model cannot be exported as ONNX ({one_line(error)}): export it as a folder") from error


def _verify_graph(file: Path, inputs: dict[str, Any], expected: FloatArray) -> None:
    """Raises an `InputError` if a graph's vectors, computed by onnxruntime, differ from PyTorch's."""
    import onnxruntime  # noqa: PLC0415 - an optional dependency

    (vectors,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, inputs)
    difference = float(np.abs(vectors - expected).max())
    if not difference <= TOLERANCE:
        raise InputError(
            f"the ONNX graph {file.name} gives vectors that differ from PyTorch's by {difference:.1g}: export the "
            "model as a folder"
        )
