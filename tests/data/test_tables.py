"""Tables as other programs write them: which rows come out, what is said of a guess, and what is refused."""

import gzip
import json
from collections.abc import Sequence
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

from tests.helpers.refusals import refusal
from tests.helpers.tables import read_rows, row_refusal, write_frame
from tests.helpers.vectors import npy_bytes, unit_vectors
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.data.vector_text import looks_like_vector, parse_vector

pytestmark = pytest.mark.usefixtures("in_a_new_folder")
VECTORS = unit_vectors(6, 12)
WHOLE = np.arange(72).reshape(6, 12) % 50
LISTS = [list(map(float, vector)) for vector in VECTORS]
TEXTS = ["a cat sleeps", 'she said "no, thanks"', "naïve café, 東京", "two\nlines", "a\ttab", "the last of them"]
WIDE = pd.DataFrame(VECTORS)
NAMED = WIDE.add_prefix("v")


def assert_rows(source: str, expected: np.ndarray | Sequence[str], column: str | None = None) -> str:
    """Compares the rows; gives what is said of the way they are read."""
    guesses: list[str] = []
    rows = read_rows(source, column=column, on_guess=guesses.append)
    if isinstance(expected, np.ndarray):
        np.testing.assert_allclose(rows, expected, rtol=1e-6)
    else:
        assert rows == list(expected)
    assert len(guesses) < 2
    return "".join(guesses)


HEADER, NO_HEADER = "the first line is the header", "it has no header"
AS_TEXT = "as vectors, which are written as text"
ONE_PER_ROW = "the 12 columns '0' to '11' of {} as one vector per row"


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("pandas.csv", lambda name: WIDE.to_csv(name, index=False), f"{ONE_PER_ROW}; {HEADER}"),
        ("pandas_index.csv", WIDE.to_csv, f"{ONE_PER_ROW}; {HEADER}"),
        ("pandas_semicolons.csv", lambda name: WIDE.to_csv(name, index=False, sep=";"), HEADER),
        ("header_less.csv", lambda name: WIDE.to_csv(name, index=False, header=False), f"{ONE_PER_ROW}; {NO_HEADER}"),
        ("numpy.csv", lambda name: np.savetxt(name, VECTORS), f"column '0' of {{}} {AS_TEXT}; {NO_HEADER}"),
        ("numpy_names.csv", lambda name: np.savetxt(name, VECTORS, delimiter=",", header=",".join(NAMED)), HEADER),
        ("numpy_semicolons.csv", lambda name: np.savetxt(name, VECTORS, delimiter=";"), NO_HEADER),
        ("numpy.txt", lambda name: np.savetxt(name, VECTORS), f"the rows of {{}} {AS_TEXT}"),
        ("numpy.npy.gz", lambda name: Path(name).write_bytes(gzip.compress(npy_bytes(VECTORS))), ""),
        ("every_second.csv", lambda name: WIDE.set_axis(range(0, 24, 2), axis=1).to_csv(name, index=False), HEADER),
        ("sorted.csv", lambda name: NAMED[sorted(NAMED)].to_csv(name, index=False), "in the order of their numbers"),
        ("with_id.csv", lambda name: NAMED.assign(id=1).to_csv(name, index=False), "'v0' to 'v11'"),
        ("pandas.parquet", lambda name: WIDE.add_suffix("d").to_parquet(name, index=True), "'0d' to '11d'"),
        ("polars.ndjson", lambda name: pl.DataFrame(VECTORS).write_ndjson(name), "'column_0' to 'column_11'"),
    ],
)
def test_a_vector_over_many_columns_is_read_and_the_guess_is_said(name, write, said):
    write(name)
    assert said.format(name) in assert_rows(name, VECTORS)


@pytest.mark.parametrize(
    ("rows", "header", "shown"),
    [
        (WHOLE[:, :3], range(3), "0, 1, 2: name"),  # whole numbers below
        (VECTORS[:, :3], [0, 2, 5], "0, 2, 5: name"),  # pandas after df[[0, 2, 5]]
        (VECTORS, ["first", *VECTORS[0, 1:]], "first, "),
        (VECTORS[:0], range(12), "0, 1, 2, 3, 4, ...: name"),
        (VECTORS, np.arange(12) / 10, "0.0, 0.1, "),
        (np.arange(12, 36).reshape(2, 12), range(12), "0, 1, "),
    ],
)
def test_a_first_line_that_can_be_a_header_or_a_row_is_refused(rows, header, shown):
    pd.DataFrame(rows).to_csv("in.csv", index=False, header=list(map(str, header)))
    assert f"the first line of in.csv can be a header or a row, {shown}" in row_refusal("in.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", "id;text\n1;a\n2;b\n", "has one column, id;text: separate cells as its suffix says, not by ';'"),
        ("in.tsv", "id,text\n1,a\n2,b\n", "has one column, id,text: separate cells as its suffix says, not by ','"),
        ("in.txt", "one\rtwo\rthree", "its lines end with \\r: end them with \\n"),
        ("in.csv", "v0,v1\n1.5,2.5\nNA,0.5\n", "row 1 of in.csv is not a list of 2 numbers: ['NA', '0.5']"),
    ],
)
def test_other_separators_line_ends_and_missing_numbers_are_refused(name, content, message):
    Path(name).write_text(content, newline="")
    assert message in row_refusal(name)


