"""A file of vectors that appears whole or not at all, and can be gone on with after an interruption."""

import fcntl
import io
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.types import AnyArray
from twinsqueeze.utils.signals import defer_signals

SUFFIXES = (".npy", ".parquet")
COLUMN = "vector"
METADATA = "twinsqueeze"
JOURNAL_SECONDS = 5.0
SENT_BYTES = 1 << 24
# Rows that are turned from .npy to .parquet at a time, a row group each.
PARQUET_ROWS = 65_536


class AtomicArrayWriter:
    """A .npy or .parquet file in the making.

    Rows are gathered in NAME.part, a .npy array whatever the output is to be, and NAME.part.json says every few seconds
    how many of them are safe, their CRC-32 and what they were made of. Both are gone when the output is there.

    Args:
        path: What appears in the end; `check_output` has seen it.
        dtype: Of the numbers.
        width: Numbers, or packed bytes, in a row.
        made_of: What the rows follow from; only rows that were made of the same are gone on from.
        resume: Whether to go on behind the rows that an interrupted command left.

    Attributes:
        rows: How many are there.
        left_over: How many an interrupted command left that are now made again, since `resume` was not asked for.
        damaged: Whether those to be gone on from are not what was written, so that they are made again.

    Raises:
        InputError: If the folder can't be written to, another process writes the same output, or what was left was made
            of something else.
    """

    def __init__(self, path: Path, dtype: Any, width: int, made_of: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.width = width
        self.made_of = json.loads(json.dumps(made_of))
        self.part = path.with_name(f"{path.name}.part")
        self.journal = path.with_name(f"{path.name}.part.json")
        self._parquet = path.with_name(f"{path.name}.part.parquet")
        self.rows = 0
        self.left_over = 0
        self.damaged = False
        self._crc32 = 0
        self._start = len(self._header())
        with self._writing():
            self._file = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock()
            self._begin(resume)
        except InputError:
            os.close(self._file)
            raise
        self._sent = self._end()
        self._noted = time.monotonic()

    @property
    def row_bytes(self) -> int:
        """Of a row."""
        return int(self.width * self.dtype.itemsize)

    def _header(self) -> bytes:
        """For the rows that are there; NumPy makes it of the same length for any number of them."""
        description = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, description | {"shape": (self.rows, self.width)})
        return header.getvalue()

    def _end(self) -> int:
        """Where the rows that are there end in the file."""
        return self._start + self.rows * self.row_bytes

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(self._file), self.part.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise InputError(f"{self.path} is being written by another process: wait for it, or name another")

    def _begin(self, resume: bool) -> None:
        left = self._left()
        if left and resume:
            others = [name for name, value in self.made_of.items() if left["made_of"].get(name) != value]
            if others:
                raise InputError(
                    f"{self.part} was begun with another {', '.join(others)}: give what it was begun with, or start "
                    "again without resume"
                )
            self.damaged = self._checksum(self._start, left["end"], 0) != left["crc32"]
            if not self.damaged:
                self.rows, self._crc32 = left["rows"], left["crc32"]
        elif left:
            self.left_over = left["rows"]
        with self._writing():
            if not self.rows:
                self.journal.unlink(missing_ok=True)  # before what it speaks of is gone
            self._write(self._header(), 0)
            os.ftruncate(self._file, self._end())

    def _left(self) -> dict[str, Any] | None:
        """What an interrupted command left, if its rows are all there."""
        try:
            left: dict[str, Any] = json.loads(self.journal.read_text())
            whole = os.fstat(self._file).st_size >= left["end"]
        except (OSError, ValueError, KeyError):
            return None
        return left if whole and left["rows"] and "crc32" in left else None

    def write(self, first: int, rows: AnyArray) -> None:
        """Writes rows to their place; may be called in several threads, in any order.

        Args:
            first: The number of the first.
            rows: (N, width) of the output's type.

        Raises:
            InputError: If they can't be written.
        """
        with self._writing():
            self._write(np.ascontiguousarray(rows).data.cast("B"), self._start + first * self.row_bytes)

    def _write(self, content: memoryview | bytes, place: int) -> None:
        while content:
            done = os.pwrite(self._file, content, place)
            content = content[done:]
            place += done

    def reach(self, rows: int) -> None:
        """Counts on the first `rows` rows, which have all been written, and says so in the journal now and then."""
        with self._writing():
            before, self.rows = self._end(), rows
            self._crc32 = self._checksum(before, self._end(), self._crc32)
        if hasattr(os, "posix_fadvise") and (length := self._end() - self._sent) > SENT_BYTES:
            # Linux begins to write to the disk, and nobody waits for it at the end.
            os.posix_fadvise(self._file, self._sent, length, os.POSIX_FADV_DONTNEED)
            self._sent += length
        if time.monotonic() - self._noted > JOURNAL_SECONDS:
            self.note()

    def _checksum(self, start: int, end: int, before: int) -> int:
        """CRC-32 of the file between two places, going on from that of what stands before."""
        while start < end and (content := os.pread(self._file, min(SENT_BYTES, end - start), start)):
            before = zlib.crc32(content, before)
            start += len(content)
        return before

    def note(self) -> None:
        """Makes the rows safe that are there, and says so in the journal."""
        with defer_signals(then_stop=True), self._writing():
            os.fsync(self._file)
            new = self.journal.with_suffix(".new")
            journal = {"rows": self.rows, "end": self._end(), "crc32": self._crc32, "made_of": self.made_of}
            new.write_text(json.dumps(journal))
            new.replace(self.journal)
        self._noted = time.monotonic()

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Lets the output appear.

        Args:
            metadata: What a .parquet file says of its rows, under the key "twinsqueeze".

        Raises:
            InputError: If it can't be written.
        """
        with self._writing():
            if self.path.suffix == ".parquet":
                made = self._make_parquet(metadata)
            else:
                made = self.part
                self._write(self._header(), 0)
                os.fsync(self._file)
            with defer_signals(then_stop=True):
                made.replace(self.path)
                self.discard()

    def _make_parquet(self, metadata: Mapping[str, Any]) -> Path:
        import pyarrow as pa  # noqa: PLC0415 - takes half a second to import
        import pyarrow.parquet as pq  # noqa: PLC0415 - takes half a second to import

        # Parquet has no number of one byte; of the 256 that there are it makes a dictionary, whose places take one
        dictionary = self.dtype.itemsize == 1
        kind = pa.list_(pa.field("element", pa.from_numpy_dtype(self.dtype), nullable=False), self.width)
        schema = pa.schema([pa.field(COLUMN, kind, nullable=False)], {METADATA: json.dumps(metadata)})
        rows = np.memmap(self.part, self.dtype, "r", self._start, (self.rows, self.width))
        with self._parquet.open("wb") as file:  # Python's own file says what is wrong with it in errno
            with pq.ParquetWriter(file, schema, compression="none", use_dictionary=dictionary) as writer:
                for first in range(0, self.rows, PARQUET_ROWS):
                    values = pa.array(rows[first : first + PARQUET_ROWS].reshape(-1))
                    array = pa.FixedSizeListArray.from_arrays(values, type=kind)
                    writer.write_batch(pa.record_batch([array], schema=schema))
            file.flush()
            os.fsync(file.fileno())
        return self._parquet

    def keep(self) -> None:
        """Leaves the rows that are there to be gone on from."""
        with defer_signals(then_stop=False):
            self.note()
            os.close(self._file)

    def discard(self) -> None:
        """Leaves nothing of the making behind."""
        for path in (self.part, self.journal, self.journal.with_suffix(".new"), self._parquet):
            path.unlink(missing_ok=True)
        os.close(self._file)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            written = f" (after {self.rows:,} rows)" if self.rows else ""
            reason = error.strerror or one_line(error)
            raise InputError(f"output {str(self.path)!r} can't be written{written}: {reason}") from error


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuses a path that no output can appear at.

    Raises:
        InputError: If its format is unknown, something is there and not to be overwritten, or there is no such folder.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"output {str(path)!r} ends in neither {' nor '.join(SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"output {str(path)!r} is a folder: name a file")
    if path.exists() and not overwrite:
        raise InputError(f"output {str(path)!r} is there already: name another, or ask for overwrite")
    if not path.parent.is_dir():
        raise InputError(f"output {str(path)!r} would be in a folder that is not there: make it first")


def check_space(path: Path, more: int) -> None:
    """Refuses to begin what the disk can't hold.

    Args:
        path: Of the output.
        more: Bytes that are still to be written; a .parquet file takes them twice while it is made.

    Raises:
        InputError: If there is less.
    """
    needed = more * (2 if path.suffix == ".parquet" else 1)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise InputError(
            f"output {str(path)!r} needs {needed / 1e6:,.0f} MB, and its disk has {free / 1e6:,.0f} MB left: make "
            "room, or name another disk"
        )
