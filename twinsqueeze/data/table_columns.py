"""Which columns of a table hold texts or vectors, and the texts or vectors of Arrow arrays and of Python values."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from string import digits
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twinsqueeze.data.vector_text import (
    IS_NUMBER,
    IS_NUMBER_OR_GAP,
    MIN_NUMBERS,
    looks_like_vector,
    parse_vector,
    text_fault,
    to_vector,
)
from twinsqueeze.errors import InputError, suggest, truncate_repr
from twinsqueeze.types import AnyArray
from twinsqueeze.utils.text import escape_control_chars

# The kinds of columns that have a meaning here. Several columns of numbers can be a vector.
VECTORS, TEXTS, NUMBERS = "vectors", "texts", "numbers"
OTHER = "other"
UNNAMED = "value"  # the column of a table that has one without a name, as Spark calls it
# Row numbers, as pandas writes them.
INDEX_COLUMN = re.compile(r"|Unnamed: 0|__index_level_\d+__")
LOOKS_LIKE_ID = re.compile(r"(?:.*[_ ]|)(?:id|idx|index|row|key|label|score|target|class)", re.IGNORECASE)
TRAILING_NUMBER = re.compile(r"(.*?)(\d+)")


class ColumnType(NamedTuple):
    """The kind of a column, and the name of its type for messages."""

    kind: str
    name: str


VECTOR_TEXTS = ColumnType(VECTORS, "vectors as text")


class Selection(NamedTuple):
    """The columns of texts, of vectors, or of the numbers that together are a vector."""

    columns: tuple[str, ...]
    kind: str
    description: str  # how the table `name` is read
    is_guess: bool  # whether it could be read in another way


def select_columns(name: str, types: Mapping[str, ColumnType], column: str | None) -> Selection:
    """Choose the columns to read: the named ones, else the only one of vectors, else the only one of texts.

    Without these, columns of numbers are a vector: those that are named in sequence, such as v0 to v383, else all of
    them. `column` is a name, or a pattern such as "v*" for numbers. An `InputError` if there are several choices.
    """
    if column is not None:
        return _select_named(name, types, column)
    usable = {c: type_ for c, type_ in types.items() if not INDEX_COLUMN.fullmatch(c)}
    vectors, texts, numbers = ([c for c in usable if usable[c].kind == k] for k in (VECTORS, TEXTS, NUMBERS))
    sequences = _numbered_in_sequence(numbers)
    sequence = max(sequences, key=len, default=[])
    if not vectors and texts and len(sequence) >= MIN_NUMBERS:
        pattern = sequence[0].rstrip(digits) + "[0-9]*"
        raise InputError(
            f"{name} has texts, {format_columns(texts)}, and numbers, {sequence[0]} to {sequence[-1]}: name the column "
            f"of texts, or {pattern!r} for the numbers"
        )
    for candidates in (vectors, texts):
        if len(candidates) > 1:
            raise InputError(f"{name} has several columns to choose from, {format_columns(candidates)}: name one")
        if candidates:
            others = len(vectors) + len(texts) + len(sequence) > 1
            return _make_selection(name, candidates, types, is_guess=others)
    if len(sequences) > 1:
        ends = format_columns(f"{group[0]} to {group[-1]}" for group in sequences)
        raise InputError(f"{name} has several groups of numbers, {ends}: name one by a pattern, such as 'v*'")
    together = sequence or numbers
    if len(together) < 2 or (not sequence and any(map(LOOKS_LIKE_ID.fullmatch, together))):
        shown = format_columns(f"{c} ({type_.name})" for c, type_ in types.items())
        hint = ": name those of a vector by a pattern, such as '*'" if len(together) > 1 else ""
        raise InputError(f"{name} has neither texts nor lists of numbers; its columns are {shown}{hint}")
    return _make_selection(name, together, types, is_guess=True)


def _select_named(name: str, types: Mapping[str, ColumnType], column: str) -> Selection:
    matching = [column] if column in types else [c for c in types if fnmatchcase(c, column)]
    if not matching:
        shown = format_columns(types)
        raise InputError(f"{name} has no column {column!r}{suggest(column, types)}; its columns are {shown}")
    allowed = (NUMBERS,) if len(matching) > 1 else (VECTORS, TEXTS)
    for found in matching:
        if types[found].kind not in allowed:
            expected = (
                "not one of the numbers of a vector" if len(matching) > 1 else "neither texts nor lists of numbers"
            )
            raise InputError(f"column {found!r} of {name} is {types[found].name}, {expected}")
    sequences = _numbered_in_sequence(matching)
    if sequences and len(sequences[0]) == len(matching):
        matching = sequences[0]
    return _make_selection(name, matching, types, is_guess=len(matching) > 1)


def _make_selection(name: str, columns: Sequence[str], types: Mapping[str, ColumnType], *, is_guess: bool) -> Selection:
    first = types[columns[0]]
    if first.kind == NUMBERS:
        text = f"the {len(columns)} columns {columns[0]!r} to {columns[-1]!r} of {name} as one vector per row"
        if list(columns) != [column for column in types if column in set(columns)]:
            text += ", in the order of their numbers"
    else:
        what = f"column {columns[0]!r} of {name}" if set(types) != {UNNAMED} else f"the rows of {name}"
        written = ", which are written as text" if first == VECTOR_TEXTS else ""
        text = f"{what} as {first.kind}{written}"
    return Selection(tuple(columns), first.kind, escape_control_chars(text), is_guess or first == VECTOR_TEXTS)


def _numbered_in_sequence(columns: Sequence[str]) -> list[list[str]]:
    """Return the groups of columns whose names differ in a number that counts up, in the order of that number."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for column in columns:
        if numbered := TRAILING_NUMBER.fullmatch(column):
            groups.setdefault(numbered[1], []).append((int(numbered[2]), column))
    return [
        [column for _, column in group]
        for group in map(sorted, groups.values())
        if len(group) > 1 and [number for number, _ in group] == list(range(group[0][0], group[0][0] + len(group)))
    ]


