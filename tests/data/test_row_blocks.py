"""Readers of vectors and texts: all rows in order, and which input they refuse with which message."""

import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.tables import row_refusal
from tests.helpers.vectors import npy_bytes, unit_vectors, write_rows
from twinsqueeze.data import row_blocks
from twinsqueeze.data.row_blocks import read_blocks

pytestmark = pytest.mark.usefixtures("in_a_new_folder")
TEXTS = ["a cat sleeps", 'she said "no, thanks"', "", "naïve café, 東京", "two men are\u2028playing chess"]


@pytest.mark.parametrize(
    "name",
    [*("in.npy", "fortran.npy", "in.parquet", "in.csv", "in.jsonl")]
    + [f"texts.{suffix}" for suffix in ("parquet", "csv", "jsonl", "txt")],
)
def test_blocks_have_all_rows_in_order(monkeypatch, name):
    monkeypatch.setattr(row_blocks, "BLOCK_SIZES", {"vectors": 300, "texts": 300})
    rows = TEXTS * 500 if name.startswith("texts") else unit_vectors(2500, 5)
    write_rows(Path(name), np.asfortranarray(rows) if name == "fortran.npy" else rows)
    column = "row" if name in {"texts.parquet", "texts.csv", "texts.jsonl"} else None
    blocks = list(read_blocks(name, column=column))
    ends = np.cumsum([len(block.rows) for block in blocks])
    assert max(len(block.rows) for block in blocks) == 300
    assert [block.first_row for block in blocks] == [0, *ends[:-1]]
    assert blocks[-1].position == blocks[-1].total
    np.testing.assert_array_equal(np.concatenate([block.rows for block in blocks]), rows)


def npy_header(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(100)


def npy_of(shape: str, descr: str = "'<f4'", *, fortran_order: bool = False) -> bytes:
    return npy_header(f"{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}}}")


def parquet(column: pa.Array) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"v": column}), file, compression="zstd")
    return file.getvalue()


