"""Reads vectors and texts from files and standard input, block by block: memory does not grow with their number."""

import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from twinsqueeze.errors import InputError, one_line, truncate_repr
from twinsqueeze.inference.columns import TEXTS, VECTORS, arrow_kinds, arrow_values, format_columns, select_column
from twinsqueeze.types import AnyArray
from twinsqueeze.utils.files import expand_user, is_dir, is_file

STANDARD_INPUT = "-"
FORMATS = ("npy", "parquet", "csv", "jsonl", "txt")
MEGABYTE = 1_000_000
# Vectors that fit into the cache of a core, and texts that the encoder sorts by length.
BLOCK_SIZES = {VECTORS: 4096, TEXTS: 1024}


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


class Block(NamedTuple):
    """Consecutive rows of an input: (n, d) numbers or n texts, where d and the kind are those of the first block."""

    first_row: int  # counted from 0
    rows: AnyArray | NpyRows | list[str]
    position: int  # how much of the input has been read
    total: int | None  # the size of the input; None if unknown
    unit: str = "row"  # of position and total, row or MB


def read_blocks(source: str, format_: str = "auto", column: str | None = None) -> Iterator[Block]:
    """Yield the rows of a file, or of standard input ("-"), in order, at least one block; bad input is an `InputError`.

    The format "auto" is the suffix of the file; on standard input it is npy or txt, by its content. `column` is one of
    .parquet or .csv, or a key of .jsonl objects; None is the only possible one.
    """
    path = None if source == STANDARD_INPUT else expand_user(source)
    name = source if path else "standard input"
    if format_ not in ("auto", *FORMATS):
        raise InputError(f"format must be one of auto, {', '.join(FORMATS)}, not {format_!r}")
    if path and not is_file(path):
        raise InputError(f"input {source!r} is {'a folder' if is_dir(path) else 'not there'}: name a file")
    stream = _open(source, path)
    format_ = _detect_format(source, path, stream) if format_ == "auto" else format_
    try:
        if format_ == "npy":
            blocks = _read_npy(name, column, stream, path)
        elif format_ == "parquet":
            blocks = _read_parquet(name, column, path)
        else:
            blocks = _read_lines(name, column, stream, format_, path)
        first = next(blocks, None)
        if first is None:
            raise InputError(f"{name} is empty: it has no rows")
        yield first
        yield from blocks
    except InputError:
        raise
    except MemoryError as error:  # the header of an array may claim any size
        raise InputError(f"the vectors of {name} are too large to read") from error
    except Exception as error:  # NumPy and Arrow raise errors of many types
        raise InputError(f"{name} is damaged, truncated or not a .{format_} file: {one_line(error)}") from error


def _open(source: str, path: Path | None) -> Any:
    try:
        stream: Any = path.open("rb") if path else sys.stdin.buffer
        if not stream.peek(1):
            raise InputError(f"input {source!r} is empty")
    except OSError as error:
        raise InputError(f"input {source!r} can't be read: {error.strerror or one_line(error)}") from error
    return stream


def _detect_format(source: str, path: Path | None, stream: Any) -> str:
    if path is None:
        return "npy" if stream.peek(6).startswith(b"\x93NUMPY") else "txt"
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise InputError(f"input {source!r} ends in none of .{', .'.join(FORMATS)}: name its format")
    return suffix


def _read_npy(name: str, column: str | None, stream: Any, path: Path | None) -> Iterator[Block]:
    if column is not None:
        raise InputError(f"{name} is a .npy array, which has no column {column!r}")
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(stream)
    if dtype.kind not in "fiu" or len(shape) != 2 or min(shape) < 1:
        found = f"an array of {dtype.name} values and of shape {truncate_repr(shape)}"
        raise InputError(f"{name} is {found}: vectors must be the rows of an array of numbers, (n, d)")
    if fortran_order and path is None:
        raise InputError(f"{name} is in Fortran order, which can only be read from a file: name it")
    num_rows, dim = shape
    start, row_bytes = stream.tell() if path else 0, dim * dtype.itemsize
    if path and path.stat().st_size - start < num_rows * row_bytes:
        raise ValueError(f"it has fewer than the {truncate_repr(num_rows)} rows of its header")
    for first_row in range(0, num_rows, BLOCK_SIZES[VECTORS]):
        end = min(first_row + BLOCK_SIZES[VECTORS], num_rows)
        rows: AnyArray | NpyRows
        if path is None:
            content = stream.read((end - first_row) * row_bytes)
            rows = np.frombuffer(content, dtype).reshape(end - first_row, dim)
        elif fortran_order:
            # A mapping per block: all pages that were read through one count as used memory until it is closed.
            rows = np.load(path, mmap_mode="r")[first_row:end]
        else:
            rows = NpyRows(path, dtype, (end - first_row, dim), start + first_row * row_bytes)
        yield Block(first_row, rows, end, num_rows)


