"""Writes vectors to a .npy, .parquet or .faiss file that appears whole or not at all."""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.model.faiss_index import FaissIndex
from twinsqueeze.types import AnyArray

INDEX_SUFFIX = ".faiss"
SUFFIXES = (".npy", ".parquet", INDEX_SUFFIX)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise an `InputError` if a file can't be written there."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"output {str(path)!r} ends in none of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"output {str(path)!r} is a folder: name a file")
    if path.exists() and not overwrite:
        raise InputError(f"output {str(path)!r} exists: name another file, or pass --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"output {str(path)!r} would be in a folder that does not exist: create it first")


def write_blocks(
    path: Path, blocks: Iterator[AnyArray], metadata: Mapping[str, Any], index: FaissIndex | None = None
) -> int:
    """Write blocks of (n, width) rows, at least one, to NAME.part, which becomes the output; return the number of rows.

    .parquet files have the metadata; .faiss files are the empty index with the rows. An `InputError` if another process
    writes the output, or it can't be written.
    """
    partial, lock = path.with_name(f"{path.name}.part"), path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock, blocking=False):
            try:
                with partial.open("wb") as file:
                    if index:
                        num_rows = _write_index(file, blocks, index)
                    elif path.suffix == ".parquet":
                        num_rows = _write_parquet(file, blocks, metadata)
                    else:
                        num_rows = _write_npy(file, blocks)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
                return num_rows
            finally:
                partial.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise InputError(f"{path} is being written by another process: wait for it, or name another file") from error
    except OSError as error:
        raise InputError(f"output {str(path)!r} can't be written: {error.strerror or one_line(error)}") from error


def _write_index(file: IO[bytes], blocks: Iterator[AnyArray], index: FaissIndex) -> int:
    for codes in blocks:
        index.add(codes)
    return index.write(file)


def _write_npy(file: IO[bytes], blocks: Iterator[AnyArray]) -> int:
    """Write rows behind a header without their number, then the header again: NumPy gives both the same length."""
    first = next(blocks)
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, header | {"shape": (0, first.shape[1])})
    num_rows = 0
    for rows in chain([first], blocks):
        file.write(np.ascontiguousarray(rows).data)
        num_rows += len(rows)
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header | {"shape": (num_rows, first.shape[1])})
    return num_rows


def _write_parquet(file: IO[bytes], blocks: Iterator[AnyArray], metadata: Mapping[str, Any]) -> int:
    first = next(blocks)
    blocks = chain([first], blocks)
    type_ = pa.list_(pa.field("element", pa.from_numpy_dtype(first.dtype), nullable=False), first.shape[1])
    schema = pa.schema([pa.field("vector", type_, nullable=False)], {"twinsqueeze": json.dumps(metadata)})
    # Parquet has no numbers of one byte. As indices of a dictionary of all 256, they take one byte.
    use_dictionary = first.dtype.itemsize == 1
    num_rows = 0
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=use_dictionary) as writer:
        while row_group := list(islice(blocks, 16)):
            values = pa.array(np.concatenate(row_group).reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(values, type=type_)
            writer.write_batch(pa.record_batch([vectors], schema=schema))
            num_rows += len(vectors)
    return num_rows
