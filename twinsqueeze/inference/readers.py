"""Vectors and texts in files and on standard input, read block by block: memory does not grow with their number.

A row is a vector of a .npy array, a value of a .parquet column, a record of a .csv, .jsonl or .txt file. Rows are
counted from 0, as NumPy counts them.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.errors import truncate_repr as _short
from twinsqueeze.types import AnyArray
from twinsqueeze.utils.files import expand_user, is_dir, is_file
from twinsqueeze.utils.text import escape_control_chars

Rows = AnyArray | list[str]
AUTO = "auto"
STANDARD_INPUT = "-"
FORMATS = ("npy", "parquet", "csv", "jsonl", "txt")
NPY_MAGIC = b"\x93NUMPY"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Block:
    """Some rows that follow each other.

    Attributes:
        first: The number of the first.
        position: How much of the source is read with them, in the source's unit.
        load: Gives (n, d) float32 or n texts; may be called in another thread, once.
    """

    first: int
    position: int
    load: Callable[[], Rows]


@dataclass(frozen=True)
class RowReader:
    """Where rows come from.

    Attributes:
        name: As users call it.
        path: The file; None for standard input.
        format: One of `FORMATS`.
        texts: Whether the rows are texts; vectors otherwise.
        dimension: Numbers in a vector; None for texts.
        rows: How many there are, where that is known beforehand.
        total: How much there is to read, in the unit; None where that is not known.
        unit: What positions are counted in: row or MB.
        cast: The numbers' type where it is not float32, which they are cast to.
        blocks: Gives blocks of at most so many rows, from a row on that was the first of a block of that size before.
            Asked once.
    """

    name: str
    path: Path | None
    format: str
    texts: bool
    dimension: int | None
    rows: int | None
    total: int | None
    unit: str
    cast: str | None
    blocks: Callable[[int, int], Iterator[Block]]


def open_reader(given: str, format_: str = AUTO, column: str | None = None) -> RowReader:
    """Opens a file or standard input and finds out what is in it.

    Args:
        given: A path, or "-" for standard input.
        format_: One of `FORMATS`; "auto" for what the file's name ends in, on standard input for .npy where it begins
            like one and for a text a line elsewhere.
        column: Of a .parquet or .csv file, or a key of .jsonl objects; None for the only one that it can be.

    Raises:
        InputError: If it can't be read, is empty or truncated, or holds neither vectors nor texts.
    """
    if format_ not in (AUTO, *FORMATS):
        raise InputError(f"format must be one of auto, {', '.join(FORMATS)}, not {format_!r}")
    if given == STANDARD_INPUT:
        return _from_standard_input(format_, column)
    path = expand_user(given)
    if not is_file(path):
        raise InputError(f"input {given!r} is {'a folder' if is_dir(path) else 'not there'}: name a file")
    if format_ == AUTO:
        format_ = path.suffix.removeprefix(".").lower()
        if format_ not in FORMATS:
            raise InputError(f"input {given!r} ends in none of .{', .'.join(FORMATS)}: name its format")
    try:
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"input {given!r} is empty")
        if format_ == "parquet":
            return _parquet(given, path, column)
        stream = path.open("rb")
        if format_ == "npy":
            return _npy(given, path, stream, column)
        return _lines(given, path, stream, format_, column, size)
    except OSError as error:
        raise InputError(f"input {given!r} can't be read: {error.strerror or one_line(error)}") from error


def _from_standard_input(format_: str, column: str | None) -> RowReader:
    name = "standard input"
    stream: Any = sys.stdin.buffer
    if not stream.peek(1):
        raise InputError("standard input is empty")
    if format_ == AUTO:
        format_ = "npy" if stream.peek(len(NPY_MAGIC)).startswith(NPY_MAGIC) else "txt"
    if format_ == "parquet":
        raise InputError("a .parquet file is read from its end, which standard input does not have: name the file")
    if format_ == "npy":
        return _npy(name, None, stream, column)
    return _lines(name, None, stream, format_, column, None)


def _npy(name: str, path: Path | None, stream: BinaryIO, column: str | None) -> RowReader:
    if column is not None:
        raise InputError(f"{name} is a .npy array, which has no column {column!r}")
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
    except OSError:
        raise
    except Exception as error:  # of a header that is no Python, NumPy lets whatever its parsers raise through
        raise InputError(f"{name} is no .npy array, or a truncated one: {one_line(error)}") from error
    if dtype.kind not in "fiu":
        raise InputError(f"{name} holds {dtype.name} values, where vectors are numbers")
    if len(shape) != 2:
        raise InputError(f"{name} is an array of shape {_short(shape)}, where vectors are the rows of a table: (N, d)")
    rows, dimension = shape
    if rows < 1 or dimension < 1:
        raise InputError(f"{name} is empty: its shape is {_short(shape)}")
    if fortran_order and not path:
        raise InputError(f"{name} lies column by column (Fortran order), which needs a file to read rows from: name it")
    row_bytes = dimension * dtype.itemsize
    start = 0
    if path:
        start = stream.tell()
        there = (path.stat().st_size - start) // row_bytes
        if there < rows:
            raise InputError(f"{name} is truncated: its header says {_short(rows)} rows, and {there:,} are there")

    mapped = np.load(path, mmap_mode="r") if path and fortran_order else None

    def load(first: int, count: int) -> AnyArray:
        if mapped is not None:
            return _float32(np.ascontiguousarray(mapped[first : first + count]))
        try:
            array = np.empty((count, dimension), dtype)
        except (MemoryError, ValueError) as error:  # standard input has no size to hold its header against
            raise InputError(f"{name} has vectors of {_short(dimension)} numbers, too large to read") from error
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            got = (
                os.preadv(stream.fileno(), [view[done:]], start + first * row_bytes + done)
                if path
                else stream.readinto(view[done:])  # type: ignore[attr-defined]
            )
            if not got:
                there = first + done // row_bytes
                raise InputError(f"{name} is truncated: its header says {rows:,} rows, and {there:,} are there")
            done += got
        return _float32(array)

    def blocks(size: int, begin: int) -> Iterator[Block]:
        for first in range(begin, rows, size):
            count = min(size, rows - first)
            if path:
                yield Block(first, first + count, lambda first=first, count=count: load(first, count))  # type: ignore[misc]
            else:
                yield _loaded_block(first, first + count, load(first, count))

    return RowReader(name, path, "npy", False, dimension, rows, rows, "row", _cast(dtype), blocks)


def _loaded_block(first: int, position: int, rows: Rows) -> Block:
    return Block(first, position, lambda: rows)


def _cast(dtype: Any) -> str | None:
    native = np.dtype(dtype).newbyteorder("=")
    return None if native == np.float32 else native.name


def _float32(array: AnyArray) -> AnyArray:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
        return array.astype(np.float32, copy=False)


def _parquet(name: str, path: Path, column: str | None) -> RowReader:
    import pyarrow as pa  # noqa: PLC0415 - takes half a second to import
    import pyarrow.parquet as pq  # noqa: PLC0415 - takes half a second to import

    def number(kind: Any) -> bool:
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))

    def vectors(kind: Any) -> bool:
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        return any(is_list(kind) for is_list in lists) and number(kind.value_type)

    def text(kind: Any) -> bool:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    broken = (pa.ArrowException, OSError, ValueError, OverflowError)  # ValueError: text that is not UTF-8
    try:
        # Not the whole of a row group at once, which may be the whole file.
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        kinds = {field.name: field.type for field in file.schema_arrow}
    except broken as error:
        raise InputError(f"{name} is no .parquet file, or a truncated one: {one_line(error)}") from error
    if column is None:
        column = _infer_column(
            name, [c for c in kinds if vectors(kinds[c])], [c for c in kinds if text(kinds[c])], list(kinds)
        )
    elif column not in kinds:
        raise InputError(f"{name} has no column {column!r}; its columns are {_format_columns(kinds)}")
    kind = kinds[column]
    texts = text(kind)
    if not texts and not vectors(kind):
        raise InputError(f"column {column!r} of {name} is {kind}, neither texts nor lists of numbers")
    rows = file.metadata.num_rows
    if not rows:
        raise InputError(f"{name} is empty: it has no rows")

    def read(size: int, begin: int) -> Iterator[tuple[int, Any]]:
        first = 0
        for group in range(file.num_row_groups):
            if first + (group_rows := file.metadata.row_group(group).num_rows) <= begin:
                first += group_rows
                continue
            for batch in file.iter_batches(size, row_groups=[group], columns=[column], use_threads=False):
                if first >= begin:
                    yield first, batch.column(0)
                first += len(batch)

    def first_length() -> int:
        for first, array in read(1, 0):
            return len(_arrow_vectors(name, first, array, None)[0])
        raise InputError(f"{name} is damaged: it has no rows, where it says that it has")

    def blocks(size: int, begin: int) -> Iterator[Block]:
        try:
            for first, array in read(size, begin):
                rows = _arrow_texts(name, first, array) if texts else _arrow_vectors(name, first, array, dimension)
                yield _loaded_block(first, first + len(array), rows)
        except InputError:
            raise
        except broken as error:
            raise InputError(f"{name} is damaged: {one_line(error)}") from error

    try:
        dimension = None if texts else first_length()
    except InputError:
        raise
    except broken as error:
        raise InputError(f"{name} is damaged: {one_line(error)}") from error
    cast = None if texts else _cast(kind.value_type.to_pandas_dtype())
    return RowReader(name, path, "parquet", texts, dimension, rows, rows, "row", cast, blocks)


def _arrow_texts(name: str, first: int, array: Any) -> list[str]:
    values: list[str] = array.to_pylist()
    if array.null_count:
        raise InputError(f"row {first + values.index(None)} of {name} is missing")  # type: ignore[arg-type]
    return values


def arrow_vectors(array: Any) -> tuple[AnyArray, int | None]:
    """Vectors of an Arrow array of lists.

    Returns:
        (N, d) float32, and the place of the first list that is missing, lacks a number or is not as long as the first;
        None if all are whole.
    """
    import pyarrow.compute as pc  # noqa: PLC0415 - takes half a second to import

    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), -1))
    bad = (lengths != lengths[0]) | (lengths <= 0)
    if not bad.any():
        values = array.flatten()
        if not values.null_count:
            return _float32(values.to_numpy(zero_copy_only=False).reshape(len(lengths), -1)), None
        bad = np.asarray(pc.is_null(values)).reshape(len(lengths), -1).any(1)
    return np.empty((0, 0), np.float32), int(np.argmax(bad))


def _arrow_vectors(name: str, first: int, array: Any, dimension: int | None) -> AnyArray:
    found, bad = arrow_vectors(array)
    if bad is None and dimension not in {None, found.shape[1]}:
        bad = 0
    if bad is not None:
        expected = f"{dimension} numbers" if dimension else "numbers"
        raise InputError(f"row {first + bad} of {name} is no list of {expected}")
    return found


def _infer_column(name: str, vectors: Sequence[str], texts: Sequence[str], columns: Sequence[str]) -> str:
    """The column that is meant where none is named: the one with vectors, or else the one with texts."""
    for candidates in (vectors, texts):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise InputError(
                f"{name} has more than one column that can be meant, {_format_columns(candidates)}: name one"
            )
    raise InputError(f"{name} has neither texts nor lists of numbers; its columns are {_format_columns(columns)}")


def _format_columns(columns: Any) -> str:
    return escape_control_chars(", ".join(list(columns)[:10]))[:200]


class _Counted(io.RawIOBase):
    """A binary stream that knows how much of it was read."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        got: int = self.stream.readinto1(buffer)
        self.count += got
        return got


