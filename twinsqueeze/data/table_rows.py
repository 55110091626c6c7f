"""Reads rows of tables batch by batch, and only the columns that are asked for: .csv, .tsv, .jsonl, .txt and .parquet.

Types are never inferred from all rows: cells stay texts, JSON values what they are, and Parquet has types of its own.
"""

import csv
import json
import sys
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, chain, islice
from operator import itemgetter
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from twinsqueeze.data.npy_rows import NpyTable
from twinsqueeze.data.table_columns import TEXTS, UNNAMED, ColumnType, arrow_types, check_scalars, python_type, unwrap
from twinsqueeze.data.table_files import OpenedFile, TableFile, open_file
from twinsqueeze.data.table_headers import Quoting, has_header, separator_in_cells, tsv_is_quoted
from twinsqueeze.errors import InputError, one_line
from twinsqueeze.utils.text import escape_control_chars

MEGABYTE = 1_000_000
SAMPLE_ROWS = 100  # the kinds of columns are taken from these
LARGE_BATCH = 65_536
BUFFER_SIZE = 1 << 20  # bytes, of all columns of a .parquet file together


class Batch(NamedTuple):
    """Consecutive rows of some columns: rows of Python values, or one Arrow array per column."""

    rows: Sequence[Sequence[Any]]
    arrays: Sequence[Any]  # () if there are rows
    position: int  # how much of the file has been read
    total: int | None  # the size of the file; None if unknown
    unit: str  # of position and total, row or MB


@contextmanager
def open_table(
    file: TableFile, *, header: bool | None = None, first_row: int = 0
) -> Iterator["ParquetTable | TextTable | NpyTable"]:
    """Open a table; errors inside become an `InputError` that names the file and the row.

    Args:
        file: A file of any format.
        header: Whether the first line of a .csv or .tsv has the columns' names; None: decide by its content.
        first_row: Number of the first row in messages.
    """
    opened = open_file(file)
    try:
        if opened.format == "npy":
            yield NpyTable(opened)
        elif opened.format == "parquet":
            yield ParquetTable(opened)
        else:
            yield TextTable(opened, header, first_row)
    except InputError:
        raise
    except Exception as error:  # Arrow and gzip raise errors of many types
        text = f"{file.name} is damaged, truncated or not a .{opened.format} file: {one_line(error)}"
        raise InputError(text) from error
    finally:
        opened.close()


def read_columns(files: Sequence[TableFile], choose: Callable[[Sequence[str], str], Sequence[str]]) -> list[list[Any]]:
    """Return some columns of all files as Python values.

    `choose` returns the columns' names; it gets all names of a file, and how the file is called in messages.
    """
    columns: list[list[Any]] = []
    for file in files:
        with open_table(file, header=True, first_row=1) as table:
            assert not isinstance(table, NpyTable)
            names = choose(table.names, file.name)
            if isinstance(table, ParquetTable):
                check_scalars(table.name, table.schema, names)
            columns = columns or [[] for _ in names]
            for batch in table.batches(names, LARGE_BATCH):
                values = [unwrap(array).to_pylist() for array in batch.arrays] or zip(*batch.rows, strict=True)
                for column, more in zip(columns, values, strict=True):
                    column.extend(more)
    return columns