def test_a_pattern_names_the_columns_of_a_vector():
    NAMED.assign(text=TEXTS, w0=1.5, w1=2.5).to_csv("in.csv", index=False)
    assert "has texts, text, and numbers, v0 to v11: name the column of texts, or 'v[0-9]*'" in row_refusal("in.csv")
    assert "'v0' to 'v11'" in assert_rows("in.csv", VECTORS, "v*")
    assert assert_rows("in.csv", TEXTS, "text") == ""
    assert "column 'text' of in.csv is text, not one of the numbers" in row_refusal("in.csv", column="*")
    NAMED.assign(w0=1.5, w1=2.5).to_parquet("in.parquet")
    assert "several groups of numbers, v0 to v11, w0 to w1: name one" in row_refusal("in.parquet")
    assert "has no column 'textt' (did you mean 'text'?); its columns are v0" in row_refusal("in.csv", column="textt")


SUFFIXES = ("csv", "tsv", "jsonl", "parquet")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_vectors_that_are_written_as_text_are_parsed_and_a_mixture_is_refused(suffix):
    name, vectors = f"in.{suffix}", list(map(str, VECTORS))
    write_frame(pd.DataFrame({"text": TEXTS, "v": vectors}), name)
    for column in (None, "v"):
        assert f"column 'v' of {name} {AS_TEXT}" in assert_rows(name, VECTORS, column)
    assert assert_rows(name, TEXTS, "text") == ""
    write_frame(pd.DataFrame({"id": range(6), "v": [*vectors[:5], "a cat sleeps"]}), name)
    assert f"row 5 of {name} is not a list of 12 numbers: 'a cat sleeps'" in row_refusal(name)
    write_frame(pd.DataFrame({"id": range(7), "v": ["a cat sleeps", *vectors]}), name)
    assert f"row 1 of {name} is '" in row_refusal(name)
    assert ", not a text: remove the row, or keep vectors in a column of their own" in row_refusal(name)


@pytest.mark.parametrize(
    "text", ["[0.1, null]", "[0.1, None]", "[0.1 0.2 ... 0.3]", "[0.1, 0.2, 0.", "[[0.1, 0.2]]", "[0,1; 0,2]"]
)
def test_vectors_with_gaps_and_other_damage_are_refused(text):
    assert looks_like_vector(text)
    assert parse_vector(text) is None
    pd.DataFrame({"v": [text, *map(str, LISTS)]}).to_csv("in.csv", index=False)
    assert "row 0 of in.csv is not a list of numbers: '[" in row_refusal("in.csv")


@pytest.mark.parametrize(
    "text", ["", "[1]", "10,000", "3 men are playing", "(1990, 2000)", "[1, 2] are cited", "1 2", "n/a", "nan"]
)
def test_texts_with_a_few_numbers_are_texts(text):
    assert not looks_like_vector(text)
    pd.DataFrame({"text": [text, *TEXTS]}).to_json("in.jsonl", orient="records", lines=True)
    assert_rows("in.jsonl", [text, *TEXTS])


FORMS_OF_TEXT = [
    str,
    json.dumps,
    lambda vector: str(np.array(vector, np.float32)),
    lambda vector: str(list(np.array(vector, np.float32))),
    lambda vector: repr(np.array(vector)),
    lambda vector: f"{{{','.join(map(str, vector))}}}",  # PostgreSQL
    lambda vector: " ".join(map(str, vector)),
]
tried = settings(max_examples=60, derandomize=True, database=None, deadline=None)


@tried
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=8, max_size=20), st.sampled_from(FORMS_OF_TEXT))
def test_any_finite_vector_comes_back_from_its_text(vector, form):
    text = form(vector)
    assert looks_like_vector(text) or "Infinity" in text
    np.testing.assert_allclose(parse_vector(text), np.array(vector, np.float32), rtol=1e-4, atol=1e-6)


