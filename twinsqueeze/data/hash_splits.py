"""Splits rows by a hash of their content, so that equal rows are in one split, in whatever order they come."""

from collections.abc import Collection, Sequence
from hashlib import blake2b

import numpy as np

from twinsqueeze.data.dataset import SPLITS
from twinsqueeze.errors import InputError
from twinsqueeze.types import FloatArray, IntArray

# One row of so many is for dev, and one for test.
ROWS_PER_HELD_OUT = 10


def hash_rows(rows: Sequence[str] | FloatArray) -> IntArray:
    """Returns a 64-bit hash of each text or unit vector, (N,) uint64; vectors equal in float16 are equal."""
    if isinstance(rows, np.ndarray):
        content = [row.tobytes() for row in rows.astype(np.float16)]
    else:
        content = [text.encode("utf-8", "surrogatepass") for text in rows]
    digests = b"".join(blake2b(each, digest_size=8).digest() for each in content)
    return np.frombuffer(digests, "<u8")


def split_by_hash(hashes: IntArray, made: Collection[str]) -> dict[str, IntArray]:
    """Returns the positions (n,) of the rows of train and of the splits to make, ascending."""
    bucket = hashes % np.uint64(ROWS_PER_HELD_OUT)
    held_out = {name: bucket == SPLITS.index(name) for name in made}
    train = ~np.logical_or.reduce([np.zeros(len(hashes), bool), *held_out.values()])
    return {name: np.flatnonzero(chosen) for name, chosen in {"train": train, **held_out}.items()}


def check_sizes(sizes: dict[str, int], name: str, unit: str) -> None:
    """Raises an `InputError` if a split has fewer than two rows or queries."""
    for split, size in sizes.items():
        if size < 2:
            raise InputError(
                f"dataset {name!r} has {sum(sizes.values())} distinct {unit}, of which {size} would be {split}: add "
                "some, or pass a folder with train, dev and test"
            )