class ParquetTable:
    """Rows of a .parquet file, as Arrow arrays."""

    header_note = None

    def __init__(self, opened: OpenedFile) -> None:
        self.name, path = opened.file.name, opened.file.path
        if path is None or opened.stream is not opened.raw:
            where = "standard input" if path is None else "gzip"
            raise InputError(f"a .parquet file can't be read from {where}: name the file as it is")
        metadata = pq.read_metadata(path)
        buffer_size = max(BUFFER_SIZE // max(metadata.num_columns, 1), 1 << 14)
        # Without a buffer Arrow reads whole row groups, and one may be the whole file.
        self._file = pq.ParquetFile(path, metadata=metadata, buffer_size=buffer_size, pre_buffer=False)
        self.schema = self._file.schema_arrow
        self.names: list[str] = self.schema.names
        self.is_empty = metadata.num_rows == 0

    def types(self, column: str | None = None) -> dict[str, ColumnType]:
        """Return the types of the columns; if one is named, the others' may be less exact."""
        types = arrow_types(self.schema)
        texts = [c for c in types if types[c].kind == TEXTS and column in (None, c)]
        for batch in islice(self._batches(texts, SAMPLE_ROWS), 1):
            for name in texts:
                sampled = python_type(unwrap(_column(batch, name)).to_pylist())
                types[name] = sampled if sampled.kind != types[name].kind and sampled.name != "empty" else types[name]
        return types

    def batches(self, columns: Sequence[str], size: int) -> Iterator[Batch]:
        """Yield all rows of some columns."""
        _check_unique(self.name, self.names, columns)
        num_read, num_rows = 0, self._file.metadata.num_rows
        try:
            for batch in self._batches(columns, size):
                num_read += batch.num_rows
                yield Batch((), [_column(batch, name) for name in columns], num_read, num_rows, "row")
        except pa.ArrowInvalid as error:
            raise self._locate(error, columns, num_read) from error

    def _locate(self, error: Exception, columns: Sequence[str], num_read: int) -> Exception:
        """Return an `InputError` that names the first row after `num_read` that Arrow can't read.

        Such rows are missing ones in columns of fixed-size lists, and in those that DuckDB writes of arrays.
        """
        metadata = self._file.metadata
        ends = list(accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))
        first = bisect(ends, num_read)  # row group; the error may be in a later one
        groups = list(range(first, metadata.num_row_groups))
        for column in columns:
            row = ends[first - 1] if first else 0
            try:
                for _ in self._file.iter_batches(1, row_groups=groups, columns=[column], use_threads=False):
                    row += 1
            except pa.ArrowInvalid:
                type_ = self.types(column)[column].name
                where = f"row {row} of {self.name} is missing or damaged in column {column!r}, {type_}"
                return InputError(f"{where}: {one_line(error)}")
        return error

    def _batches(self, columns: Sequence[str], size: int) -> Iterator[Any]:
        if columns:
            yield from self._file.iter_batches(size, columns=list(columns), use_threads=False)


def _column(batch: Any, name: str) -> Any:
    return batch.column(batch.schema.names.index(name))


