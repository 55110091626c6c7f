"""Datasets of texts or vectors alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from twinsqueeze.data.dataset import SPLITS, RowSplit
from twinsqueeze.data.hash_splits import check_sizes, hash_rows, split_by_hash
from twinsqueeze.data.row_blocks import Block, read_file_blocks
from twinsqueeze.data.table_files import TableFile
from twinsqueeze.errors import InputError
from twinsqueeze.types import AnyArray, FloatArray, IntArray
from twinsqueeze.utils.console import Reporter

# Of a split. More vectors change a linear compressor hardly: FAISS, too, fits 256 centroids to so many vectors.
MAX_ROWS = 65_536
# Rows that float32 can't scale to unit length.
MIN_NORM = 1e-30


class _Table(NamedTuple):
    """How the rows of some files are read."""

    name: str
    files: Sequence[TableFile]
    column: str | None
    reporter: Reporter

    def blocks(self, title: str, *, notes: bool = False) -> Iterator[list[str] | FloatArray]:
        """Yields the rows: texts, or unit vectors (n, d) float32."""
        note = self.reporter.info if notes else lambda _: None
        with self.reporter.progress(f"{title} {self.name}", "row") as advance:
            for i, block in enumerate(read_file_blocks(self.files, self.name, self.column, note)):
                if not i and not isinstance(block.rows, list) and np.asarray(block.rows).dtype != np.float32:
                    note(f"{self.name}: numbers are read as float32, not as {np.asarray(block.rows).dtype}")
                yield self._check(block)
                advance(block.position, block.total, {})

    def _check(self, block: Block) -> list[str] | FloatArray:
        if not isinstance(block.rows, list):
            return unit_rows(np.asarray(block.rows), self.name, block.first_row)
        for i, text in enumerate(block.rows):
            if not text.strip():
                raise InputError(f"row {block.first_row + i} of {self.name} is an empty text")
        return block.rows


def load_rows(
    name: str, files: Mapping[str, Sequence[TableFile]], column: str | None, reporter: Reporter
) -> dict[str, RowSplit]:
    """Loads the distinct rows of train, dev and test, at most `MAX_ROWS` of each; splits without files are made."""
    splits: dict[str, RowSplit] = {}
    for split in files:
        table = _Table(f"{name} ({split})" if len(files) > 1 else name, files[split], column, reporter)
        made = [other for other in SPLITS if other not in files] if split == "train" else []
        splits |= _read_splits(table, split, made)
    dims = {rows.rows.shape[1] for rows in splits.values() if isinstance(rows.rows, np.ndarray)}
    if len(dims) > 1 or (dims and any(rows.texts for rows in splits.values())):
        raise InputError(f"the splits of dataset {name!r} have vectors of different dimensions, or texts and vectors")
    check_sizes({split: len(rows) for split, rows in splits.items()}, name, "rows")
    return {split: splits[split] for split in SPLITS}


def _read_splits(table: _Table, split: str, made: Sequence[str]) -> dict[str, RowSplit]:
    hashes = np.concatenate([hash_rows(rows) for rows in table.blocks("reading", notes=True)])
    _, first = np.unique(hashes, return_index=True)
    if len(first) == 1:
        rows = f"all {len(hashes):,} rows of {table.name} are equal" if len(hashes) > 1 else f"{table.name} has one row"
        raise InputError(f"{rows}: there is nothing to search")
    first = np.sort(first)
    if duplicates := len(hashes) - len(first):
        table.reporter.info(f"{table.name}: {duplicates:,} of {len(hashes):,} rows are duplicates and left out")
    positions = {}
    for name, places in split_by_hash(hashes[first], made).items():
        by_hash = np.argsort(hashes[first[places]] // np.uint64(10), kind="stable")
        positions[split if name == "train" else name] = first[np.sort(places[by_hash[:MAX_ROWS]])]
        if len(places) > MAX_ROWS:
            table.reporter.info(f"{table.name}: {MAX_ROWS:,} of {len(places):,} rows are sampled for {name}")
    return {name: RowSplit(rows) for name, rows in _pick_rows(table, positions).items()}


def _pick_rows(table: _Table, positions: Mapping[str, IntArray]) -> dict[str, list[str] | FloatArray]:
    """Reads the rows at ascending positions of each split."""
    found: dict[str, list[list[str] | FloatArray]] = {name: [] for name in positions}
    start = 0
    for rows in table.blocks("loading"):
        for name, wanted in positions.items():
            low, high = np.searchsorted(wanted, [start, start + len(rows)])
            places = wanted[low:high] - start
            found[name].append(rows[places] if isinstance(rows, np.ndarray) else [rows[i] for i in places])
        start += len(rows)
    return {
        name: np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [text for part in parts for text in part]
        for name, parts in found.items()
    }


def unit_rows(vectors: AnyArray, name: str, first_row: int) -> FloatArray:
    """Returns (n, d) numbers as float32 unit vectors; raises an `InputError` for rows without a direction."""
    vectors = np.asarray(vectors, np.float64 if vectors.dtype.itemsize > 4 else np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~np.isfinite(norms[:, 0]) | (norms[:, 0] < MIN_NORM)
    if bad.any():
        row = int(np.argmax(bad))
        fault = (
            "has numbers that are not finite" if not np.isfinite(norms[row, 0]) else "is zero, which has no direction"
        )
        raise InputError(f"row {first_row + row} of {name} {fault}")
    return np.asarray(vectors / norms, np.float32)
