"""Where the rows of tables come from: encodings, gzip, folders, shards, and the splits of pairs that others wrote."""

import gzip
import json
import shlex
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.pairs import rows_of
from tests.helpers.refusals import refusal
from tests.helpers.tables import read_rows, row_refusal, write_frame
from twinsqueeze.commands.options import parse_columns
from twinsqueeze.data.row_blocks import read_blocks
from twinsqueeze.data.sentence_pairs import COLUMNS, load_pairs
from twinsqueeze.utils.files import expand_user

pytestmark = pytest.mark.usefixtures("in_a_new_folder")
ROWS = [("a", "b", 0.0), ('"Hello', 'he said" and left', 1.5), ("naïve", "NA", 5.0)]


def pairs(folder: str = ".", **options) -> list[tuple[str, str, float]]:
    return rows_of(load_pairs(folder, splits=["train"], **options).splits["train"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-32-be"])
def test_encodings_are_read_or_named(encoding, suffix):
    texts = ["a cat sleeps", 'she said "no, thanks"', "naïve café, 東京", "é"]
    texts += [] if suffix == "txt" else ["two\nlines"]
    lines = [json.dumps(text, ensure_ascii=False) for text in texts] if suffix == "jsonl" else texts
    content = pd.DataFrame({"text": texts}).to_csv(index=False) if suffix == "csv" else "\n".join(lines)
    Path(f"in.{suffix}").write_bytes(content.encode(encoding))
    Path(f"in.{suffix}.gz").write_bytes(gzip.compress(content.encode(encoding)))
    for name in (f"in.{suffix}", f"in.{suffix}.gz"):
        if encoding in {"utf-16-le", "utf-32-be"}:
            assert f"{name} seems to be {encoding[:6].upper()} without a byte order mark" in row_refusal(name)
        else:
            assert read_rows(name) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.txt", b"caf\xe9\n", "in.txt is not UTF-8 (after row 0), perhaps Windows-1252: save it as UTF-8"),
        ("in.csv", b"caf\xe9\n", "in.csv is not UTF-8 (after row 0), perhaps Windows-1252: save it as UTF-8"),
        ("in.txt", "naïve".encode("utf-16")[:-1], "in.txt is not UTF-16 (after row"),
        (
            "in.txt",
            gzip.compress(b"a text", mtime=0)[:-9],
            "in.txt is damaged, truncated or not a .txt file: Compressed file",
        ),
        ("in.csv", gzip.compress(b"", mtime=0), "input 'in.csv' is empty"),
        ("in.parquet", gzip.compress(b"PAR1", mtime=0), "a .parquet file can't be read from gzip"),
    ],
)
def test_other_encodings_and_damaged_files_are_refused(name, content, message):
    Path(name).write_bytes(content)
    assert message in row_refusal(name)


@pytest.fixture
def parts() -> list[list[float]]:
    """Vectors in a folder: 12 parts of two each, as Spark writes them, the third without rows."""
    Path("parts.parquet").mkdir()
    vectors = np.arange(72, dtype=np.float32).reshape(12, 2, 3).tolist()
    vectors[2] = []
    for i, part in enumerate(vectors):
        name = f"part-{i}-0a.c000.snappy.parquet"
        pq.write_table(pa.table({"v": pa.array(part, pa.list_(pa.float32()))}), f"parts.parquet/{name}")
        Path(f"parts.parquet/.{name}.crc").write_bytes(b"crc")
    Path("parts.parquet/_SUCCESS").touch()
    return [vector for part in vectors for vector in part]


def test_the_parts_of_a_folder_are_read_in_the_order_of_their_numbers(parts):
    blocks = list(read_blocks("parts.parquet"))
    assert np.concatenate([block.rows for block in blocks]).tolist() == parts
    assert [block.first_row for block in blocks] == list(range(0, 22, 2))
    assert blocks[-1].position == blocks[-1].total
    assert read_rows(f"file://{Path.cwd()}/parts.parquet") == parts


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"w": [[1.0, 2.0, 3.0]]}, "has other columns than the files before it"),
        ({"v": [[1.0, 2.0]]}, "row 22 of parts.parquet is a list of 2 numbers, and the rows before it are a list of 3"),
        ({"v": ["a text"]}, "has other columns than the files before it"),
    ],
)
def test_parts_that_differ_are_refused(parts, column, message):
    pq.write_table(pa.table(column), "parts.parquet/part-12.parquet")
    assert message in row_refusal("parts.parquet")
    Path("parts.parquet/part-13.csv").write_text("v\n1\n")
    assert "folder 'parts.parquet' has files of several formats, " in row_refusal("parts.parquet")


SCORED = pd.DataFrame(ROWS, columns=COLUMNS)


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),  # the Hub
        ("data/train-00000-of-00001-0123456789abcdef.parquet",),  # the Hub, earlier
        ("train/0000.parquet",),  # the Hub, converted
        ("train/part-00000-x.c000.snappy.parquet", "train/part-00001-x.c000.snappy.parquet"),  # Spark
        ("train.parquet/part-00000-x.parquet",),  # Spark
        ("TRAIN.CSV",),
        ("train.csv.gz",),
        ("train.jsonl.gz",),
        ("data/train.tsv",),
    ],
    ids=lambda names: names[0],
)
def test_splits_are_found_in_the_layouts_of_others(names):
    for i, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        write_frame(SCORED[i : i + 1] if i < len(names) - 1 else SCORED[i:], name)
        Path(name).with_name("_SUCCESS").touch()
        Path(name).with_name("README.md").write_text("# Data")
    assert pairs() == ROWS
    assert pairs(f"file://{Path.cwd()}") == ROWS