class TextTable:
    """Rows of a .csv, .tsv, .jsonl or .txt file. The kinds of its columns are those of the first rows."""

    def __init__(self, opened: OpenedFile, header: bool | None, first_row: int) -> None:
        self.name, self._opened, self._row = opened.file.name, opened, first_row
        self.header_note: str | None = None
        self._has_cells = opened.format in ("csv", "tsv")
        self._text = opened.text(newline="" if self._has_cells else "\n")
        if self._has_cells:
            self._open_cells(header)
        else:
            parse = _parse_jsonl if opened.format == "jsonl" else _parse_txt
            self._rows = self._count_rows(parse(self._text))
            self.names = list(dict.fromkeys(name for row in self._sample for name in row))

    @cached_property
    def _sample(self) -> list[Any]:
        sample = list(islice(self._rows, SAMPLE_ROWS))
        self._rows = chain(sample, self._rows)
        return sample

    @property
    def is_empty(self) -> bool:
        """Whether there are no rows."""
        return not self._sample

    def _open_cells(self, header: bool | None) -> None:
        """Read the first rows of cells, and decide whether the first one has the columns' names."""
        is_tsv = self._opened.format == "tsv"
        quoting: Quoting = csv.QUOTE_NONE if is_tsv and not tsv_is_quoted(self._opened.file) else csv.QUOTE_MINIMAL
        csv.field_size_limit(sys.maxsize)
        reader = csv.reader(self._text, delimiter="\t" if is_tsv else ",", quoting=quoting, strict=True)
        lines = (cells for cells in reader if cells)
        with self._row_errors():
            first = next(lines, [])
        self._rows = self._count_rows(_check_widths(lines, len(first)))
        if header is None and first:
            if mark := separator_in_cells(first, self._sample):
                shown = f"{self.name} has one column, {escape_control_chars(first[0])}"
                raise InputError(f"{shown}: separate cells as its suffix says, not by {mark!r}")
            header = has_header(self.name, first, self._sample)
            self.header_note = "the first line is the header" if header else "it has no header"
        if header is False:
            self._sample = [first, *self._sample]
            self._rows = chain([first], self._rows)
            self._row += 1
        elif first:
            first[0] = first[0].removeprefix("# ")  # a header of numpy.savetxt
        self.names = list(map(str, range(len(first)))) if header is False else first

    def types(self, column: str | None = None) -> dict[str, ColumnType]:  # noqa: ARG002 - as for `ParquetTable`
        """Return the types of the columns."""
        pick = self._picker(self.names)
        columns = zip(*map(pick, self._sample), strict=True)
        types = (python_type(values, are_cells=self._has_cells) for values in columns)
        return dict(zip(self.names, types, strict=False))  # none without rows

    def batches(self, columns: Sequence[str], size: int) -> Iterator[Batch]:
        """Yield all rows of some columns."""
        _check_unique(self.name, self.names, columns)
        rows = map(self._picker(columns), self._rows)
        path, raw = self._opened.file.path, self._opened.raw
        total = -(-path.stat().st_size // MEGABYTE) if path else None
        num_read = 0
        while batch := list(islice(rows, size)):
            num_read += len(batch)
            position, unit = (-(-raw.tell() // MEGABYTE), "MB") if path else (num_read, "row")
            yield Batch(batch, (), position, total, unit)

    def _picker(self, columns: Sequence[str]) -> Callable[[Any], Sequence[Any]]:
        if not self._has_cells:
            return lambda row: [row.get(name) for name in columns]
        if list(columns) == self.names:
            return lambda row: row
        places = [self.names.index(name) for name in columns]
        return itemgetter(*places) if len(places) > 1 else lambda row: [row[place] for place in places]

    def _count_rows(self, rows: Iterator[Any]) -> Iterator[Any]:
        with self._row_errors():
            for row in rows:
                yield row
                self._row += 1

    @contextmanager
    def _row_errors(self) -> Iterator[None]:
        """Turn errors of parsers into an `InputError` that names the row."""
        try:
            yield
        except UnicodeError as error:
            encoding = self._text.encoding.removesuffix("-sig").upper()
            other = ", perhaps Windows-1252" if encoding == "UTF-8" else ""
            message = f"{self.name} is not {encoding} (after row {self._row}){other}: save it as UTF-8"
            raise InputError(message) from error
        except (csv.Error, ValueError, OverflowError, RecursionError) as error:
            text = f"row {self._row} of {self.name} can't be read as {self._opened.format}: {one_line(error)}"
            # Spark writes backslashes before quotes.
            hint = '; quotes in a field are written twice, ""' if "expected after" in str(error) else ""
            raise InputError(text + hint) from error


def _check_widths(rows: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    for cells in rows:
        if len(cells) != width:
            raise ValueError(f"{len(cells)} cells, and the first line has {width}")
        yield cells


def _parse_txt(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        text = line.removesuffix("\n").removesuffix("\r")
        if "\r" in text and text == line:
            raise ValueError("its lines end with \\r: end them with \\n")
        yield {UNNAMED: text}


def _parse_jsonl(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    has_names = None
    for line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{error}; each line must be an object") from error
        has_names = isinstance(value, dict) if has_names is None else has_names
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise ValueError("it is an array: write one object per line")
        if has_names and not isinstance(value, dict):
            raise ValueError("it is not an object, unlike the first row")
        yield value if has_names else {UNNAMED: value}


def _check_unique(name: str, names: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if names.count(column) > 1:
            raise InputError(f"{name} has {names.count(column)} columns named {column!r}: rename one")
