"""The same as `compress` on a Spark DataFrame of vectors or texts, on as many machines as Spark has.

What runs on Spark's workers imports neither MLflow nor, for vectors, sentence-transformers. The compressor goes there
as a broadcast, a text model as an archive that is unpacked once a machine; each worker process loads it once.
"""

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from safetensors.torch import load

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.inference.compression import TextCompressor, VectorCompressor
from twinsqueeze.inference.readers import arrow_vectors
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import Int8Ranges, check_precision, storage_dtype
from twinsqueeze.model.sentence_transformer import load_sentence_transformer
from twinsqueeze.types import AnyArray

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

    from twinsqueeze.registry.model_loader import ResolvedModel

COLUMN = "compressed"
FORMATS = ("parquet", "json", "csv", "text", "orc")
# What Spark names no exception of ours by, but prints in the traceback of a worker.
OURS = f"{InputError.__module__}.{InputError.__name__}: "


@dataclass(frozen=True)
class _Work:
    """What a worker needs; the same for all.

    Attributes:
        column: What is compressed.
        output_column: What the result is called.
        weights: The compressor's file.
        precision: As for `quantise`.
        ranges: As for `quantise`.
        archive: Of the text model, by the name that Spark knows it under; None for vectors.
    """

    column: str
    output_column: str
    weights: bytes
    precision: str
    ranges: Int8Ranges | None
    archive: str | None


def compress_frame(
    frame: "DataFrame",
    model: str,
    *,
    column: str | None = None,
    precision: str | None = None,
    output_column: str = COLUMN,
) -> "DataFrame":
    """The frame with a column of compressed vectors; lazily, as Spark does everything.

    Args:
        frame: With a column of arrays of numbers, or one of texts.
        model: A run's id, a model's URI or a folder; found and read by the driver alone.
        column: What to compress; None for the only column of arrays, or else the only one of texts.
        precision: float32, int8, product or binary; Spark has no unsigned bytes for ubinary. None for what the model
            was trained as.
        output_column: What the new column is called: arrays of float or byte, or of short for product codes, which are
            0 to 255.

    Raises:
        InputError: If something that was given can't be used. What is wrong with a row shows when Spark comes to it, as
            Spark's own exception around an `InputError`.
    """
    from pyspark.sql import types  # noqa: PLC0415 - an extra

    from twinsqueeze.model.checkpoint import read_checkpoint  # noqa: PLC0415 - nor this
    from twinsqueeze.registry import model_loader  # noqa: PLC0415 - a worker needs no MLflow

    found = model_loader.resolve_model(model)
    compressor, origin = read_checkpoint(found.checkpoint, model)
    ranges = origin.int8_ranges if origin else None
    if precision == "ubinary":
        raise InputError("Spark has no unsigned bytes: choose binary, the same bits as signed ones")
    precision = precision or compressor.precision
    check_precision(precision, ranges, compressor.codebooks, model)
    if output_column in frame.columns:
        raise InputError(f"the frame has a column {output_column!r} already: name another output_column")
    column, texts = _column(frame, column)
    archive = _send_text_model(frame.sparkSession, found, model) if texts else None
    work = frame.sparkSession.sparkContext.broadcast(
        _Work(column, output_column, found.checkpoint.read_bytes(), precision, ranges, archive)
    )

    def compress_batches(batches: "Iterator[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        from pyspark import TaskContext  # noqa: PLC0415 - an extra

        context = TaskContext.get()
        assert context
        torch.set_num_threads(max(int(context.cpus()), 1))
        return _compress_batches(work.value, f"partition {context.partitionId()}", batches)

    kinds = {np.int8: types.ByteType(), np.uint8: types.ShortType(), np.float32: types.FloatType()}
    numbers = kinds[storage_dtype(precision, compressor.dim, compressor.part)[0].type]
    field = types.StructField(output_column, types.ArrayType(numbers, containsNull=False), nullable=False)
    return frame.mapInArrow(compress_batches, types.StructType([*frame.schema.fields, field]))


def _column(frame: "DataFrame", column: str | None) -> tuple[str, bool]:
    """The column to compress, and whether it holds texts."""
    from pyspark.sql.types import ArrayType, NumericType, StringType  # noqa: PLC0415 - an extra

    kinds = {field.name: field.dataType for field in frame.schema.fields}
    vectors = [
        name
        for name, kind in kinds.items()
        if isinstance(kind, ArrayType) and isinstance(kind.elementType, NumericType)
    ]
    texts = [name for name, kind in kinds.items() if isinstance(kind, StringType)]
    there = ", ".join(list(kinds)[:10])
    if column is None:
        candidates = vectors or texts
        if len(candidates) != 1:
            many = f"has more than one column that can be meant, {', '.join(candidates[:10])}"
            none = f"has neither texts nor arrays of numbers; its columns are {there}"
            raise InputError(f"the frame {many if candidates else none}: name one")
        column = candidates[0]
    elif column not in kinds:
        raise InputError(f"the frame has no column {column!r}; its columns are {there}")
    elif column not in vectors and column not in texts:
        raise InputError(f"column {column!r} of the frame is {kinds[column].simpleString()}, neither texts nor numbers")
    return column, column in texts


def _send_text_model(
    session: "SparkSession",
    found: "ResolvedModel",
    model: str,
) -> str:
    """Makes the text model known to Spark's workers, and returns the name that they know it under."""
    from twinsqueeze.registry.model_loader import load_sentence_transformer_for  # noqa: PLC0415 - for texts alone

    name = f"twinsqueeze-{hashlib.sha256(found.checkpoint.read_bytes()).hexdigest()[:16]}"
    temporary = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)  # the driver serves the archive as long as it lives
    folder = found.sentence_transformer
    if folder is None:
        folder = Path(temporary, "model")
        load_sentence_transformer_for(model, found)[0].save(str(folder), create_model_card=False)
    archive = shutil.make_archive(str(Path(temporary, name)), "zip", folder)
    session.sparkContext.addArchive(archive)
    return Path(archive).name