@tried
@given(st.text() | st.text("[]{}()0123456789.,; e-nN'\n"))
def test_any_text_is_looked_at_without_an_error(text):
    assert looks_like_vector(text) in {True, False}
    assert parse_vector(text) is None or len(parse_vector(text))


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
DECIMALS = [pa.decimal32(6, 2), pa.decimal64(9, 2), pa.decimal128(24, 2), pa.decimal256(40, 2)]
NUMBERS = [*INTEGERS, pa.float16(), pa.float32(), pa.float64(), *DECIMALS]
STRINGS = [pa.string(), pa.large_string(), pa.string_view()]
TEXT_TYPES = [
    *(*STRINGS, pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int64(), pa.large_string())),
    *(pa.json_(), pa.opaque(pa.string(), "type", "vendor"), pa.struct({"x": pa.string()})),
]
LIST_TYPES = [
    *(pa.list_(number) for number in NUMBERS),
    *(list_of(pa.float16()) for list_of in (pa.large_list, pa.list_view, pa.large_list_view)),
    *(pa.list_(pa.float32(), 12), pa.fixed_shape_tensor(pa.float32(), [12]), pa.struct({"x": pa.list_(pa.float32())})),
    pa.list_(pa.struct({"element": pa.float32()})),  # as DuckDB wrote FLOAT[12]
]
OTHER_TYPES = [
    *(pa.null(), pa.bool_(), pa.bool8(), pa.uuid(), pa.date32(), pa.timestamp("ns", "UTC"), pa.duration("ns")),
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(16), pa.time32("ms"), pa.time64("us")),
    *(pa.list_(type_) for type_ in (pa.bool8(), pa.bool_(), pa.string(), pa.null(), pa.list_(pa.float32()))),
    *(pa.map_(pa.string(), pa.int8()), pa.struct({"a": pa.int8(), "b": pa.int8()})),
    *(pa.list_(pa.struct({"a": pa.date32()})), pa.fixed_shape_tensor(pa.float32(), [3, 4])),
    pa.list_(pa.list_(pa.float32(), 4), 3),
]
NOT_IN_PARQUET = [
    *(pa.run_end_encoded(pa.int32(), pa.string()), pa.month_day_nano_interval()),
    *(union([pa.field("x", pa.int8())]) for union in (pa.dense_union, pa.sparse_union)),
]


def column_of(type_: pa.DataType, values: list) -> pa.Array:
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, pa.array(values, type_.storage_type))
    if pa.types.is_struct(type_):
        return pa.StructArray.from_arrays([column_of(type_.field(0).type, values)], ["x"])
    if pa.types.is_list(type_) and pa.types.is_struct(type_.value_type):
        values = [[{"element": number} for number in row] for row in values]
    return pa.array(values, type_)


def test_these_are_all_types_of_arrow():
    types = [*NUMBERS, *TEXT_TYPES, *LIST_TYPES, *OTHER_TYPES, *NOT_IN_PARQUET, pa.date64()]
    checks = {name for name in dir(pa.types) if name.startswith("is_") and not name.endswith("_value")}
    assert not [name for name in checks if not any(getattr(pa.types, name)(type_) for type_ in types)]
    for type_ in NOT_IN_PARQUET:
        with pytest.raises(pa.ArrowNotImplementedError):
            pq.write_table(pa.table({"c": pa.nulls(1, type_)}), "in.parquet")


S = [f"text number {i}" for i in range(6)]
SENTENCES = {"sentence1": S, "sentence2": S[::-1], "score": [0.0, 1, 2, 3, 4, 5]}


def load_train(**columns: pa.Array | list) -> tuple[tuple[str, ...], list[float]]:
    pq.write_table(pa.table({**SENTENCES, **columns}), "train.parquet")
    train = load_pairs(".", splits=["train"]).splits["train"]
    return train.sentence1, train.scores.tolist()


@pytest.mark.parametrize("type_", [*TEXT_TYPES, *LIST_TYPES], ids=str)
def test_parquet_columns_of_texts_and_vectors_are_read_beside_others(type_):
    rows = S if type_ in TEXT_TYPES else WHOLE
    array = column_of(type_, np.array(rows).tolist())
    others = {str(i): pa.nulls(6, other) for i, other in enumerate(OTHER_TYPES)}
    pq.write_table(pa.table({"a.b": array, "id": range(6), **others}), "in.parquet", row_group_size=4)
    for column in (None, "a.b"):
        assert_rows("in.parquet", rows, column)
    assert load_train(other=array, **others) == (tuple(S), SENTENCES["score"])
    if type_ in TEXT_TYPES:
        assert load_train(sentence1=array)[0] == tuple(S)
    else:
        assert "column 'sentence1' of " in refusal(load_train, sentence1=array)
    if type_ in STRINGS:
        pq.write_table(pa.table({"v": column_of(type_, list(map(str, LISTS)))}), "in.parquet")
        assert AS_TEXT in assert_rows("in.parquet", VECTORS)


