"""Which column of a table is compressed, and the vectors or texts of Arrow columns."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twinsqueeze.errors import InputError
from twinsqueeze.types import AnyArray
from twinsqueeze.utils.text import escape_control_chars

# The kinds of columns that can be compressed.
VECTORS, TEXTS = "vectors", "texts"


def select_column(name: str, kinds: Mapping[str, str], column: str | None) -> str:
    """Return the column to compress: the named one, else the only one of vectors, else the only one of texts."""
    if column is None:
        candidates = [c for c in kinds if kinds[c] == VECTORS] or [c for c in kinds if kinds[c] == TEXTS]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise InputError(f"{name} has several columns to choose from, {format_columns(candidates)}: name one")
        raise InputError(f"{name} has neither texts nor lists of numbers; its columns are {format_columns(kinds)}")
    if column not in kinds:
        raise InputError(f"{name} has no column {column!r}; its columns are {format_columns(kinds)}")
    if kinds[column] not in (VECTORS, TEXTS):
        raise InputError(f"column {column!r} of {name} is {kinds[column]}, neither texts nor lists of numbers")
    return column


def format_columns(columns: Iterable[str]) -> str:
    """Join the first ten names, shortened and without control characters."""
    return escape_control_chars(", ".join(list(columns)[:10]))[:200]


def arrow_kinds(schema: Any) -> dict[str, str]:
    """Return for each column of an Arrow schema `VECTORS`, `TEXTS` or the name of its type."""
    return {field.name: _arrow_kind(field.type) for field in schema}


def _arrow_kind(type_: Any) -> str:
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    if is_list and (pa.types.is_integer(type_.value_type) or pa.types.is_floating(type_.value_type)):
        return VECTORS
    return TEXTS if pa.types.is_string(type_) or pa.types.is_large_string(type_) else str(type_)


def arrow_values(array: Any, dim: int | None, name: str, first_row: int) -> AnyArray | list[str]:
    """Return a batch of a column, lists or strings, as (n, dim) numbers or as n texts.

    An `InputError` names a row of the table `name` that is missing or has not `dim` numbers (None: as many as the first
    list has), counted from `first_row`.
    """
    if _arrow_kind(array.type) == TEXTS:
        if array.null_count:
            raise InputError(f"row {first_row + array.is_null().index(True).as_py()} of {name} is missing")
        return list(array.to_pylist())
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0))
    dim = dim or int(lengths[0])
    bad = (lengths != dim) | (lengths == 0)
    if not bad.any():
        values = array.flatten()
        if not values.null_count:
            return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(lengths), -1)
        bad = np.asarray(pc.is_null(values)).reshape(len(lengths), -1).any(1)
    row = first_row + int(np.argmax(bad))
    raise InputError(f"row {row} of {name} is not a list of {f'{dim} numbers' if dim else 'numbers'}")