def _read_parquet(name: str, column: str | None, path: Path | None) -> Iterator[Block]:
    if path is None:
        raise InputError("a .parquet file can't be read from standard input: name the file")
    # Without a buffer Arrow reads whole row groups, and one may be the whole file.
    file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    kinds = arrow_kinds(file.schema_arrow)
    column = select_column(name, kinds, column)
    first_row, dim = 0, None
    for batch in file.iter_batches(BLOCK_SIZES[kinds[column]], columns=[column], use_threads=False):
        rows = arrow_values(batch.column(0), dim, name, first_row)
        dim = None if isinstance(rows, list) else rows.shape[1]
        yield Block(first_row, rows, first_row + len(rows), file.metadata.num_rows)
        first_row += len(rows)


def _read_lines(name: str, column: str | None, stream: Any, format_: str, path: Path | None) -> Iterator[Block]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="" if format_ == "csv" else "\n")
    parse = {"csv": _parse_csv, "jsonl": _parse_jsonl, "txt": _parse_txt}[format_]
    values = _check_values(name, format_, parse(name, text, column))
    total = -(-path.stat().st_size // MEGABYTE) if path else None
    first_row = 0
    while values_of_block := list(islice(values, BLOCK_SIZES[TEXTS])):
        rows = values_of_block if isinstance(values_of_block[0], str) else np.array(values_of_block)
        end = first_row + len(rows)
        position, unit = (-(-stream.tell() // MEGABYTE), "MB") if path else (end, "row")
        yield Block(first_row, rows, position, total, unit)
        first_row = end


def _check_values(name: str, format_: str, values: Iterator[Any]) -> Iterator[Any]:
    """Yield the values, which must be texts, or vectors as long as the first."""
    row, shape = 0, None
    try:
        for value in values:
            shape = np.shape(value) if row == 0 else shape
            if np.shape(value) != shape:
                expected = f"a list of {shape[0]} numbers" if shape else "a text"
                raise InputError(f"row {row} of {name} is not {expected}, unlike the rows before it")
            yield value
            row += 1
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 (after row {row}): save it as UTF-8") from error
    except (csv.Error, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"row {row} of {name} can't be read as {format_}: {one_line(error)}") from error


def _parse_txt(name: str, text: io.TextIOWrapper, column: str | None) -> Iterator[str]:
    if column is not None:
        raise InputError(f"{name} has one text per line and no column {column!r}")
    for line in text:
        yield line.removesuffix("\n").removesuffix("\r")


def _parse_jsonl(name: str, text: io.TextIOWrapper, column: str | None) -> Iterator[Any]:
    kinds: dict[type, str] = {list: VECTORS, str: TEXTS}
    for line in text:
        if not line.strip():
            continue
        value = json.loads(line)
        if isinstance(value, dict):
            column = column or select_column(name, {k: kinds.get(type(v), "other") for k, v in value.items()}, None)
            if column not in value:
                raise ValueError(f"no {column!r} among {format_columns(value)}")
            value = value[column]
        if isinstance(value, str):
            value.encode()  # raises for half of a surrogate pair, which tokenizers refuse
            yield value
        elif isinstance(value, list) and value and all(type(number) in {int, float} for number in value):
            yield _to_vector(value)
        else:
            raise ValueError(f"{truncate_repr(value)} is neither a text nor a list of numbers")


def _parse_csv(name: str, text: io.TextIOWrapper, column: str | None) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)
    lines: Iterator[list[str]] = (cells for cells in csv.reader(text, strict=True) if cells)
    header = next(lines, [])
    if column is None and _are_numbers(header):  # as numpy.savetxt writes: no header
        lines = chain([header], lines)
    elif column is not None and column not in header:
        raise InputError(f"{name} has no column {column!r}; its columns are {format_columns(header)}")
    for row, cells in enumerate(lines):
        if row == 0 and column is None and not _are_numbers(cells):
            texts = {c: "number" if _are_numbers([cell]) else TEXTS for c, cell in zip(header, cells, strict=False)}
            column = select_column(name, texts, None)
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} cells, and the first line has {len(header)}")
        yield _to_vector(cells) if column is None else cells[header.index(column)]


def _are_numbers(cells: Sequence[str]) -> bool:
    try:
        return len(_to_vector(cells)) > 0
    except ValueError:
        return False


def _to_vector(numbers: Sequence[float] | Sequence[str]) -> AnyArray:
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
        return np.array(numbers, np.float32)
