"""Exports of text model and compressor as ONNX graphs, verified against PyTorch."""

import copy
import importlib.util
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.quantizers import EPSILON
from twinsqueeze.model.sentence_transformer import PROMPT_LENGTH, poolings_without_prompt, prompt_lengths, token_limit
from twinsqueeze.types import FloatArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

OUTPUT_NAME = "sentence_embedding"
# Attributes of a tokenizer's encodings by the graph's inputs.
TOKENIZER_OUTPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
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
    """A text model without its tokenizer: named tensors (N, T), and perhaps `PROMPT_LENGTH`, to vectors (N, dim)."""

    def __init__(self, model: "SentenceTransformer", names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        features: Any = dict(zip(self.names, tensors, strict=True))
        if PROMPT_LENGTH in features:
            mask_prompt = partial(_mask_prompt, prompt_length=features[PROMPT_LENGTH])
            for pooling in poolings_without_prompt(self.model):
                # The original branches on the values of tensors, which graphs do not support.
                setattr(pooling, "_exclude_prompt_from_mask", lambda mask, _: mask_prompt(mask))  # noqa: B010
            features[PROMPT_LENGTH] = 1  # any positive number has the pooling call the function above
        vectors: torch.Tensor = self.model(features)[OUTPUT_NAME]
        return vectors


def _mask_prompt(attention_mask: torch.Tensor, prompt_length: torch.Tensor) -> torch.Tensor:
    """Returns a mask (N, T) without the first `prompt_length` tokens of each text."""
    positions = torch.arange(attention_mask.shape[1])
    first = attention_mask.to(torch.int32).argmax(dim=1, keepdim=True)
    return attention_mask * (positions >= first + prompt_length)


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
    """Writes the graph of a text model, and its tokenizer with the model's padding and truncation.

    Both are verified with every prompt of the model. If the pooling leaves out the prompt's tokens, their number is the
    graph's input `PROMPT_LENGTH`.
    """
    tokenizer = _write_tokenizer(folder / "tokenizer.json", model)
    prompts = {"": 0} | prompt_lengths(model)
    texts = (SAMPLE_TEXTS, SAMPLE_TEXTS[:1])
    # Before the graph is made, which changes the poolings.
    expected = [(prompt, batch, model.encode(batch, prompt=prompt)) for prompt in prompts for batch in texts]
    features = model.preprocess(SAMPLE_TEXTS)
    # Two texts: the exporter would fix a batch size of one.
    example = {name: value[:2] for name, value in features.items() if isinstance(value, torch.Tensor)}
    if poolings_without_prompt(model):
        example[PROMPT_LENGTH] = torch.tensor(max(prompts.values()))
    graph = folder / "model.onnx"
    _write_graph(graph, _TextGraph(model, list(example)), example, dynamic_axes=2)
    for prompt, batch, vectors in expected:
        tokens = tokenizer.encode_batch([prompt + text for text in batch])
        inputs: dict[str, Any] = {PROMPT_LENGTH: np.array(prompts[prompt])}
        for name, attribute in TOKENIZER_OUTPUTS.items():
            inputs[name] = np.array([getattr(encoding, attribute) for encoding in tokens], np.int64)
        _verify_graph(graph, {name: inputs[name] for name in example}, vectors)


def _write_tokenizer(file: Path, model: "SentenceTransformer") -> "Tokenizer":
    fast = getattr(model.tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise InputError("the encoder has no fast tokenizer, which an ONNX graph needs: export the model as a folder")
    tokenizer: Tokenizer = copy.deepcopy(fast)
    settings = model.tokenizer
    if limit := token_limit(model):
        tokenizer.enable_truncation(max_length=limit, direction=settings.truncation_side)
    tokenizer.enable_padding(
        direction=settings.padding_side,
        pad_id=settings.pad_token_id,
        pad_type_id=settings.pad_token_type_id,
        pad_token=settings.pad_token,
    )
    file.write_text(tokenizer.to_str(), encoding="utf-8")
    return tokenizer


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
    axes = [range(min(dynamic_axes, tensor.ndim)) for tensor in inputs.values()]
    dynamic = tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in axes)
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
