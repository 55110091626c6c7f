"""Decides whether the first line of a .csv is a header, and whether a .tsv has quoted fields."""

import csv
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from twinsqueeze.data.table_files import TableFile, open_file
from twinsqueeze.data.vector_text import IS_NUMBER, MIN_NUMBERS, looks_like_vector, split_numbers
from twinsqueeze.errors import InputError
from twinsqueeze.utils.text import escape_control_chars

WHOLE_NUMBER = re.compile(r"\d+")
SEPARATORS = ";\t|,"
QUOTED_FOR = '",;'  # Excel puts fields with any of them into quotes; tabs and line ends leave no choice
MAX_FIELD = 1 << 26  # bytes


def has_header(name: str, first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a table's first line has the names of the columns; an `InputError` if nobody can tell.

    A line of numbers is a row, as `numpy.savetxt` writes it. Whole numbers that count up, or that stand above rows with
    fractions, are the names that pandas gives to columns.
    """
    if len(first) == 1 and looks_like_vector(first[0]) and "[" not in first[0]:  # numbers with another separator
        return has_header(name, split_numbers(first[0]), [split_numbers(cell) for cell, *_ in rows])
    if any(map(looks_like_vector, first)):
        return False
    numbers = [cell for cell in first if IS_NUMBER.fullmatch(cell)]
    if not numbers:
        return True
    labels = [int(cell) for cell in numbers if WHOLE_NUMBER.fullmatch(cell) and str(int(cell)) == cell]
    counts_up = len(labels) > 1 and labels == list(range(labels[0], labels[0] + len(labels)))
    rows_increase = len(rows) > 0 and all(map(_increases, rows))
    if len(numbers) < len(first):  # names and numbers, such as those of pandas beside a name
        is_header, is_clear = True, counts_up and len(labels) == len(numbers)
    elif len(first) == 1 or len(set(labels)) < len(first):
        is_header, is_clear = False, not _increases(first) or rows_increase
    elif any(all(map(WHOLE_NUMBER.fullmatch, (cell.lstrip("-") for cell in row))) for row in rows):
        is_header = counts_up or _increases(first)
        is_clear = not is_header or (len(first) >= MIN_NUMBERS and not rows_increase)
    else:  # whole numbers above fractions, such as those of columns that were selected
        is_header = counts_up or (len(first) >= MIN_NUMBERS and len(rows) > 0)
        is_clear = is_header == (len(rows) > 0)
    if not is_clear:
        shown = escape_control_chars(", ".join(first[:5])) + (", ..." if len(first) > 5 else "")
        raise InputError(
            f"the first line of {name} can be a header or a row, {shown}: name every column by a word, such as v0, or "
            "pass .npy or .parquet"
        )
    return is_header


def _increases(cells: Sequence[str]) -> bool:
    """Return whether there are so many numbers in ascending order that they are hardly a vector."""
    if len(cells) < MIN_NUMBERS or not all(map(IS_NUMBER.fullmatch, cells)):
        return False
    return all(a < b for a, b in pairwise(map(float, cells)))


def separator_in_cells(first: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    """Return the character that separates the fields of all lines, which have one cell each; None if there is none."""
    lines = [first, *rows]
    if any(len(cells) != 1 for cells in lines) or looks_like_vector(first[0]):
        return None
    counts = ((mark, {cells[0].count(mark) for cells in lines}) for mark in SEPARATORS)
    return next((mark for mark, numbers in counts if len(numbers) == 1 and 0 not in numbers), None)


def tsv_is_quoted(file: TableFile) -> bool:
    """Return whether quotes around the fields of a .tsv belong to the format, not to the texts as in STS-B's own files.

    They belong to the texts if every line has as many fields as the first, and reading them as quotes fails or joins
    lines, or no program would have put those fields alone into quotes. An `InputError` if a quoted field holds both a
    tab and a line's end, which can be an error of the file.
    """
    if file.path is None:
        raise InputError("a .tsv file can't be read from standard input: name the file")
    lines, quoted = _inspect(file, csv.QUOTE_NONE), _inspect(file, csv.QUOTE_MINIMAL)
    if not quoted.is_regular:
        return False
    if lines.is_regular and lines.num_fields > 1 and (quoted.joins_lines or not lines.quotes_are_consistent):
        return False
    if quoted.joins_lines:
        raise InputError(
            f"{file.name} has a field in quotes that holds a tab and a line's end, or quotes that are part of a text: "
            "save it as .jsonl or .parquet"
        )
    return True


Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL, csv.QUOTE_NONE


class _Inspection(NamedTuple):
    is_regular: bool  # every row has as many fields as the first
    joins_lines: bool  # a field holds a line's end and a tab
    num_fields: int
    quotes_are_consistent: bool


class _QuotedFields:
    """Whether a program wrote the quotes: around all fields of a column, or around those with a certain character."""

    def __init__(self) -> None:
        self._quoted: set[tuple[int, frozenset[str]]] = set()  # column, and which of `QUOTED_FOR` the field has
        self._unquoted_columns: set[int] = set()
        self._unquoted_chars: set[str] = set()

    def add(self, row: Sequence[str]) -> None:
        """Add the fields of a row, with their quotes."""
        for column, field in enumerate(row):
            if len(field) > 2 and field[0] == field[-1] == '"':
                self._quoted.add((column, frozenset(char for char in QUOTED_FOR if char in field[1:-1])))
            elif field not in ("", '""'):
                self._unquoted_columns.add(column)
                self._unquoted_chars.update(char for char in QUOTED_FOR if char in field)

    @property
    def are_consistent(self) -> bool:
        """Whether this holds for all fields."""
        return all(
            column not in self._unquoted_columns or chars - self._unquoted_chars for column, chars in self._quoted
        )


def _inspect(file: TableFile, quoting: Quoting) -> _Inspection:
    csv.field_size_limit(MAX_FIELD)  # a quote without an end would read the whole file
    opened = open_file(file)
    joins_lines, num_fields, fields = False, 0, _QuotedFields()
    is_regular = True
    try:
        for i, row in enumerate(csv.reader(opened.text(newline=""), delimiter="\t", quoting=quoting, strict=True)):
            num_fields = num_fields or len(row)
            if len(row) not in (0, num_fields):
                is_regular = False
                break
            joins_lines = joins_lines or any("\n" in field and ("\t" in field or num_fields == 1) for field in row)
            if i:  # names of columns may be without quotes
                fields.add(row)
    except (csv.Error, UnicodeDecodeError):  # the reader of the rows raises the second again, with the row
        is_regular = False
    finally:
        opened.close()
    return _Inspection(is_regular, joins_lines, num_fields, fields.are_consistent)
