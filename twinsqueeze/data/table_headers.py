"""Decides whether the first line of a .csv is a header, and whether a .tsv has quoted fields."""

import csv
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from twinsqueeze.data.table_files import TableFile, open_file
from twinsqueeze.data.vector_text import IS_NUMBER, MIN_NUMBERS, looks_like_vector
from twinsqueeze.errors import InputError
from twinsqueeze.utils.text import escape_control_chars

WHOLE_NUMBER = re.compile(r"\d+")
MAX_FIELD = 1 << 26  # bytes


def has_header(name: str, first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a table's first line has the names of the columns; an `InputError` if nobody can tell.

    A line of numbers is a row, as `numpy.savetxt` writes it. Numbers that count up, above rows that have fractions, are
    the names that pandas gives to columns.
    """
    if any(map(looks_like_vector, first)):
        return False
    numbers = [cell for cell in first if IS_NUMBER.fullmatch(cell)]
    labels = [int(cell) for cell in numbers if WHOLE_NUMBER.fullmatch(cell) and str(int(cell)) == cell]
    counts_up = len(labels) > 1 and labels == list(range(labels[0], labels[0] + len(labels)))
    if not numbers:
        return True
    if len(numbers) < len(first):  # names and numbers, such as those of pandas beside a name
        is_header, is_clear = True, counts_up and len(labels) == len(numbers)
    elif len(first) == 1 or len(set(labels)) < len(first):
        is_header, is_clear = False, True
    else:
        rows_are_whole = any(all(map(WHOLE_NUMBER.fullmatch, (cell.lstrip("-") for cell in row))) for row in rows)
        is_header = counts_up
        is_clear = (rows_are_whole != counts_up or len(first) >= MIN_NUMBERS) if rows else not counts_up
    if not is_clear:
        shown = escape_control_chars(", ".join(first[:5])) + (", ..." if len(first) > 5 else "")
        raise InputError(
            f"the first line of {name} can be a header or a row, {shown}: name every column by a word, such as v0, or "
            "pass .npy or .parquet"
        )
    return is_header


def tsv_is_quoted(file: TableFile) -> bool:
    """Return whether quotes around the fields of a .tsv belong to the format, not to the texts as in STS-B's own files.

    They belong to the texts if every line has as many fields as the first, and reading them as quotes fails or joins
    lines. An `InputError` if a quoted field holds both a tab and a line's end, which can be an error of the file.
    """
    if file.path is None:
        raise InputError("a .tsv file can't be read from standard input: name the file")
    lines, quoted = _inspect(file, csv.QUOTE_NONE), _inspect(file, csv.QUOTE_MINIMAL)
    if not quoted.is_regular or (lines.is_regular and quoted.joins_lines and lines.num_fields > 1):
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


def _inspect(file: TableFile, quoting: Quoting) -> _Inspection:
    csv.field_size_limit(MAX_FIELD)  # a quote without an end would read the whole file
    opened = open_file(file)
    joins_lines, num_fields = False, 0
    try:
        for row in csv.reader(opened.text(newline=""), delimiter="\t", quoting=quoting, strict=True):
            num_fields = num_fields or len(row)
            if len(row) not in (0, num_fields):
                return _Inspection(False, joins_lines, num_fields)
            joins_lines = joins_lines or any("\n" in field and ("\t" in field or num_fields == 1) for field in row)
    except (csv.Error, UnicodeDecodeError):  # the reader of the rows raises the second again, with the row
        return _Inspection(False, joins_lines, num_fields)
    finally:
        opened.close()
    return _Inspection(True, joins_lines, num_fields)
