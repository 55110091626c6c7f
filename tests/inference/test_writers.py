"""Writers of vectors: all blocks, in a file that appears whole or not at all."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from twinsqueeze.errors import InputError
from twinsqueeze.inference.writers import check_output, write_blocks

VECTORS = np.random.default_rng(0).integers(-100, 100, (1000, 12))
BLOCKS = np.array_split(VECTORS, 37)  # more than a row group of a .parquet file takes


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8])
def test_all_blocks_are_written(tmp_path, name, dtype):
    path = tmp_path / name
    assert write_blocks(path, (block.astype(dtype) for block in BLOCKS), {"dim": 12}) == 1000
    assert list(tmp_path.iterdir()) == [path]
    if name == "out.npy":
        found = np.load(path)
    else:
        table = pq.read_table(path)
        assert json.loads(table.schema.metadata[b"twinsqueeze"]) == {"dim": 12}
        found = np.stack(table["vector"].to_numpy())
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, VECTORS.astype(dtype))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.txt", "ends in none of .npy, .parquet, .faiss"),
        ("folder.npy", "is a folder: name a file"),
        ("old.npy", "exists: name another file, or pass --overwrite"),
        ("nowhere/out.npy", "would be in a folder that does not exist"),
    ],
)
def test_paths_that_can_not_be_written_are_refused(tmp_path, name, message):
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "old.npy").touch()
    with pytest.raises(InputError, match=f"output '.*{name}' {message}"):
        check_output(tmp_path / name, overwrite=name != "old.npy")