def _lines(
    name: str, path: Path | None, stream: BinaryIO, format_: str, column: str | None, size: int | None
) -> RowReader:
    counted = _Counted(stream)
    text = io.TextIOWrapper(
        io.BufferedReader(counted, 1 << 20), encoding="utf-8-sig", newline="" if format_ == "csv" else "\n"
    )
    values = {"csv": _csv_values, "jsonl": _jsonl_values, "txt": _txt_values}[format_](name, text, column)
    values = _readable(name, format_, values)
    head = list(islice(values, 1))
    if not head:
        raise InputError(f"{name} is empty: it has no rows")
    texts = isinstance(head[0], str)
    dimension = None if texts else len(head[0])

    def megabytes(count: int) -> int:
        return -(-count // MEGABYTE)

    def blocks(count: int, begin: int) -> Iterator[Block]:
        first = 0
        rows = head
        while rows := [*rows, *islice(values, count - len(rows))]:
            if first >= begin:
                yield _loaded_block(first, megabytes(counted.count), _checked(name, first, rows, dimension))
            first += len(rows)
            rows = []

    total = None if size is None else megabytes(size)
    return RowReader(name, path, format_, texts, dimension, None, total, "MB", None, blocks)


def _readable(name: str, format_: str, values: Iterator[Any]) -> Iterator[Any]:
    """The values, with what is wrong in the file said in a line."""
    row = 0
    try:
        for value in values:
            yield value
            row += 1
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 (after row {row}): save it as UTF-8") from error
    except (csv.Error, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"row {row} of {name} can't be read as {format_}: {one_line(error)}") from error


def _checked(name: str, first: int, rows: list[Any], dimension: int | None) -> Rows:
    """A block's values as texts or vectors; all of the kind and length of the source's first."""
    for i, value in enumerate(rows):
        if dimension is None and not isinstance(value, str):
            raise InputError(f"row {first + i} of {name} is no text, as the rows before it are")
        if dimension is not None and (isinstance(value, str) or len(value) != dimension):
            raise InputError(f"row {first + i} of {name} is no list of {dimension} numbers, as the rows before it are")
    return rows if dimension is None else _float32(np.array(rows))


def _txt_values(name: str, text: io.TextIOWrapper, column: str | None) -> Iterator[str]:
    if column is not None:
        raise InputError(f"{name} has a text a line, and no column {column!r}")
    for line in text:
        yield line.removesuffix("\n").removesuffix("\r")


def _jsonl_values(name: str, text: io.TextIOWrapper, column: str | None) -> Iterator[Any]:
    key = column
    for line in text:
        if not line.strip():
            continue
        value = json.loads(line)
        if isinstance(value, dict):
            if key is None:
                lists = [k for k, v in value.items() if isinstance(v, list)]
                key = _infer_column(name, lists, [k for k, v in value.items() if isinstance(v, str)], list(value))
            if key not in value:
                raise ValueError(f"no {key!r} among {_format_columns(value)}")
            value = value[key]
        if isinstance(value, list):
            if not value or not all(type(number) in {int, float} for number in value):
                raise ValueError("a list that is not of numbers")
            value = np.array(value, np.float64)
        elif isinstance(value, str):
            value.encode()  # half a surrogate pair is no text, which an encoder would trip over
        else:
            raise ValueError(f"{type(value).__name__}, neither a text nor a list of numbers")
        yield value


def _csv_values(name: str, text: io.TextIOWrapper, column: str | None) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)  # a text may be of any length
    lines = (cells for cells in csv.reader(text, strict=True) if cells)
    header = next(lines, None)
    if header is None:
        return
    rows = lines
    if column is None and _all_numbers(header):  # as numpy.savetxt writes them
        rows = (cells for part in ([header], lines) for cells in part)
    elif column is not None and column not in header:
        raise InputError(f"{name} has no column {column!r}; its columns are {_format_columns(header)}")
    first = next(rows, None)
    if first is None:
        return
    if column is None and not _all_numbers(first):
        texts = [c for c, cell in zip(header, first, strict=False) if not _all_numbers([cell])]
        column = _infer_column(name, [], texts, header)
    place = None if column is None else header.index(column)
    for cells in (cells for part in ([first], rows) for cells in part):
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} cells, where the first line has {len(header)}")
        yield np.array(cells, np.float64) if place is None else cells[place]


def _all_numbers(cells: Sequence[str]) -> bool:
    try:
        np.array(cells).astype(np.float64)
    except ValueError:
        return False
    return bool(cells)
