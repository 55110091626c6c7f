"""Datasets of queries with a passage that answers each, and perhaps one that does not, as texts or as vectors."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from twinsqueeze.data.dataset import SPLITS, RowSplit
from twinsqueeze.data.hash_splits import check_sizes, hash_rows, split_by_hash
from twinsqueeze.data.npy_rows import NpyTable
from twinsqueeze.data.rows_alone import unit_rows
from twinsqueeze.data.table_columns import TEXTS, VECTORS, RowConverter
from twinsqueeze.data.table_files import TableFile
from twinsqueeze.data.table_rows import LARGE_BATCH, open_table
from twinsqueeze.errors import InputError, truncate_repr
from twinsqueeze.types import AnyArray, IntArray

PAIR_COLUMNS = ("anchor", "positive", "negative")
# Other names of an anchor and of its positive, without case and punctuation.
ANCHORS = ("anchor", "query", "question")
POSITIVES = ("positive", "pos", "passage", "answer", "document", "context")
NEGATIVES = ("negative", "neg", "hardnegative", "negative1")
Column = list[str] | AnyArray


def find_pair_columns(names: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Returns a table's columns of queries, passages and, if there are any, negatives; [] if it has no such columns."""
    plain = {re.sub(r"[\W_]", "", name).casefold(): name for name in reversed(names)}
    found = []
    for column, others in zip(PAIR_COLUMNS, (ANCHORS, POSITIVES, NEGATIVES), strict=True):
        chosen = renamed.get(column) or next((plain[other] for other in others if other in plain), None)
        if chosen is None and column != "negative":
            return []
        found += [chosen] if chosen else []
    return found


def load_positive_pairs(
    name: str, files: Mapping[str, Sequence[TableFile]], columns: Sequence[str]
) -> dict[str, RowSplit]:
    """Loads the pairs of train, dev and test; splits without files are made by a hash of the query."""
    splits = {}
    tables = {split: [_read_columns(file, columns) for file in found] for split, found in files.items()}
    _check_dims([column for table in tables.values() for read in table for column in read], name)
    for split, table in tables.items():
        rows = [
            np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [t for part in parts for t in part]
            for parts in zip(*table, strict=True)
        ]
        made = [other for other in SPLITS if other not in files] if split == "train" else []
        for part, places in split_by_hash(hash_rows(rows[0]), made).items():
            splits[split if part == "train" else part] = _build_split([_take(column, places) for column in rows])
    check_sizes({split: len(np.unique(pairs.first)) for split, pairs in splits.items()}, name, "queries")
    return {split: splits[split] for split in SPLITS}


def _check_dims(columns: Sequence[Column], name: str) -> None:
    """Raises an `InputError` unless all columns of all files are texts, or vectors of one dimension."""
    dims = {column.shape[1] if isinstance(column, np.ndarray) else 0 for column in columns}
    if len(dims) > 1:
        kinds = [f"vectors of {dim} dimensions" if dim else "texts" for dim in sorted(dims)]
        raise InputError(f"dataset {name!r} has {' and '.join(kinds)}: all must be of one kind")


def _take(column: Column, places: IntArray) -> Column:
    return column[places] if isinstance(column, np.ndarray) else [column[i] for i in places]


def _read_columns(file: TableFile, columns: Sequence[str]) -> list[Column]:
    """Returns some columns of a file: all of texts, or all of vectors."""
    with open_table(file, header=True, first_row=1) as table:
        assert not isinstance(table, NpyTable)
        if missing := [column for column in columns if column not in table.names]:
            raise InputError(f"{table.name} lacks the column {missing[0]}")
        types = table.types()
        kinds = {column: types[column].kind for column in columns if column in types}
        kind = VECTORS if VECTORS in kinds.values() else TEXTS
        if other := [column for column, found in kinds.items() if (found == VECTORS) != (kind == VECTORS)]:
            raise InputError(f"{table.name} has vectors and column {other[0]!r} of no vectors: all must be of one kind")
        converters = [RowConverter(table.name, kind) for _ in columns]
        parts: list[list[Column]] = [[] for _ in columns]
        row = 1
        for batch in table.batches(columns, LARGE_BATCH):
            for i, converter in enumerate(converters):
                if batch.arrays:
                    part = converter.from_arrow([batch.arrays[i]], row)
                else:
                    part = converter.from_python([(values[i],) for values in batch.rows], row)
                parts[i].append(_check(part, f"{columns[i]} of {table.name}", row))
            row += len(parts[0][-1])
    if not parts[0]:
        raise InputError(f"{file.name} is empty: it has no rows")
    return [np.concatenate(p) if kind == VECTORS else [text for part in p for text in part] for p in parts]


def _check(part: Column, name: str, first_row: int) -> Column:
    if isinstance(part, np.ndarray):
        return unit_rows(part, name, first_row)
    for i, text in enumerate(part):
        if not text.strip():
            raise InputError(
                f"row {first_row + i}, {name}: {truncate_repr(text)} is empty, and a query needs a passage"
            )
    return part


def _build_split(columns: Sequence[Column]) -> RowSplit:
    """Builds a split of the distinct rows of columns with queries, passages and perhaps negatives."""
    hashes = np.concatenate([hash_rows(column) for column in columns])
    _, first, row = np.unique(hashes, return_index=True, return_inverse=True)
    queries, passages, *negatives = np.split(row.astype(np.int64), len(columns))
    if isinstance(columns[0], np.ndarray):
        rows: Column = np.concatenate(columns)[first]
    else:
        texts = [text for column in columns for text in column]
        rows = [texts[i] for i in first]
    pairs, places = np.unique(np.stack([queries, passages]), axis=1, return_index=True)
    return RowSplit(
        rows,
        pairs[0],
        pairs[1],
        np.ones(pairs.shape[1]),
        negatives[0][places] if negatives else None,
        np.unique(np.concatenate([passages, *negatives])),
    )
