"""The command export: writes a model's files for use without MLflow and without this package."""

import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.inference.compression import load_compressor
from twinsqueeze.model.faiss_index import check_index_support
from twinsqueeze.model.onnx import check_onnx_installed, export_compressor, export_text_model
from twinsqueeze.model.sentence_transformer import describe_text_model
from twinsqueeze.registry.model_card import render_model_card
from twinsqueeze.registry.model_loader import ResolvedModel, load_sentence_transformer_for, resolve_model
from twinsqueeze.tracking.model_files import CARD_FILE
from twinsqueeze.tracking.run import env_run_id, start_run
from twinsqueeze.utils import console, signals
from twinsqueeze.utils.files import CHECKPOINT_FILE, check_writable, expand_user, make_dir
from twinsqueeze.utils.text import escape_markdown

FORMATS = ("folder", "safetensors", "onnx", "faiss")
INDEX_FILE = "index.faiss"


def export(
    model: str,
    output: Path,
    *,
    format: str = "folder",  # noqa: A002 - option
    precision: str = "auto",
    overwrite: bool = False,
) -> None:
    """Write a model, its compressor's checkpoint and its model card to a folder; on an error nothing is written.

    The format is "folder" for a sentence-transformers model, "safetensors" for the compressor, "onnx" for both as ONNX
    graphs, or "faiss" for an empty FAISS index, whose `precision` is "auto" for that of the training. The output is a
    new or empty folder, or with `overwrite` an earlier export.
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    if format != "faiss" and precision != "auto":
        raise InputError(f"precision is for format faiss: format {format} has float32 vectors")
    if format == "onnx":
        check_onnx_installed()
    output = expand_user(output).resolve()
    _check_output(output, overwrite)
    resolved = resolve_model(model)
    try:
        # A sibling of the output: renaming moves no data.
        with make_dir(output.parent), tempfile.TemporaryDirectory(dir=output.parent, prefix=".") as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            _write_files(new, model, resolved, format, precision)
            with signals.defer_signals(then_stop=False):
                if output.is_dir():
                    output.replace(Path(temporary, "old"))
                new.replace(output)
    except (OSError, SafetensorError) as error:
        raise InputError(f"output {str(output)!r} can't be written: {one_line(error)}") from error
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    console.print_result(f"Exported to {output}: {', '.join(files)}.")
    if env_run_id():  # under `mlflow run`
        with start_run("export", "export") as run:
            run.set_description(escape_markdown(f"Exported model {model} to {output} ({format})."))


def _check_output(output: Path, overwrite: bool) -> None:
    try:
        if output.exists() and not output.is_dir():
            raise InputError(f"output {str(output)!r} is a file: name a folder")
        is_empty = not output.exists() or not any(output.iterdir())
        if not is_empty and not overwrite:
            raise InputError(f"output {str(output)!r} is not empty: name another folder, or give --overwrite true")
        if not is_empty and not (output / CHECKPOINT_FILE).is_file():  # protects other folders from a mistyped path
            raise InputError(f"output {str(output)!r} is not an earlier export: only exports are overwritten")
        check_writable(output.parent)
    except OSError as error:
        raise InputError(f"output {str(output)!r} can't be written to: {error.strerror}") from error


def _write_files(folder: Path, model: str, resolved: ResolvedModel, format: str, precision: str) -> None:  # noqa: A002
    loaded, metadata = load_compressor(resolved.checkpoint, model, precision)
    compressor, text_model = loaded.network, None
    if format == "faiss":
        check_index_support(compressor, "none", model)
        with (folder / INDEX_FILE).open("wb") as file:
            loaded.build_index().write(file)
    elif format != "safetensors":
        sentence_transformer, _ = load_sentence_transformer_for(model, resolved)
        text_model = describe_text_model(sentence_transformer)
        if format == "folder":
            sentence_transformer.save(str(folder), create_model_card=False)
        else:
            export_text_model(folder, sentence_transformer)
            export_compressor(folder, compressor)
    shutil.copyfile(resolved.checkpoint, folder / CHECKPOINT_FILE)
    if resolved.model_card:
        shutil.copyfile(resolved.model_card, folder / CARD_FILE)
    elif metadata:
        card = render_model_card(metadata, compressor.input_dim, text_model, run_id=resolved.run_id)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