@pytest.mark.parametrize("type_", OTHER_TYPES, ids=str)
def test_other_parquet_columns_are_refused_with_name_and_type(type_):
    pq.write_table(pa.table({"id": range(6), "c": pa.nulls(6, type_)}), "in.parquet")
    shown = str(pq.read_schema("in.parquet").field("c").type)
    assert f"neither texts nor lists of numbers; its columns are id (int64), c ({shown})" in row_refusal("in.parquet")
    assert f"column 'c' of in.parquet is {shown}, neither texts nor lists" in row_refusal("in.parquet", column="c")
    if type_ not in {pa.null(), pa.bool_(), pa.bool8()}:  # truth values are 0 and 1
        for name in ("sentence1", "score"):
            message = refusal(load_train, **{name: pa.nulls(6, type_)})
            assert f"column {name!r} of " in message
            assert "train.parquet is " + shown.replace("'c'", repr(name)) in message


@pytest.mark.parametrize("type_", NUMBERS, ids=str)
def test_parquet_columns_of_numbers_are_scores_and_together_a_vector(type_):
    columns = {f"v{i}": column_of(type_, WHOLE[:, i].tolist()) for i in range(12)}
    pq.write_table(pa.table(dict(sorted(columns.items()))), "in.parquet")
    assert "in the order of their numbers" in assert_rows("in.parquet", WHOLE)
    assert load_train(score=column_of(type_, list(range(6))))[1] == list(range(6))


def test_missing_rows_that_arrow_does_not_read_are_refused_with_the_row():
    rows = [*LISTS, *LISTS, None, *LISTS]
    for type_ in (pa.list_(pa.float32(), 12), pa.fixed_shape_tensor(pa.float32(), [12])):
        pq.write_table(pa.table({"c": column_of(type_, rows)}), "in.parquet", row_group_size=7)
        shown = pq.read_schema("in.parquet").field("c").type
        assert f"row 12 of in.parquet is missing or damaged in column 'c', {shown}" in row_refusal("in.parquet")
    gap = "SELECT CASE WHEN i = 5 THEN NULL ELSE [i, 1]::FLOAT[2] END AS c FROM range(9) r(i)"
    duckdb.sql(gap).write_parquet("in.parquet")
    assert "row 5 of in.parquet is missing or damaged in column 'c', list<element: float>" in row_refusal("in.parquet")


@pytest.mark.parametrize("bad", [None, [1.0] * 11 + [None], [1.0] * 11, []])
@pytest.mark.parametrize("wrap", [lambda row: row, lambda row: row and [{"x": number} for number in row]])
def test_missing_numbers_are_refused_with_the_row(bad, wrap):
    rows = [*LISTS, bad, *LISTS]
    pq.write_table(pa.table({"v": pa.array([wrap(row) for row in rows])}), "in.parquet")
    assert "row 6 of in.parquet is not a list of 12 numbers: " in row_refusal("in.parquet")
    if wrap(bad) == bad:
        pd.DataFrame({"v": rows}).to_json("in.jsonl", orient="records", lines=True)
        assert "row 6 of in.jsonl is not a list of 12 numbers: " in row_refusal("in.jsonl")


def test_missing_cells_of_a_vector_over_many_columns_are_refused_with_the_row():
    gaps = NAMED.mask(np.arange(72).reshape(6, 12) == 40)
    for suffix in SUFFIXES:
        write_frame(gaps, f"in.{suffix}")
        assert f"row 3 of in.{suffix} " in row_refusal(f"in.{suffix}")


def test_files_of_polars_and_duckdb_are_read():
    frame = pl.DataFrame({"text": S, "v": LISTS, "key": [{"x": 1, "y": 2}] * 6})
    frame.write_ndjson("polars.jsonl")
    narrow = frame.with_columns(pl.col("text").cast(pl.Categorical), pl.col("v").cast(pl.Array(pl.Float32, 12)))
    narrow.write_parquet("polars.parquet")
    table = duckdb.from_arrow(frame.to_arrow())
    table = table.select(*map(duckdb.SQLExpression, ("text", "v::FLOAT[12] AS v", "uuid() AS u", "MAP {'a': 1} AS m")))
    table.write_parquet("duckdb.parquet")
    table.write_csv("duckdb.csv")
    for name in Path().iterdir():
        assert_rows(name.name, VECTORS, "v")
        assert_rows(name.name, S, "text")
