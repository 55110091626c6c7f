"""The job export: a model as files that need neither MLflow nor this package."""

import importlib.util
import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional

from twinsqueeze import model_store, tracking
from twinsqueeze.checkpoint import Provenance, read_checkpoint
from twinsqueeze.codes import SHORTEST
from twinsqueeze.compressor import Compressor
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.errors import InputError, one_line
from twinsqueeze.model_card import model_card
from twinsqueeze.model_store import FoundModel
from twinsqueeze.run_writer import CARD_FILE, CHECKPOINT_FILE
from twinsqueeze.text_model import load_text_model, text_model
from twinsqueeze.types import FloatArray
from twinsqueeze.utils import console, signals
from twinsqueeze.utils.files import expand_user
from twinsqueeze.utils.text import escape_markdown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


FORMATS = ("folder", "safetensors", "onnx")
TEXT_GRAPH = "model.onnx"
COMPRESSOR_GRAPH = "compressor.onnx"
TOKENIZER_FILE = "tokenizer.json"
VECTOR = "sentence_embedding"
# What the numbers of a graph's unit vectors may differ by from PyTorch's.
TOLERANCE = 1e-5
# Of many lengths, so that the check meets padding and the cut at the encoder's limit.
CHECKED_TEXTS = ("A man is playing a guitar.", "", "Two dogs run through the snow, and a child laughs.", "word " * 600)
CHECKED_VECTORS = 5


def export(model: str, output: Path, *, format: str = "folder", overwrite: bool = False) -> None:  # noqa: A002 - the option's name
    """Writes a model to a folder, with the compressor's own file and the model card; whole or not at all.

    Args:
        model: A run's id, a model's URI or a folder.
        output: A folder that is not there yet, or empty.
        format: folder, a sentence-transformers model; safetensors, the compressor alone; onnx, text model and
            compressor as graphs, checked against PyTorch.
        overwrite: Whether an earlier export there is replaced.

    Raises:
        InputError: If the model can't be had in that format, or the folder can't be written.
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    if format == "onnx":
        _check_onnx()
    output = expand_user(output).resolve()
    _check_output(output, overwrite)
    found = model_store.find_model(model)
    compressor, provenance = read_checkpoint(found.file, model)
    text = _text_model(model, found, compressor, provenance) if format != "safetensors" else None
    try:
        # Beside the output, so that one rename puts it in place.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
            made = Path(temporary, "made")
            made.mkdir()
            if text and format == "folder":
                text.save(str(made), create_model_card=False)
            elif text:
                _write_text_graph(made, text)
                _write_compressor_graph(made, compressor)
            shutil.copyfile(found.file, made / CHECKPOINT_FILE)
            if card := _card(found, compressor, provenance, text):
                (made / CARD_FILE).write_text(card, encoding="utf-8")
            _put(made, output, Path(temporary, "before"))
    except (OSError, SafetensorError) as error:
        raise InputError(f"output {str(output)!r} can't be written: {one_line(error)}") from error
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    console.print_result(f"Written to {output}: {', '.join(files)}.")
    if tracking.given_run():  # `mlflow run` has made one, which should say what it was for
        with tracking.open_run("export", "export") as run:
            run.describe(escape_markdown(f"Wrote model {model} to {output} ({format})."))


def _check_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")


def _check_output(output: Path, overwrite: bool) -> None:
    try:
        if output.exists() and not output.is_dir():
            raise InputError(f"output {str(output)!r} is a file: name a folder")
        if output.is_dir() and any(output.iterdir()):
            if not overwrite:
                raise InputError(f"output {str(output)!r} is not empty: name another folder, or give --overwrite true")
            if not (output / CHECKPOINT_FILE).is_file():  # else a slip of the pen would cost a user's folder
                raise InputError(f"output {str(output)!r} is no earlier export, and only such a one is overwritten")
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise InputError(f"output {str(output)!r} can't be written to: {error.strerror}") from error


def _text_model(
    model: str, found: FoundModel, compressor: Compressor, provenance: Provenance | None
) -> "SentenceTransformer":
    if found.text_model:
        return load_text_model(found.text_model, "cpu")
    if provenance is None:
        raise InputError(
            f"model {model!r} does not say which encoder it was trained with: export it as safetensors, or name a run"
        )
    encoder = resolve_encoder(provenance.recipe.encoder, "cpu")
    if encoder.fingerprint != provenance.encoder_fingerprint:
        raise InputError(
            f"the files of encoder {encoder.name!r} are not those that the model was trained with: put them back"
        )
    return text_model(encoder, compressor)


def _card(
    found: FoundModel, compressor: Compressor, provenance: Provenance | None, text: "SentenceTransformer | None"
) -> str | None:
    if found.card:
        return found.card.read_text(encoding="utf-8")
    if provenance is None:
        return None
    longest = text.max_seq_length if text else None
    return model_card(provenance, compressor.input_dimension, longest=longest, run_id=found.run_id)


def _put(made: Path, output: Path, before: Path) -> None:
    """Puts what was made in the output's place, and what was there before into another."""
    with signals.defer_signals(then_stop=False):
        if output.is_dir():
            output.replace(before)
        try:
            made.replace(output)
        except OSError:
            if before.is_dir():
                before.replace(output)
            raise


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

    def __init__(self, compressor: Compressor) -> None:
        super().__init__()
        self.weights = nn.ParameterList([weight for weight, _ in compressor.layers])
        self.biases = nn.ParameterList([bias for _, bias in compressor.layers])

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        hidden = vectors
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = functional.linear(functional.relu(hidden) if i else hidden, weight, bias)
        return functional.normalize(hidden, dim=-1, eps=SHORTEST)


