"""Writes vectors to a .npy or .parquet file that appears whole or not at all."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.types import AnyArray
from twinsqueeze.utils.signals import check_interrupted, defer_signals

SUFFIXES = (".npy", ".parquet")
COLUMN = "vector"
METADATA_KEY = "twinsqueeze"
ROW_GROUP_SIZE = 65_536


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise an `InputError` if a file can't be written there."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"output {str(path)!r} ends in neither {' nor '.join(SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"output {str(path)!r} is a folder: name a file")
    if path.exists() and not overwrite:
        raise InputError(f"output {str(path)!r} exists: name another file, or pass --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"output {str(path)!r} would be in a folder that does not exist: create it first")


def check_space(path: Path, num_bytes: int) -> None:
    """Raise an `InputError` if the output's disk has less than `num_bytes` bytes left."""
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes:
        needed = f"needs {num_bytes / 1e6:,.0f} MB, and its disk has {free / 1e6:,.0f} MB left"
        raise InputError(f"output {str(path)!r} {needed}: free some space, or name another disk")


@contextmanager
def atomic_array_writer(
    path: Path, dtype: np.dtype[Any], width: int, metadata: Mapping[str, Any]
) -> Iterator[Callable[[AnyArray], None]]:
    """Yield a function that appends (n, width) rows to NAME.part, which becomes the output if no error is raised.

    Args:
        path: The output, which `check_output` has accepted.
        dtype: Type of the rows' numbers.
        width: Numbers per row.
        metadata: Description of the rows, for .parquet files.

    Raises:
        InputError: If the output can't be written, or another process is writing it.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        with _open_locked(partial, path) as file:
            rows = (_ParquetRows if path.suffix == ".parquet" else _NpyRows)(file, dtype, width, metadata)
            yield rows.append
            rows.finish()
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    except OSError as error:
        raise InputError(f"output {str(path)!r} can't be written: {error.strerror or one_line(error)}") from error


@contextmanager
def _open_locked(partial: Path, output: Path) -> Iterator[IO[bytes]]:
    """Open an empty file that no other process has open, and delete it if an error is raised."""
    with defer_signals(then_stop=False):  # a signal between opening and locking would leave the file
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        is_locked = _lock(file, partial)
    if not is_locked:
        file.close()
        raise InputError(f"{output} is being written by another process: wait for it, or name another file")
    try:
        check_interrupted()
        file.truncate()
        yield file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):  # from rows that do not fit on the disk
            file.close()


def _lock(file: IO[bytes], path: Path) -> bool:
    """Lock a file unless another process holds it, or has renamed it before it released the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


class _NpyRows:
    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], width: int, metadata: Mapping[str, Any]) -> None:
        del metadata
        self._file, self._dtype, self._width = file, dtype, width
        self._num_rows = 0
        self._write_header()

    def _write_header(self) -> None:
        """Write a header, which NumPy makes of the same length for any number of rows."""
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, header | {"shape": (self._num_rows, self._width)})

    def append(self, rows: AnyArray) -> None:
        self._file.write(np.ascontiguousarray(rows).data)
        self._num_rows += len(rows)

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()


class _ParquetRows:
    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], width: int, metadata: Mapping[str, Any]) -> None:
        self._type = pa.list_(pa.field("element", pa.from_numpy_dtype(dtype), nullable=False), width)
        self._schema = pa.schema([pa.field(COLUMN, self._type, nullable=False)], {METADATA_KEY: json.dumps(metadata)})
        # Parquet has no numbers of one byte. As indices of a dictionary of all 256, they take one byte.
        use_dictionary = dtype.itemsize == 1
        self._writer = pq.ParquetWriter(file, self._schema, compression="none", use_dictionary=use_dictionary)
        self._row_group: list[AnyArray] = []

    def append(self, rows: AnyArray) -> None:
        self._row_group.append(rows)
        if sum(map(len, self._row_group)) >= ROW_GROUP_SIZE:
            self._write_row_group()

    def _write_row_group(self) -> None:
        values = pa.array(np.concatenate(self._row_group).reshape(-1))
        array = pa.FixedSizeListArray.from_arrays(values, type=self._type)
        self._writer.write_batch(pa.record_batch([array], schema=self._schema))
        self._row_group = []

    def finish(self) -> None:
        if self._row_group:
            self._write_row_group()
        self._writer.close()
