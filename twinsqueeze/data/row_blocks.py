"""Reads vectors or texts from files, folders and standard input, block by block: memory does not grow with the rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from twinsqueeze.data.npy_rows import NpyRows, NpyTable
from twinsqueeze.data.table_columns import TEXTS, VECTORS, RowConverter, Selection, select_columns
from twinsqueeze.data.table_files import TableFile, find_files
from twinsqueeze.data.table_rows import MEGABYTE, ParquetTable, TextTable, open_table
from twinsqueeze.errors import InputError
from twinsqueeze.types import AnyArray

# Vectors that fit into the cache of a core, and texts that the encoder sorts by length.
BLOCK_SIZES = {VECTORS: 4096, TEXTS: 1024}


class Block(NamedTuple):
    """Consecutive rows of an input: (n, d) numbers or n texts, where d and the kind are those of the first block."""

    first_row: int  # counted from 0 over all files
    rows: AnyArray | NpyRows | list[str]
    position: int  # how much of the input has been read
    total: int | None  # the size of the input; None if unknown
    unit: str = "row"  # of position and total, row or MB


def read_blocks(
    source: str,
    format_: str = "auto",
    column: str | None = None,
    on_guess: Callable[[str], None] = lambda _: None,
) -> Iterator[Block]:
    """Return the rows of the files in order, at least one block; bad input is an `InputError`.

    Args:
        source: A file, a folder of files of one format, or standard input ("-").
        format_: One of `FORMATS`, or "auto" for the file's suffix; on standard input npy or txt, by its content.
        column: A column or key, or a pattern that several columns of numbers match, which then are one vector.
            None: the only possible choice.
        on_guess: Called with how the rows are read if that was not the only way, such as "column 'v' of x as vectors".
    """
    return read_file_blocks(find_files(source, format_), source, column, on_guess)


def read_file_blocks(
    files: Sequence[TableFile], source: str, column: str | None, on_guess: Callable[[str], None]
) -> Iterator[Block]:
    """Yield the rows of files as `read_blocks` does; messages name the `source`."""
    num_rows, shape = 0, None
    for block in _Reader(column, on_guess).read_files(files):
        found = () if isinstance(block.rows, list) else block.rows.shape[1:]
        shape = found if shape is None else shape
        if found != shape:
            raise InputError(f"row {num_rows} of {source} is {_kind(found)}, and the rows before it are {_kind(shape)}")
        yield block._replace(first_row=num_rows)
        num_rows += len(block.rows)
    if not num_rows:
        raise InputError(f"{files[0].name if len(files) == 1 else source} is empty: it has no rows")


def _kind(shape: tuple[int, ...]) -> str:
    return f"a list of {shape[0]} numbers" if shape else "a text"


class _Reader:
    """Reads the blocks of files whose rows are in the same columns."""

    def __init__(self, column: str | None, on_guess: Callable[[str], None]) -> None:
        self._column, self._on_guess = column, on_guess
        self._selection: Selection | None = None  # of the first file that has rows

    def read_files(self, files: Sequence[TableFile]) -> Iterator[Block]:
        """Yield the blocks of all files."""
        sizes = [file.path.stat().st_size if file.path else 0 for file in files]
        for i, file in enumerate(files):
            for block in self._read_file(file):
                if len(files) == 1:
                    yield block
                else:
                    done = sum(sizes[:i]) + sizes[i] * block.position / (block.total or 1)
                    position, total = math.ceil(done / MEGABYTE), math.ceil(sum(sizes) / MEGABYTE)
                    yield block._replace(position=position, total=total, unit="MB")

    def _read_file(self, file: TableFile) -> Iterator[Block]:
        header = None if self._column is None else True
        with open_table(file, header=header) as table:
            yield from self._read_array(table) if isinstance(table, NpyTable) else self._read_table(table)

    def _read_array(self, table: NpyTable) -> Iterator[Block]:
        if self._column is not None:
            raise InputError(f"{table.name} is a .npy array, which has no column {self._column!r}")
        position = 0
        for rows in table.batches(BLOCK_SIZES[VECTORS]):
            position += len(rows)
            yield Block(0, rows, position, table.num_rows)

    def _read_table(self, table: ParquetTable | TextTable) -> Iterator[Block]:
        if table.is_empty and (self._selection or isinstance(table, TextTable)):
            return
        selection = self._select(table)
        size = BLOCK_SIZES[TEXTS if isinstance(table, TextTable) or selection.kind == TEXTS else VECTORS]
        converter, first_row = RowConverter(table.name, selection.kind), 0
        for batch in table.batches(selection.columns, size):
            if batch.arrays:
                rows = converter.from_arrow(batch.arrays, first_row)
            else:
                rows = converter.from_python(batch.rows, first_row)
            yield Block(0, rows, batch.position, batch.total, batch.unit)
            first_row += len(rows)

    def _select(self, table: ParquetTable | TextTable) -> Selection:
        """Choose the columns, which must be those of the files before."""
        selection = select_columns(table.name, table.types(self._column), self._column)
        if self._selection is None:
            if selection.is_guess or table.header_note:
                self._on_guess("; ".join(filter(None, (selection.description, table.header_note))))
        elif (selection.columns, selection.kind) != (self._selection.columns, self._selection.kind):
            raise InputError(f"{table.name} has other columns than the files before it: name a folder of one table")
        self._selection = selection
        return selection
