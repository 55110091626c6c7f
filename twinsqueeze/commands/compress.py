"""The job compress: vectors or texts of any number in, compressed vectors out."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch

import twinsqueeze
from twinsqueeze.errors import InputError
from twinsqueeze.inference.compression import TextCompressor, VectorCompressor
from twinsqueeze.inference.readers import AUTO, Block, RowReader, open_reader
from twinsqueeze.inference.writers import AtomicArrayWriter, check_output, check_space
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.model.precision import PRECISIONS, check_precision, quantize, storage_dtype
from twinsqueeze.registry import model_loader
from twinsqueeze.tracking.run import env_run_id, start_run
from twinsqueeze.utils import console
from twinsqueeze.utils.device import resolve_device
from twinsqueeze.utils.files import expand_user
from twinsqueeze.utils.signals import Interrupted, check_interrupted
from twinsqueeze.utils.text import escape_markdown
from twinsqueeze.utils.threads import map_threaded

# Rows in a block: vectors that a core's cache holds, texts that an encoder sorts by length.
VECTORS_A_BLOCK = 4096
TEXTS_A_BLOCK = 1024


def compress(
    given: str,
    model: str,
    output: Path,
    *,
    precision: str = AUTO,
    format: str = AUTO,  # noqa: A002 - the option's name
    column: str | None = None,
    encoder: str | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Compresses the vectors or texts of a file and writes them to another.

    Args:
        given: The file, or "-" for standard input.
        model: A run's id, a model's URI or a folder.
        output: A .npy or .parquet file, row i of which belongs to row i of the input.
        precision: float32, int8, product, binary or ubinary; auto for what the model was trained as.
        format: As for `open_reader`.
        column: As for `open_reader`.
        encoder: What turns texts into vectors; None for the one that the model was trained with.
        device: Where texts are encoded: auto, cpu or cuda.
        resume: Whether to go on where the same command was interrupted, if it was.
        overwrite: Whether an output that is there is replaced.

    Raises:
        InputError: If something that the user gave can't be used.
    """
    output = expand_user(output)
    check_output(output, overwrite=overwrite)
    if precision not in {AUTO, *PRECISIONS}:
        check_precision(precision, None, None, model)
    where = resolve_device(device)
    source = open_reader(given, format, column)
    if source.path and output.exists() and output.samefile(source.path):
        raise InputError(f"output {str(output)!r} is the input: name another file")
    if resume and source.path is None:
        raise InputError("standard input can't be read again from where it was: resume needs a file")
    with _run(f"compress-{Path(given).name}") as describe:
        found = model_loader.resolve_model(model)
        compressor, origin = read_checkpoint(found.checkpoint, model)
        ranges = origin.int8_ranges if origin else None
        precision = compressor.precision if precision == AUTO else precision
        check_precision(precision, ranges, compressor.codebooks, model)
        texts = None
        if source.texts:
            texts = model_loader.load_sentence_transformer_for(model, found, encoder_name=encoder, device=where.type)
            if encoder and origin and texts[1] != origin.encoder_fingerprint:
                console.warn(f"encoder {encoder!r} is not the one that the model was trained with")
        if source.dimension not in {None, compressor.input_dimension}:
            raise InputError(
                f"model {model!r} compresses vectors of {compressor.input_dimension} numbers, and those of "
                f"{source.name} have {source.dimension}: name the model that was trained for them"
            )
        dtype, width = storage_dtype(precision, compressor.dim, compressor.part)
        if source.rows:
            check_space(output, source.rows * width * dtype.itemsize)
        made_of = {
            "input": str(source.path and source.path.resolve()),
            "size or date of the input": _file_stat(source.path),
            "format": source.format,
            "column": column,
            "model": hashlib.sha256(found.checkpoint.read_bytes()).hexdigest(),
            "encoder": texts and texts[1],
            "precision": precision,
            "version of twinsqueeze": twinsqueeze.__version__,
        }
        writing = AtomicArrayWriter(output, dtype, width, made_of, resume=resume)
        _log_start(source, writing, resume)
        quantize(np.zeros((1, compressor.dim), np.float32), precision, ranges, compressor.codebooks)  # imports, untimed
        before, started = writing.rows, time.monotonic()
        with _discard_on_error(writing, source):
            if texts:
                _compress_texts(source, TextCompressor(texts[0], precision, ranges, compressor.codebooks), writing)
            else:
                _compress_vectors(source, VectorCompressor(compressor, precision, ranges), writing)
            writing.finish({"model": model, "precision": precision, "dim": compressor.dim, "int8_ranges": ranges})
        rate = (writing.rows - before) / (time.monotonic() - started)
        kind = ("text" if source.texts else "vector") + ("" if writing.rows == 1 else "s")
        sentence = (
            f"{writing.rows:,} {kind} of {source.name} compressed to {compressor.dim} numbers at {precision}, "
            f"{writing.row_bytes} bytes each: {output}"
        )
        describe(escape_markdown(sentence))
        console.print_result(f"{sentence} ({rate:,.0f} a second)")