def format_columns(columns: Iterable[str]) -> str:
    """Join the first ten names, shortened and without control characters."""
    shown = list(columns)
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    return escape_control_chars(", ".join(shown[:10]))[:300] + more


def arrow_types(schema: Any) -> dict[str, ColumnType]:
    """Return the type of each column of an Arrow schema."""
    return {field.name: ColumnType(_arrow_kind(field.type), str(field.type)) for field in schema}


def _arrow_kind(type_: Any) -> str:
    type_ = _inner_type(type_)
    if _is_list(type_):
        return VECTORS if _is_number(_inner_type(type_.value_type)) else OTHER
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return TEXTS
    return NUMBERS if _is_number(type_) else OTHER


def _inner_type(type_: Any) -> Any:
    """Return the type without dictionaries, run lengths, extensions, and structs of one field."""
    if isinstance(type_, pa.Bool8Type):
        return pa.bool_()
    if isinstance(type_, pa.FixedShapeTensorType) and len(type_.shape) > 1:  # no vector, as nested lists
        return type_
    if isinstance(type_, pa.BaseExtensionType):
        return _inner_type(type_.storage_type)
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        return _inner_type(type_.value_type)
    if pa.types.is_struct(type_) and type_.num_fields == 1:
        return _inner_type(type_.field(0).type)
    return type_


def unwrap(array: Any) -> Any:
    """Return the array without dictionaries, run lengths, extensions, and structs of one field."""
    type_ = array.type
    if isinstance(type_, pa.Bool8Type):
        return array.storage.cast(pa.bool_())
    if isinstance(type_, pa.BaseExtensionType):
        return unwrap(array.storage)
    if pa.types.is_dictionary(type_):
        return unwrap(array.dictionary_decode())
    if pa.types.is_run_end_encoded(type_):
        return unwrap(pc.run_end_decode(array))
    if pa.types.is_struct(type_) and type_.num_fields == 1:
        return unwrap(pc.struct_field(array, [0]))
    return array


def _is_number(type_: Any) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def check_scalars(name: str, schema: Any, columns: Sequence[str]) -> None:
    """Raise an `InputError` for a column that has neither texts nor numbers; truth values count as numbers."""
    types = dict(zip(schema.names, schema.types, strict=True))
    for column in columns:
        inner = _inner_type(type_ := types[column])
        if _arrow_kind(inner) not in (TEXTS, NUMBERS) and not (pa.types.is_boolean(inner) or pa.types.is_null(inner)):
            raise InputError(f"column {column!r} of {name} is {type_}, neither texts nor numbers")


def _is_list(type_: Any) -> bool:
    lists = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(pa.types, is_list)(type_) for is_list in lists)


