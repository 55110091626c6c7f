"""Compresses a column of a Spark DataFrame, to the same bits as the command `compress`."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from pyspark import SparkFiles, TaskContext
from pyspark.sql import DataFrame, types
from pyspark.sql.pandas.types import from_arrow_type, to_arrow_schema

from twinsqueeze.data.embedding import encode_texts
from twinsqueeze.data.encoder import BatchEncoder, SentenceEncoder
from twinsqueeze.data.table_columns import NUMBERS, TEXTS, VECTORS, RowConverter, arrow_types, select_columns
from twinsqueeze.errors import InputError
from twinsqueeze.inference.compression import VectorCompressor, load_compressor
from twinsqueeze.registry.model_loader import load_sentence_transformer_for, resolve_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def compress_frame(
    frame: DataFrame, model: str, *, column: str | None = None, precision: str = "auto", output: str = "compressed"
) -> DataFrame:
    """Return the frame with a column `output` of compressed vectors; Spark computes it when it is needed.

    The driver reads the model: a run's id, a URI or a folder. `column` has arrays of numbers or texts; None is the only
    such one. `precision` is float32, int8, product (as 16-bit integers) or binary; auto is that of the training.
    """
    resolved = resolve_model(model)
    compressor, _ = load_compressor(resolved.checkpoint, model, precision)
    if compressor.precision == "ubinary":
        raise InputError("Spark has no unsigned bytes: choose binary, which has the same bits")
    if output in frame.columns:
        raise InputError(f"the frame already has a column {output!r}: choose another output")
    column, kind = select_frame_column(frame, column)
    archive = None
    if kind == TEXTS:
        folder = Path(tempfile.mkdtemp(prefix="twinsqueeze-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the driver serves the archive as long as it runs
        load_sentence_transformer_for(model, resolved)[0].save(str(folder / "model"), create_model_card=False)
        archive = shutil.make_archive(str(folder / folder.name), "zip", folder / "model")
        frame.sparkSession.sparkContext.addArchive(archive)
    compress = partial(
        compress_batches, compressor=compressor, column=column, output=output, archive=archive and Path(archive).name
    )
    field = types.StructField(output, types.ArrayType(from_arrow_type(_arrow_type(compressor.precision))))
    return frame.mapInArrow(compress, types.StructType([*frame.schema.fields, field]))


def select_frame_column(frame: DataFrame, column: str | None) -> tuple[str, str]:
    """Return the column to compress and its kind."""
    types = arrow_types(to_arrow_schema(frame.schema))
    selection = select_columns("the frame", types, column)
    if selection.kind == NUMBERS:
        raise InputError(f"{selection.description}: make them one column by array() first")
    return selection.columns[0], selection.kind


def compress_batches(
    batches: Iterator[pa.RecordBatch], compressor: VectorCompressor, column: str, output: str, archive: str | None
) -> Iterator[pa.RecordBatch]:
    """Yield a partition's batches with the compressed vectors; `archive` names the text model, None for vectors."""
    torch.set_num_threads(1)  # as in each thread of the command
    context = TaskContext.get()
    name, first_row = f"partition {context.partitionId() if context else 0}", 0
    for batch in batches:
        if not batch.num_rows:
            continue
        kind = TEXTS if archive else VECTORS
        values = RowConverter(name, kind, compressor.network.input_dim).from_arrow([batch[column]], first_row)
        if isinstance(values, list):
            model = _load_model(str(archive))
            rows = compressor.quantize(encode_texts(BatchEncoder(model), values))
        else:
            rows = compressor.compress(values, name, first_row)
        first_row += batch.num_rows
        yield batch.append_column(output, pa.array(list(rows), pa.list_(_arrow_type(compressor.precision))))


def _arrow_type(precision: str) -> pa.DataType:
    """Type of the compressed numbers; product codes take 16 bits, since Spark has no unsigned bytes."""
    return {"float32": pa.float32(), "product": pa.int16()}.get(precision, pa.int8())


@cache
def _load_model(archive: str) -> "SentenceTransformer":
    return SentenceEncoder(archive, Path(SparkFiles.get(archive)), device="cpu").load_model()