@lru_cache(maxsize=4)
def _converter(work: _Work) -> Callable[[Any, str, int], AnyArray]:
    """What turns an Arrow array into compressed vectors; made once a worker process."""
    compressor = CompressorNetwork.from_state_dict(load(work.weights))
    if work.archive:
        from pyspark import SparkFiles  # noqa: PLC0415 - an extra

        of_texts = TextCompressor(
            load_sentence_transformer(Path(SparkFiles.get(work.archive)), "cpu"),
            work.precision,
            work.ranges,
            compressor.codebooks,
        )

        def convert_texts(array: Any, where: str, first: int) -> AnyArray:
            if array.null_count:
                place = array.is_null().to_pylist().index(True)
                raise InputError(f"row {first + place} of {where} is missing: mend it or leave it out")
            return of_texts(array.to_pylist())

        return convert_texts
    of_vectors = VectorCompressor(compressor, work.precision, work.ranges)

    def convert_vectors(array: Any, where: str, first: int) -> AnyArray:
        vectors, bad = arrow_vectors(array)
        if bad is None and vectors.shape[1] != compressor.input_dimension:
            bad = 0
        if bad is not None:
            raise InputError(f"row {first + bad} of {where} is no array of {compressor.input_dimension} numbers")
        return of_vectors(vectors, where, first)

    return convert_vectors


def _compress_batches(work: _Work, where: str, batches: "Iterator[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa  # noqa: PLC0415 - comes with it

    convert = _converter(work)
    first = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        rows = convert(batch.column(work.column), where, first)
        if rows.dtype == np.uint8:
            rows = rows.astype(np.int16)  # Spark has no unsigned bytes
        first += len(rows)
        kind = pa.list_(pa.field("element", pa.from_numpy_dtype(rows.dtype), nullable=False))
        places = pa.array(np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32))
        array = pa.ListArray.from_arrays(places, pa.array(rows.reshape(-1)), type=kind)
        yield pa.RecordBatch.from_arrays([*batch.columns, array], names=[*batch.schema.names, work.output_column])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--input", "given", required=True, metavar="PATH", help="Files that Spark reads, in any storage it knows."
)
@click.option("--model", required=True, metavar="MODEL", help="A run's id, a model's URI or a folder of the driver's.")
@click.option("--output", required=True, metavar="PATH", help="A folder that Spark fills with .parquet files.")
@click.option(
    "--format", "form", default="parquet", show_default=True, type=click.Choice(FORMATS), help="Of the input."
)
@click.option("--column", metavar="NAME", help="What to compress.  [default: the only column that it can be]")
@click.option(
    "--precision",
    metavar="NAME",
    help="float32, int8, product or binary.  [default: what the model was trained as]",
)
@click.option("--overwrite", default=False, show_default=True, type=bool, help="Replace an output that is there.")
def main(
    given: str, model: str, output: str, form: str, column: str | None, precision: str | None, overwrite: bool
) -> None:
    """Compress what Spark reads, and write it with a column of compressed vectors in place of the given ones.

    Texts stay beside their vectors.
    """
    from py4j.protocol import Py4JJavaError  # noqa: PLC0415 - an extra
    from pyspark.errors import PySparkException  # noqa: PLC0415 - an extra
    from pyspark.sql import SparkSession  # noqa: PLC0415 - an extra

    session = SparkSession.builder.appName("twinsqueeze compress").getOrCreate()
    try:
        options = {"header": "true", "multiLine": "true", "escape": '"'} if form == "csv" else {}
        frame = session.read.format(form).options(**options).load(given)
        column, texts = _column(frame, column)
        compressed = compress_frame(frame, model, column=column, precision=precision)
        kept = compressed if texts else compressed.drop(column)
        kept.write.mode("overwrite" if overwrite else "error").parquet(output)
    except (InputError, PySparkException, Py4JJavaError) as error:
        raise click.ClickException(_line(error)) from error
    finally:
        session.stop()


def _line(error: Exception) -> str:
    """What went wrong: our own words, where a worker said them, without Spark's around them."""
    text = str(error)
    return one_line(text.rpartition(OURS)[2].partition("\n")[0] if OURS in text else text)