def _write_text_graph(folder: Path, model: "SentenceTransformer") -> None:
    """Writes the text model's graph and its tokenizer, which pads and cuts as the model does."""
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
    if tokenizer is None:
        raise InputError("the encoder has no fast tokenizer, so it can't be used beside a graph: export it as a folder")
    features = model.preprocess(list(CHECKED_TEXTS))
    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    # Two texts, since a batch of one would be taken for a graph of batches of one.
    example = [value[:2] for value in tensors.values()]
    _write_graph(folder / TEXT_GRAPH, _TextGraph(model, list(tensors)).eval(), example, list(tensors), axes=2)
    for texts in (list(CHECKED_TEXTS), [CHECKED_TEXTS[0]]):
        fed = {name: value.numpy() for name, value in model.preprocess(texts).items() if name in tensors}
        _check_graph(folder / TEXT_GRAPH, fed, model.encode(texts, show_progress_bar=False))
    tokenizer.enable_truncation(max_length=model.max_seq_length)
    padding = model.tokenizer.pad_token
    tokenizer.enable_padding(pad_id=model.tokenizer.pad_token_id, pad_token=padding)
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(), encoding="utf-8")


def _write_compressor_graph(folder: Path, compressor: Compressor) -> None:
    vectors = np.random.default_rng(0).normal(size=(CHECKED_VECTORS, compressor.input_dimension)).astype(np.float32)
    vectors[-1] = 0
    example = [torch.from_numpy(vectors)]
    _write_graph(folder / COMPRESSOR_GRAPH, _CompressorGraph(compressor).eval(), example, ["vectors"], axes=1)
    expected = compressor.compress(example[0]).numpy()
    for rows in (CHECKED_VECTORS, 1):
        _check_graph(folder / COMPRESSOR_GRAPH, {"vectors": vectors[:rows]}, expected[:rows])


def _write_graph(file: Path, module: nn.Module, example: list[torch.Tensor], names: list[str], axes: int) -> None:
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


def _check_graph(file: Path, fed: dict[str, Any], expected: FloatArray) -> None:
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