@contextmanager
def _run(name: str) -> Iterator[Callable[[str], None]]:
    """The run that `mlflow run` made, if it did; this command makes none. Yields what describes it."""
    if env_run_id():
        with start_run(name, "compression") as run:
            yield run.set_description
    else:
        yield lambda _: None


def _file_stat(path: Path | None) -> list[int]:
    """What changes when a file does."""
    if path is None:
        return []
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _log_start(source: RowReader, writing: AtomicArrayWriter, resume: bool) -> None:
    if source.cast:
        console.info(f"{source.name} holds {source.cast} numbers, which are cast to float32")
    if resume:
        begun = "what was begun is damaged" if writing.damaged else "nothing was begun"
        console.info(f"going on behind {writing.rows:,} rows" if writing.rows else f"{begun}: all is done now")
    elif writing.left_over:
        console.info(f"an interrupted command left {writing.left_over:,} rows, which are made again without resume")


@contextmanager
def _discard_on_error(writing: AtomicArrayWriter, source: RowReader) -> Iterator[None]:
    """What is left of the output when something goes wrong: what can be gone on from, and nothing else."""
    try:
        yield
    except InputError:
        writing.discard()
        raise
    except BaseException as error:
        if source.path is None:
            writing.discard()
        else:
            writing.keep()
            if isinstance(error, Interrupted):
                console.info(f"{writing.rows:,} rows are kept: the same command with --resume goes on behind them")
        raise


def _compress_vectors(source: RowReader, convert: VectorCompressor, writing: AtomicArrayWriter) -> None:
    def handle(block: Block) -> int:
        rows = convert(np.asarray(block.load()), source.name, block.first)
        writing.write(block.first, rows)
        return block.first + len(rows)

    # A thread for each core, each of which runs all layers on its own block.
    with closing(
        map_threaded(source.blocks(VECTORS_A_BLOCK, writing.rows), handle, torch.get_num_threads())
    ) as results:
        _track_progress(results, source, writing)


def _compress_texts(source: RowReader, convert: TextCompressor, writing: AtomicArrayWriter) -> None:
    def handle(block: Block) -> int:
        rows = convert(list(block.load()))
        writing.write(block.first, rows)
        return block.first + len(rows)

    _track_progress(((block, handle(block)) for block in source.blocks(TEXTS_A_BLOCK, writing.rows)), source, writing)
    if convert.cut:
        what = "1 text was" if convert.cut == 1 else f"{convert.cut:,} texts were"
        console.warn(f"{what} cut at the {convert.limit} tokens that the encoder looks at")


def _track_progress(results: Iterable[tuple[Block, int]], source: RowReader, writing: AtomicArrayWriter) -> None:
    """Takes note of blocks as they are written, in their order, with the number of the row behind each."""
    with console.progress("compressing", source.unit) as advance:
        for block, end in results:
            check_interrupted()
            writing.reach(end)
            advance(block.position, source.total, {})