def test_files_that_would_be_left_out_or_doubled_are_refused():
    Path("data").mkdir()
    for name in ("train.csv", "data/train.csv"):
        write_frame(SCORED, name)
    assert "has two files for the split train, train.csv and data/train.csv: keep one" in refusal(pairs)
    Path("data/part-2.csv").symlink_to("nowhere.csv")
    assert "'data/part-2.csv' can't be read: it is a link to nothing" in row_refusal("data")


def test_linked_folders_are_read_and_the_hubs_metadata_is_not():
    Path("train").mkdir()
    Path("train/dataset_info.json").write_text("{}")
    Path("linked").mkdir()
    Path("train/a").symlink_to("../linked")
    write_frame(SCORED[:2], "linked/a.json")
    write_frame(SCORED[2:], "train/b.json")
    assert pairs() == ROWS


def test_shards_that_are_missing_are_refused():
    SCORED.to_parquet("train-00000-of-00003.parquet")
    assert "train-*-of-00003.parquet has 1 files, number 0: it needs one of each number from 0 to 2" in refusal(pairs)


TSV = "sentence1\tsentence2\tscore\n"


@pytest.mark.parametrize(
    "rows",
    [
        'a\tb\t0\n"Hello\tx\t1\nworld"\ty\t5\n',  # reading quotes would join the last two lines
        'a\tb\t0\n"Hello\tx\t1\nc\td\t5\n',
        'a\tb\t0\n"Hello" he said\tx\t1\n"c" "d"\td\t5\n',
        'a "\tb"\t0\n"He said ""no\tx\t1\nc"\td\t5\n',
        'a\tb\t0\n"Hello"\tx\t1\n"c" "d"\td\t5\n',
        'a\tb\t0\n"Hello"\tx\t4\n',
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_quotes_in_a_tsv_without_quoting_are_part_of_the_texts(rows, line_end):
    Path("train.tsv").write_bytes((TSV + rows).replace("\n", line_end).encode())
    expected = [(*line.split("\t")[:2], float(line.split("\t")[2])) for line in rows.splitlines()]
    assert pairs() == expected


@pytest.mark.parametrize("quoting", [0, 1, 2])  # csv.QUOTE_MINIMAL, QUOTE_ALL, QUOTE_NONNUMERIC
@pytest.mark.parametrize("text", ['"Hello', 'he said "no"', '"', "tab\there", "two\nlines", "a, b"])
def test_a_tsv_with_quoting_is_read(quoting, text):
    rows = [("a", "b", 0.0), (text, "plain", 1.0), ("c", text, 5.0)]
    pd.DataFrame(rows, columns=COLUMNS).to_csv("train.tsv", index=False, sep="\t", quoting=quoting)
    assert pairs() == rows
    duckdb.from_df(pd.DataFrame(rows, columns=COLUMNS)).write_csv("train.tsv", sep="\t")
    assert pairs() == rows


def test_a_tsv_field_with_a_tab_and_a_line_end_is_refused():
    rows = [("a", "b", 0.0), ("tab\tand\nline", "x", 1.0)]
    write_frame(pd.DataFrame(rows, columns=COLUMNS), "train.tsv")
    assert "train.tsv has a field in quotes that holds a tab and a line's end" in refusal(pairs)
    Path("train.tsv").write_text(f"{TSV}a\tb\n")
    assert "row 1 of " in refusal(pairs)
    assert "can't be read as tsv: 2 cells, and the first line has 3" in refusal(pairs)


def test_unneeded_keys_of_jsonl_may_be_of_any_types():
    rows = [{"sentence1": f"a {i}", "sentence2": "b", "score": i % 6, "note": None, "id": i} for i in range(300)]
    for row in rows[200:]:
        row |= {"score": row["score"] / 2, "note": "text", "id": str(row["id"]), "new": {"key": [1]}}
    Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert pairs() == [(row["sentence1"], "b", row["score"]) for row in rows]


@pytest.mark.parametrize(
    "option",
    [
        "sentence1=text1,sentence2=text2,score=label",
        "sentence1=sentence_A,sentence2=sentence_B,score=relatedness_score",
        "sentence1=anchor,sentence2=positive,score=similarity",
        "sentence1=Sentence1,sentence2=Sentence2,score=Score",
        '"sentence1=Question, 1","sentence2=Question, 2",score=is_duplicate',
        "score=label",
    ],
)
def test_other_names_of_columns_are_suggested_and_taken(option):
    columns = parse_columns(option)
    names = [columns.get(name, name) for name in COLUMNS]
    pd.DataFrame(ROWS, columns=names).to_csv("train.csv", index=False)
    assert refusal(pairs).endswith(f"its columns are {', '.join(names)}: did you mean --columns {shlex.quote(option)}?")
    data = load_pairs(".", splits=["train"], columns=columns)
    assert (rows_of(data.splits["train"]), data.columns) == (ROWS, columns)


def test_a_hint_says_what_else_is_missing():
    pd.DataFrame({"anchor": ["a"], "positive": ["b"]}).to_csv("train.csv", index=False)
    hint = "did you mean --columns sentence1=anchor,sentence2=positive? A column of scores is needed too"
    assert refusal(pairs).endswith(hint)
    SCORED.to_csv("train.csv", index=False, sep=";")
    assert "its columns are sentence1;sentence2;score: separate cells as its suffix says, not by ';'" in refusal(pairs)
    assert "columns can rename sentence1, sentence2, score, not 'text'" in refusal(pairs, columns={"text": "a"})


def test_file_uris_are_paths():
    for start in ("file://", "file:", "file://localhost"):
        assert expand_user(f"{start}/a%20b/c%C3%A9") == Path("/a b/cé")
    for other in ("file://host/a", "file", "file::data"):
        assert expand_user(other) == Path(other)
