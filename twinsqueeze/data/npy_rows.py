"""Reads the rows of .npy files, from a file or from a stream."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinsqueeze.data.table_files import OpenedFile
from twinsqueeze.errors import InputError, one_line, truncate_repr
from twinsqueeze.types import AnyArray


@dataclass(frozen=True)
class NpyRows:
    """Rows of a .npy file, read when NumPy makes an array of them: by the thread that compresses them, for speed."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, int]
    offset: int

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        """Return the rows, (n, d); an `InputError` if the file has become shorter."""
        try:
            return np.fromfile(self.path, self.dtype, math.prod(self.shape), offset=self.offset).reshape(self.shape)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} has changed while it was read: {one_line(error)}") from error


class NpyTable:
    """An open .npy file of (n, d) numbers; `path` is None if it must be read from the beginning to the end."""

    def __init__(self, opened: OpenedFile) -> None:
        self.name, self._stream = opened.file.name, opened.stream
        self._path = opened.file.path if opened.stream is opened.raw else None
        version = np.lib.format.read_magic(self._stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, self._fortran_order, self._dtype = read_header(self._stream)
        if self._dtype.kind not in "fiu" or len(shape) != 2 or min(shape) < 1:
            found = f"an array of {self._dtype.name} values and of shape {truncate_repr(shape)}"
            raise InputError(f"{self.name} is {found}: vectors must be the rows of an array of numbers, (n, d)")
        if self._fortran_order and self._path is None:
            raise InputError(f"{self.name} is in Fortran order, which can only be read from a plain file: name it")
        self.num_rows, self._dim = shape
        self._row_bytes = self._dim * self._dtype.itemsize
        self._start = self._stream.tell() if self._path else 0
        missing = self.num_rows * self._row_bytes - (self._path.stat().st_size - self._start if self._path else 0)
        if self._path and missing:
            less_or_more = "fewer" if missing > 0 else "more"
            raise ValueError(f"it has {less_or_more} than the {truncate_repr(self.num_rows)} rows of its header")

    def batches(self, size: int) -> Iterator[AnyArray | NpyRows]:
        """Yield all rows; an `InputError` if the header claims more than the memory holds."""
        for first_row in range(0, self.num_rows, size):
            end = min(first_row + size, self.num_rows)
            if self._path is None:
                yield self._read(end - first_row)
                if end == self.num_rows and self._stream.read(1):
                    raise ValueError(f"it has more than the {self.num_rows} rows of its header")
            elif self._fortran_order:
                # A mapping per batch: all pages that were read through one count as used memory until it is closed.
                yield np.load(self._path, mmap_mode="r")[first_row:end]
            else:
                start = self._start + first_row * self._row_bytes
                yield NpyRows(self._path, self._dtype, (end - first_row, self._dim), start)

    def _read(self, num_rows: int) -> AnyArray:
        try:
            content = self._stream.read(num_rows * self._row_bytes)
        except (MemoryError, OverflowError) as error:  # the header of an array may claim any size
            raise InputError(f"the vectors of {self.name} are too large to read") from error
        return np.frombuffer(content, self._dtype).reshape(num_rows, self._dim)