VECTORS = unit_vectors(3000, 64)
NPY, PARQUET = npy_bytes(VECTORS), parquet(pa.array(list(VECTORS)))
THIRD = len(PARQUET) // 3
DAMAGED_PARQUET = PARQUET[:THIRD] + np.random.default_rng(0).bytes(THIRD) + PARQUET[2 * THIRD :]
LETTER = b"vectors, they said, but it is a letter\n" * 10
NOT_UTF8 = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))
ROWS_OF_AN_ARRAY = "vectors must be the rows of an array of numbers, (n, d)"
REFUSED = [
    ("in.npy", b"", "input 'in.npy' is empty"),
    ("in.npy", NPY[: len(NPY) // 3], "in.npy is damaged, truncated or"),
    ("in.npy", NPY[:20], "truncated"),
    ("in.npy", LETTER, "not a .npy"),
    ("in.npy", NPY + NPY, "it has more than the 3000 rows of its header"),
    ("in.npy", gzip.compress(NPY + NPY), "it has more than the 3000 rows of its header"),
    ("in.npy", gzip.compress(npy_of("(2, 3)", fortran_order=True)), "in Fortran order, which can only be read"),
    ("in.npy", npy_bytes(np.zeros((0, 9), np.float32)), "is an array of float32 values and of shape (0, 9)"),
    ("in.npy", npy_bytes(np.zeros(384)), f"of shape (384,): {ROWS_OF_AN_ARRAY}"),
    ("in.npy", npy_bytes(np.zeros((3, 4), complex)), "an array of complex128 values and of shape (3, 4): vectors"),
    ("in.npy", npy_bytes(np.array([{}], object)), "in.npy is an array of object values"),
    ("in.npy", npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)"), "in.npy is damaged"),
    ("in.npy", npy_header("-" * 3000 + "1"), "in.npy"),
    ("in.npy", npy_header("  1\n 2"), "in.npy is damaged"),
    ("in.npy", npy_of("(-2, 3)", fortran_order=True), ROWS_OF_AN_ARRAY),
    ("in.npy", npy_of(f"({10**30}, 0)"), ROWS_OF_AN_ARRAY),
    ("in.npy", npy_of(f"({10**30}, 1)"), "it has fewer than the 1000"),
    ("in.npy", npy_of("(2, 3)", "[]", fortran_order=True), "in.npy"),
    ("in.parquet", PARQUET[: len(PARQUET) * 2 // 3], "truncated"),
    ("in.parquet", LETTER, "not a .parquet"),
    ("in.parquet", DAMAGED_PARQUET, "in.parquet is damaged"),
    ("in.parquet", parquet(pa.array([], pa.list_(pa.float32()))), "in.parquet is empty: it has no rows"),
    ("in.parquet", parquet(pa.array(["a", None])), "row 1 of in.parquet is missing"),
    ("in.parquet", parquet(NOT_UTF8), "in.parquet is damaged"),
    ("in.csv", b"a,b\n", "in.csv is empty: it has no rows"),
    ("in.csv", b'text\na\n"b,c\n', "row 1 of in.csv can't be read as csv"),
    ("in.csv", b'text,id\n"a \\"b\\"",1\n', """expected after '"'; quotes in a field are written twice, \"\""""),
    ("in.csv", b"a,b\nx y,z\n", "several columns to choose from, a, b: name one"),
    ("in.csv", b"a,b\nx,1\ny\n", "row 1 of in.csv can't be read as csv: 1 cells, and the first line has 2"),
    ("in.jsonl", b"\n\n", "in.jsonl is empty"),
    ("in.jsonl", b'"a"\n{\n', "row 1 of in.jsonl can't be read as jsonl"),
    ("in.jsonl", b'"a"\n[1, 2]\n', "row 1 of in.jsonl is not a text"),
    ("in.jsonl", b'[1, "2"]\n', "row 0 of in.jsonl is not a list of numbers: [1, '2']"),
    ("in.jsonl", b'{"a": 1}\n', "in.jsonl has neither texts nor lists of numbers; its columns are a"),
    ("in.jsonl", b'{"t": "x"}\n{"u": 1}\n', "row 1 of in.jsonl is missing"),
    ("in.jsonl", b"[" * 100_000, "can't be read as jsonl"),
    ("in.jsonl", b"[1" + b"0" * 400 + b"]", "row 0 of in.jsonl is not a list of numbers: [1000"),
    ("in.jsonl", b'"\\ud800"', "row 0 of in.jsonl has half of a surrogate pair"),
    ("in.dat", b"x", "ends in none of .npy, .parquet, .csv, .jsonl, .txt, .tsv: name its format"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=[f"{case[0]}-{case[2]}" for case in REFUSED])
def test_bad_files_are_refused(name, content, message):
    Path(name).write_bytes(content)
    assert message in row_refusal(name)


def test_wrong_arguments_are_refused():
    np.save("in.npy", VECTORS[:10])
    Path("empty").mkdir()
    assert "format must be one of auto, npy" in row_refusal("in.npy", format_="xlsx")
    assert "in.npy is a .npy array, which has no column 'x'" in row_refusal("in.npy", column="x")
    assert "input 'nowhere.npy' is not there" in row_refusal("nowhere.npy")
    assert "input 'empty' is a folder without files of rows" in row_refusal("empty")


def test_a_header_on_standard_input_can_not_claim_the_memory(monkeypatch):
    """Standard input has no size to compare the header with."""
    content = io.BufferedReader(io.BytesIO(npy_of(f"(2, {10**14})")))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
    assert "too large to read" in row_refusal("-")


def test_a_tsv_file_is_read_twice_and_thus_not_from_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"text\tid\na\t1\n"))))
    assert "a .tsv file can't be read from standard input: name the file" in row_refusal("-", format_="tsv")
