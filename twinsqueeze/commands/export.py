"""The job export: a model as files that need neither MLflow nor this package."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.model.checkpoint import Provenance, read_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.registry import model_loader
from twinsqueeze.registry.model_card import render_model_card
from twinsqueeze.registry.model_loader import ResolvedModel
from twinsqueeze.tracking.run import env_run_id, start_run
from twinsqueeze.tracking.run_logger import CARD_FILE
from twinsqueeze.utils import console, signals
from twinsqueeze.utils.files import CHECKPOINT_FILE, expand_user
from twinsqueeze.utils.text import escape_markdown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
from twinsqueeze.model.onnx import check_onnx_installed, write_compressor_graph, write_text_graph

FORMATS = ("folder", "safetensors", "onnx")


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
        check_onnx_installed()
    output = expand_user(output).resolve()
    _check_output(output, overwrite)
    found = model_loader.resolve_model(model)
    compressor, provenance = read_checkpoint(found.checkpoint, model)
    text = model_loader.load_sentence_transformer_for(model, found)[0] if format != "safetensors" else None
    try:
        # Beside the output, so that one rename puts it in place.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
            made = Path(temporary, "made")
            made.mkdir()
            if text and format == "folder":
                text.save(str(made), create_model_card=False)
            elif text:
                write_text_graph(made, text)
                write_compressor_graph(made, compressor)
            shutil.copyfile(found.checkpoint, made / CHECKPOINT_FILE)
            if card := _card(found, compressor, provenance, text):
                (made / CARD_FILE).write_text(card, encoding="utf-8")
            _replace_dir(made, output, Path(temporary, "before"))
    except (OSError, SafetensorError) as error:
        raise InputError(f"output {str(output)!r} can't be written: {one_line(error)}") from error
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    console.print_result(f"Written to {output}: {', '.join(files)}.")
    if env_run_id():  # `mlflow run` has made one, which should say what it was for
        with start_run("export", "export") as run:
            run.set_description(escape_markdown(f"Wrote model {model} to {output} ({format})."))


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


def _card(
    found: ResolvedModel,
    compressor: CompressorNetwork,
    provenance: Provenance | None,
    text: "SentenceTransformer | None",
) -> str | None:
    if found.model_card:
        return found.model_card.read_text(encoding="utf-8")
    if provenance is None:
        return None
    longest = text.max_seq_length if text else None
    return render_model_card(provenance, compressor.input_dimension, longest=longest, run_id=found.run_id)


def _replace_dir(made: Path, output: Path, before: Path) -> None:
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
