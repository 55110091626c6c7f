"""Exports text model and compressor as ONNX graphs, verified against PyTorch."""

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
from twinsqueeze.utils import signals

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXT_GRAPH = "model.onnx"
COMPRESSOR_GRAPH = "compressor.onnx"
TOKENIZER_FILE = "tokenizer.json"
VECTOR = "sentence_embedding"
# What the numbers of a graph's unit vectors may differ by from PyTorch's.
TOLERANCE = 1e-5
# Of many lengths, so that the check meets padding and the cut at the encoder's limit.
CHECKED_TEXTS = ("A man is playing a guitar.", "", "Two dogs run through the snow, and a child laughs.", "word " * 600)
CHECKED_VECTORS = 5


def check_onnx_installed() -> None:
    """Raises an `InputError` that names the packages to install if any of the ONNX extra is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")


class _TextGraph(nn.Module):
    """A text model behind its tokenizer: named tensors (N, T) to vectors (N, dim)."""

    def __init__(self, model: "SentenceTransformer", names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        features: Any = dict(zip(self.names, tensors, strict=True))
        vectors: torch.Tensor = self.model(features)[VECTOR]
        return vectors


class _CompressorGraph(nn.Module):
    """`Compressor.compress` without what a graph can't have: operations in place, and inference mode."""

    def __init__(self, compressor: CompressorNetwork) -> None:
        super().__init__()
        self.weights = nn.ParameterList([weight for weight, _ in compressor.layers])
        self.biases = nn.ParameterList([bias for _, bias in compressor.layers])

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        hidden = vectors
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = functional.linear(functional.relu(hidden) if i else hidden, weight, bias)
        return functional.normalize(hidden, dim=-1, eps=EPSILON)


def write_text_graph(folder: Path, model: "SentenceTransformer") -> None:
    """Writes the text model's graph and its tokenizer, which pads and cuts as the model does."""
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
    if tokenizer is None:
        raise InputError("the encoder has no fast tokenizer, so it can't be used beside a graph: export it as a folder")
    features = model.preprocess(list(CHECKED_TEXTS))
    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    # Two texts, since a batch of one would be taken for a graph of batches of one.
    example = [value[:2] for value in tensors.values()]
    export_onnx(folder / TEXT_GRAPH, _TextGraph(model, list(tensors)).eval(), example, list(tensors), axes=2)
    for texts in (list(CHECKED_TEXTS), [CHECKED_TEXTS[0]]):
        fed = {name: value.numpy() for name, value in model.preprocess(texts).items() if name in tensors}
        verify_onnx(folder / TEXT_GRAPH, fed, model.encode(texts, show_progress_bar=False))
    tokenizer.enable_truncation(max_length=model.max_seq_length)
    padding = model.tokenizer.pad_token
    tokenizer.enable_padding(pad_id=model.tokenizer.pad_token_id, pad_token=padding)
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(), encoding="utf-8")


def write_compressor_graph(folder: Path, compressor: CompressorNetwork) -> None:
    """Writes the compressor as a graph: float32 vectors (N, d) to unit vectors (N, dim)."""
    vectors = np.random.default_rng(0).normal(size=(CHECKED_VECTORS, compressor.input_dimension)).astype(np.float32)
    vectors[-1] = 0
    example = [torch.from_numpy(vectors)]
    export_onnx(folder / COMPRESSOR_GRAPH, _CompressorGraph(compressor).eval(), example, ["vectors"], axes=1)
    expected = compressor.compress(example[0]).numpy()
    for rows in (CHECKED_VECTORS, 1):
        verify_onnx(folder / COMPRESSOR_GRAPH, {"vectors": vectors[:rows]}, expected[:rows])


def export_onnx(file: Path, module: nn.Module, example: list[torch.Tensor], names: list[str], axes: int) -> None:
    """Writes a graph whose inputs' first `axes` axes have any length.

    Raises:
        InputError: If PyTorch can't translate the module.
    """
    dynamic = tuple(dict.fromkeys(range(axes), torch.export.Dim.DYNAMIC) for _ in example)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's own, to PyTorch's developers
            program = torch.onnx.export(
                module,
                tuple(example),
                input_names=names,
                output_names=[VECTOR],
                dynamic_shapes=(dynamic,) if isinstance(module, _TextGraph) else dynamic,
                verbose=False,
            )
        assert program
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # traces of what was called here, with this machine's paths
        program.save(file, external_data=False)
    except (OSError, signals.Interrupted):
        raise
    except Exception as error:  # an encoder may hold whatever its authors wrote
        raise InputError(f"the model can't be written as ONNX ({one_line(error)}): export it as a folder") from error


def verify_onnx(file: Path, fed: dict[str, Any], expected: FloatArray) -> None:
    """Runs a graph with onnxruntime beside PyTorch.

    Raises:
        InputError: If they differ.
    """
    import onnxruntime  # noqa: PLC0415 - an extra that only this needs

    (vectors,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, fed)
    difference = float(np.abs(vectors - expected).max())
    if not difference <= TOLERANCE:
        raise InputError(
            f"the ONNX graph {file.name} gives vectors that differ from PyTorch's by {difference:.1g}: export the "
            "model as a folder"
        )
