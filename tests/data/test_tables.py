"""Tables as other programs write them: which rows come out, what is said of a guess, and what is refused."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import refusals
from tests.helpers.vectors import npy_bytes, unit_vectors
from twinsqueeze.data.row_blocks import read_blocks
from twinsqueeze.data.vector_text import looks_like_vector, parse_vector

pytestmark = pytest.mark.usefixtures("in_a_new_folder")
VECTORS = unit_vectors(6, 12)
WHOLE = np.arange(72).reshape(6, 12) % 50
LISTS = [list(map(float, vector)) for vector in VECTORS]
TEXTS = ["a cat sleeps", 'she said "no, thanks"', "naïve café, 東京", "two\nlines", "a\ttab", "the last of them"]
WIDE = pd.DataFrame(VECTORS)
NAMED = WIDE.add_prefix("v")
TEXT_AND_VECTOR = pd.DataFrame({"id": range(6), "text": TEXTS, "v": LISTS})


def read(source: str, column: str | None = None) -> tuple[list, list[str]]:
    """The rows of a table, and what is said of the way they are read."""
    guesses: list[str] = []
    blocks = list(read_blocks(source, column=column, on_guess=guesses.append))
    return [row for block in blocks for row in np.array(block.rows).tolist()], guesses


def refusal(source: str, column: str | None = None) -> str:
    return refusals.refusal(read, source, column)


def assert_rows(source: str, expected: np.ndarray | Sequence[str], column: str | None = None) -> str:
    """Compares the rows; gives what is said of the way they are read."""
    rows, guesses = read(source, column)
    if isinstance(expected, np.ndarray):
        np.testing.assert_allclose(rows, expected, rtol=1e-6)
    else:
        assert rows == list(expected)
    assert len(guesses) < 2
    return "".join(guesses)


HEADER, NO_HEADER = "the first line is the header", "it has no header"
FIRST_TO_LAST = "the 12 columns '0' to '11' of {} as one vector per row"
WIDE_FILES = [
    ("pandas.csv", lambda name: WIDE.to_csv(name, index=False), f"{FIRST_TO_LAST}; {HEADER}"),
    ("pandas_index.csv", WIDE.to_csv, f"{FIRST_TO_LAST}; {HEADER}"),
    ("capitals.CSV.GZ", lambda name: WIDE.to_csv(name, index=False, compression="gzip"), f"{FIRST_TO_LAST}; {HEADER}"),
    ("pandas.tsv", lambda name: WIDE.to_csv(name, index=False, sep="\t"), f"{FIRST_TO_LAST}; {HEADER}"),
    ("header_less.csv", lambda name: WIDE.to_csv(name, index=False, header=False), f"{FIRST_TO_LAST}; {NO_HEADER}"),
    ("numpy.csv.gz", lambda name: np.savetxt(name, VECTORS, delimiter=","), f"{FIRST_TO_LAST}; {NO_HEADER}"),
    (
        "numpy.csv",
        lambda name: np.savetxt(name, VECTORS),
        f"column '0' of {{}} as vectors, which are written as text; {NO_HEADER}",
    ),
    ("semicolons.csv", lambda name: np.savetxt(name, VECTORS, delimiter=";"), NO_HEADER),
    ("numpy.txt", lambda name: np.savetxt(name, VECTORS), "the rows of {} as vectors, which are written as text"),
    (
        "numpy_names.csv",
        lambda name: np.savetxt(name, VECTORS, delimiter=",", header=",".join(NAMED)),
        f"the 12 columns 'v0' to 'v11' of {{}} as one vector per row; {HEADER}",
    ),
    (
        "with_id.csv",
        lambda name: NAMED.assign(id=range(6)).to_csv(name, index=False),
        f"the 12 columns 'v0' to 'v11' of {{}} as one vector per row; {HEADER}",
    ),
    (
        "pandas.jsonl",
        lambda name: WIDE.astype(float).to_json(name, orient="records", lines=True, double_precision=15),
        FIRST_TO_LAST,
    ),
    (
        "pandas.parquet",
        lambda name: WIDE.rename(columns=str).set_index(pd.Index(range(1, 7))).to_parquet(name),
        FIRST_TO_LAST,
    ),
    (
        "polars.csv",
        lambda name: pl.DataFrame(VECTORS).write_csv(name),
        f"the 12 columns 'column_0' to 'column_11' of {{}} as one vector per row; {HEADER}",
    ),
    ("polars.parquet", lambda name: pl.DataFrame(VECTORS).write_parquet(name), "'column_0' to 'column_11'"),
    ("polars.ndjson", lambda name: pl.DataFrame(VECTORS).write_ndjson(name), "'column_0' to 'column_11'"),
    (
        "decimals.parquet",
        lambda name: pq.write_table(
            pa.table(NAMED).cast(pa.schema([(c, pa.decimal128(12, 9)) for c in NAMED]), safe=False), name
        ),
        "'v0' to 'v11'",
    ),
    ("numpy.npy.gz", lambda name: Path(name).write_bytes(gzip.compress(npy_bytes(VECTORS))), ""),
    (
        "lists.jsonl.gz",
        lambda name: TEXT_AND_VECTOR[["v"]].to_json(name, orient="records", lines=True, double_precision=15),
        "",
    ),
]


@pytest.mark.parametrize(("name", "write", "said"), WIDE_FILES, ids=[case[0] for case in WIDE_FILES])
def test_a_vector_over_many_columns_is_read_and_the_guess_is_said(name, write, said):
    write(name)
    assert said.format(name) in assert_rows(name, VECTORS)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (WHOLE[:, :3], range(3), "the first line of in.csv can be a header or a row, 0, 1, 2"),  # whole numbers below
        (VECTORS[:, :3], [0, 2, 5], "can be a header or a row, 0, 2, 5"),  # pandas after df[[0, 2, 5]]
        (VECTORS, ["first", *VECTORS[0, 1:]], "can be a header or a row, first, "),
        (VECTORS[:0], range(12), "can be a header or a row"),
    ],
)
def test_a_first_line_that_can_be_a_header_or_a_row_is_refused(rows, header, message):
    pd.DataFrame(rows).to_csv("in.csv", index=False, header=list(map(str, header)))
    assert message in refusal("in.csv")


def test_a_pattern_names_the_columns_of_a_vector():
    NAMED.assign(text=TEXTS, w0=1.5, w1=2.5).to_csv("in.csv", index=False)
    assert "in.csv has texts, text, and numbers, v0 to v11: name the column of texts, or 'v[0-9]*'" in refusal("in.csv")
    assert "'v0' to 'v11'" in assert_rows("in.csv", VECTORS, "v*")
    assert assert_rows("in.csv", TEXTS, "text") == ""
    assert "column 'text' of in.csv is text, not one of the numbers of a vector" in refusal("in.csv", "*")
    NAMED.assign(w0=1.5, w1=2.5).to_parquet("in.parquet")
    assert "several groups of numbers, v0 to v11, w0 to w1: name one" in refusal("in.parquet")
    assert "has no column 'textt' (did you mean 'text'?); its columns are v0, v1" in refusal("in.csv", "textt")


FORMS_OF_TEXT = {
    "python": str,
    "json": json.dumps,
    "numpy": lambda v: str(np.array(v, np.float32)),
    "numpy scalars": lambda v: str(list(np.array(v, np.float32))),
    "repr": lambda v: repr(np.array(v)),
    "postgres": lambda v: f"{{{','.join(map(str, v))}}}",
    "bare": lambda v: " ".join(map(str, v)),
}
WRITERS: dict[str, Callable[[pd.DataFrame, str], object]] = {
    "csv": lambda frame, name: frame.to_csv(name, index=False),
    "tsv": lambda frame, name: frame.to_csv(name, index=False, sep="\t"),
    "jsonl": lambda frame, name: frame.to_json(name, orient="records", lines=True),
    "parquet": lambda frame, name: frame.to_parquet(name),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("form", FORMS_OF_TEXT)
def test_vectors_that_are_written_as_text_are_parsed_and_a_mixture_is_refused(form, suffix):
    name = f"in.{suffix}"
    vectors = [FORMS_OF_TEXT[form](numbers) for numbers in LISTS]
    WRITERS[suffix](pd.DataFrame({"text": TEXTS, "v": vectors}), name)
    for column in (None, "v"):
        said = assert_rows(name, VECTORS, column)
        assert "column 'v' of in." in said
        assert "as vectors, which are written as text" in said
    assert assert_rows(name, TEXTS, "text") == ""
    WRITERS[suffix](pd.DataFrame({"id": range(6), "v": [*vectors[:5], "a cat sleeps"]}), name)
    assert f"row 5 of {name} is not a list of 12 numbers: 'a cat sleeps'" in refusal(name)
    WRITERS[suffix](pd.DataFrame({"id": range(7), "v": ["a cat sleeps", *vectors]}), name)
    assert f"row 1 of {name} is a list of numbers, not a text" in refusal(name)


@pytest.mark.parametrize(
    "text", ["[0.1, null]", "[0.1, None]", "[0.1 0.2 ... 0.3]", "[0.1, 0.2, 0.", "[[0.1, 0.2]]", "[0,1; 0,2]"]
)
def test_vectors_with_gaps_and_other_damage_are_refused(text):
    assert looks_like_vector(text)
    assert parse_vector(text) is None
    pd.DataFrame({"v": [text, *map(str, LISTS)]}).to_csv("in.csv", index=False)
    assert "row 0 of in.csv is not a list of numbers: '[" in refusal("in.csv")


@pytest.mark.parametrize(
    "text", ["", "[1]", "10,000", "3 men are playing", "(1990, 2000)", "[1, 2] are cited", "1 2", "n/a", "nan"]
)
def test_texts_with_a_few_numbers_are_texts(text):
    assert not looks_like_vector(text)
    pd.DataFrame({"text": [text, *TEXTS]}).to_json("in.jsonl", orient="records", lines=True)
    assert_rows("in.jsonl", [text, *TEXTS])


numbers = st.floats(width=32, allow_nan=False)


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(st.lists(numbers, min_size=8, max_size=20), st.sampled_from(list(FORMS_OF_TEXT)))
def test_any_finite_vector_comes_back_from_its_text(vector, form):
    text = FORMS_OF_TEXT[form](vector)
    assert looks_like_vector(text) or "Infinity" in text
    np.testing.assert_allclose(parse_vector(text), np.array(vector, np.float32), rtol=1e-4, atol=1e-6)


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(st.text() | st.text("[]{}()0123456789.,; e-nN'\n"))
def test_any_text_is_looked_at_without_an_error(text):
    assert looks_like_vector(text) in {True, False}
    assert parse_vector(text) is None or len(parse_vector(text))


S = [f"text number {i}" for i in range(6)]
FLOATS = pa.list_(pa.float32())
UNNEEDED = {"m": pa.array([[("k", 1)]] * 6, pa.map_(pa.string(), pa.int8())), "u": pa.array([b"0" * 16] * 6, pa.uuid())}
IN_STRUCTS = pa.array([[{"element": number} for number in numbers] for numbers in LISTS])
ARROW_COLUMNS = {
    **{str(type_): (pa.array(S).cast(type_), S) for type_ in (pa.large_string(), pa.string_view())},
    "categorical": (pa.array(S, pa.dictionary(pa.int8(), pa.string())), S),
    "large categorical": (pa.array(S, pa.dictionary(pa.int64(), pa.large_string())), S),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(S)), S),
    **{
        str(type_): (pa.array(LISTS, type_), VECTORS)
        for type_ in (FLOATS, pa.large_list(pa.float64()), pa.list_(pa.float32(), 12), pa.list_view(pa.float32()))
    },
    "halves": (pa.array(VECTORS.astype(np.float16).tolist(), pa.list_(pa.float16())), VECTORS.astype(np.float16)),
    "decimals": (pa.array(WHOLE.tolist()).cast(pa.list_(pa.decimal128(24, 2))), WHOLE),
    **{f"{kind} bytes": (pa.array(WHOLE.tolist(), pa.list_(kind)), WHOLE) for kind in (pa.int8(), pa.uint8())},
    "tensors": (
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [12]), pa.array(LISTS, pa.list_(pa.float32(), 12))
        ),
        VECTORS,
    ),
    "lists of structs": (IN_STRUCTS, VECTORS),
    "struct of a list": (pa.StructArray.from_arrays([pa.array(LISTS)], ["values"]), VECTORS),
    "JSON as text": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(list(map(str, LISTS)))), VECTORS),
}


@pytest.mark.parametrize("type_", ARROW_COLUMNS)
def test_parquet_columns_of_many_types_are_read_beside_others(type_):
    array, expected = ARROW_COLUMNS[type_]
    pq.write_table(pa.table({"a.b": array, "id": range(6), **UNNEEDED}), "in.parquet", row_group_size=4)
    assert_rows("in.parquet", expected)
    assert_rows("in.parquet", expected, "a.b")


NEITHER = [
    *(pa.array([value]) for value in (True, b"bytes", {"a": 1, "b": 2}, [[1.0]], [True], ["a"], None)),
    *(
        pa.array([0], type_)
        for type_ in (pa.date32(), pa.timestamp("ns", "UTC"), pa.time64("us"), pa.duration("s"), pa.float32())
    ),
    *(pa.array([0]).cast(type_) for type_ in (pa.decimal128(24, 1), pa.decimal256(40, 2))),
    *UNNEEDED.values(),
]


@pytest.mark.parametrize("array", NEITHER, ids=lambda array: str(array.type))
def test_a_parquet_file_without_texts_and_vectors_is_refused_with_the_type_of_each_column(array):
    pq.write_table(pa.table({"id": range(len(array)), "c": array}), "in.parquet")
    type_ = str(pq.read_schema("in.parquet").field("c").type)
    if type_ == "float":
        assert "its columns are id (int64), c (float): name those of a vector by a pattern" in refusal("in.parquet")
    else:
        assert f"in.parquet has neither texts nor lists of numbers; its columns are id (int64), c ({type_})" in refusal(
            "in.parquet"
        )
        assert f"column 'c' of in.parquet is {type_}, neither texts nor lists of numbers" in refusal("in.parquet", "c")


@pytest.mark.parametrize("bad", [None, [1.0] * 11 + [None], [1.0] * 11, []])
@pytest.mark.parametrize("wrap", [lambda row: row, lambda row: row and [{"x": number} for number in row]])
def test_missing_numbers_are_refused_with_the_row(bad, wrap):
    rows = [*LISTS, bad, *LISTS]
    pq.write_table(pa.table({"v": pa.array([wrap(row) for row in rows])}), "in.parquet")
    assert "row 6 of in.parquet is not a list of 12 numbers: " in refusal("in.parquet")
    if wrap(bad) == bad:
        pd.DataFrame({"v": rows}).to_json("in.jsonl", orient="records", lines=True)
        assert "row 6 of in.jsonl is not a list of 12 numbers: " in refusal("in.jsonl")


def test_missing_cells_of_a_vector_over_many_columns_are_refused_with_the_row():
    gaps = NAMED.mask(np.arange(72).reshape(6, 12) == 40)
    for suffix, write in WRITERS.items():
        write(gaps, f"in.{suffix}")
        assert f"row 3 of in.{suffix} " in refusal(f"in.{suffix}")


def test_files_of_polars_and_duckdb_are_read():
    frame = pl.DataFrame({"text": S, "v": LISTS, "key": [{"x": 1, "y": 2}] * 6})
    frame.select(pl.col("text").cast(pl.Categorical), pl.col("v").cast(pl.Array(pl.Float32, 12)), "key").write_parquet(
        "polars.parquet"
    )
    frame.write_ndjson("polars.jsonl")
    table = duckdb.from_arrow(pa.table({"text": S, "v": LISTS}))
    table = table.select(*map(duckdb.SQLExpression, ("text", "v::FLOAT[12] AS v", "uuid() AS u", "MAP {'a': 1} AS m")))
    for name in ("duckdb.parquet", "duckdb.csv", "duckdb.csv.gz"):
        (table.write_parquet if name.endswith("parquet") else table.write_csv)(name)
    for name in Path().iterdir():
        assert_rows(name.name, VECTORS, "v")
        assert_rows(name.name, S, "text")