def python_type(values: Iterable[Any], *, are_cells: bool = False) -> ColumnType:
    """Return the type of a column from some of its values; the cells of .csv files are texts that may be numbers."""
    present = [value for value in values if value is not None and not (are_cells and value == "")]
    if not present:
        return ColumnType(TEXTS, "text") if are_cells else ColumnType(OTHER, "empty")
    first = present[0]
    if isinstance(first, str):
        are_numbers = are_cells and all(IS_NUMBER_OR_GAP.fullmatch(cell.strip()) for cell in present)
        if are_numbers and any(map(IS_NUMBER.fullmatch, present)):
            return ColumnType(NUMBERS, "numbers")
        return VECTOR_TEXTS if looks_like_vector(first) else ColumnType(TEXTS, "text")
    if isinstance(first, list):
        return ColumnType(VECTORS, "a list")
    is_number = isinstance(first, int | float) and not isinstance(first, bool)
    return ColumnType(NUMBERS, "numbers") if is_number else ColumnType(OTHER, type(first).__name__)


class RowConverter:
    """Converts batches of the selected columns to texts or to (n, d) numbers; all rows are of one kind and length.

    An `InputError` names the row of the table `name` that is not, counted from `first_row`.
    """

    def __init__(self, name: str, kind: str, dim: int | None = None) -> None:
        self._name, self._kind = name, kind
        self._dim = dim  # None: as many numbers as the first row

    def from_python(self, rows: Sequence[Sequence[Any]], first_row: int) -> AnyArray | list[str]:
        """Convert rows of Python values, of one column or of several with a number each."""
        if self._kind == TEXTS:
            return [self._check_text(row[0], first_row + i) for i, row in enumerate(rows)]
        values = rows if self._kind == NUMBERS else [row[0] for row in rows]
        return np.stack([self._parse_vector(value, first_row + i) for i, value in enumerate(values)])

    def from_arrow(self, arrays: Sequence[Any], first_row: int) -> AnyArray | list[str]:
        """Convert Arrow arrays, one or several of numbers."""
        unwrapped = [unwrap(array) for array in arrays]
        if self._kind == NUMBERS:
            missing = [array.is_null().index(True).as_py() for array in unwrapped if array.null_count]
            if missing:
                raise self._fault(first_row + min(missing), "lacks a number")
            return np.column_stack([_to_numpy(array) for array in unwrapped])
        if _is_list(unwrapped[0].type):
            return self._stack_lists(unwrapped[0], first_row)
        return self.from_python([(text,) for text in unwrapped[0].to_pylist()], first_row)

    def _stack_lists(self, array: Any, first_row: int) -> AnyArray:
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0))
        self._dim = self._dim or int(lengths[0]) or None
        bad = (lengths != self._dim) | (lengths == 0)
        if not bad.any():
            values = unwrap(pc.list_flatten(array))
            if not values.null_count:
                return _to_numpy(values).reshape(len(lengths), -1)
            bad = np.asarray(pc.is_null(values)).reshape(len(lengths), -1).any(1)
        row = int(np.argmax(bad))
        raise self._no_vector(first_row + row, array[row].as_py())

    def _parse_vector(self, value: Any, row: int) -> AnyArray:
        try:
            vector = parse_vector(value) if isinstance(value, str) else self._to_vector(value)
        except (ValueError, OverflowError):
            vector = None
        if vector is None or len(vector) != (self._dim or len(vector)):
            raise self._no_vector(row, value)
        self._dim = len(vector)
        return vector

    def _check_text(self, value: Any, row: int) -> str:
        if value is None:
            raise self._fault(row, "is missing")
        if not isinstance(value, str):
            raise self._fault(row, f"is not a text, unlike the rows before it: {truncate_repr(value)}")
        if fault := text_fault(value):
            raise self._fault(row, fault)
        return value

    def _to_vector(self, values: Any) -> AnyArray | None:
        """Return a list of numbers, or of cells that hold one, as an array; None if it is anything else."""
        types = {int, float, str} if self._kind == NUMBERS else {int, float}
        is_list = isinstance(values, Sequence) and len(values) > 0
        return to_vector(values) if is_list and set(map(type, values)) <= types else None

    def _no_vector(self, row: int, value: Any) -> InputError:
        numbers = f"{self._dim} numbers" if self._dim else "numbers"
        return self._fault(row, f"is not a list of {numbers}: {truncate_repr(value)}")

    def _fault(self, row: int, fault: str) -> InputError:
        return InputError(f"row {row} of {self._name} {fault}")


def _to_numpy(array: Any) -> AnyArray:
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    return np.asarray(array.to_numpy(zero_copy_only=False))
