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
from twinsqueeze.commands.options import parse_columns
from twinsqueeze.data.row_blocks import read_blocks
from twinsqueeze.data.sentence_pairs import COLUMNS, load_pairs
from twinsqueeze.utils.files import expand_user

pytestmark = pytest.mark.usefixtures("in_a_new_folder")
TEXTS = ["a cat sleeps", 'she said "no, thanks"', "naïve café, 東京", "two\nlines", "the last of them"]
ROWS = [("a", "b", 0.0), ('"Hello', 'he said" and left', 1.5), ("naïve", "NA", 5.0)]


def read(source: str) -> list:
    return [row for block in read_blocks(source) for row in np.array(block.rows).tolist()]


def pairs(folder: str = ".", **options) -> list[tuple[str, str, float]]:
    return rows_of(load_pairs(folder, splits=["train"], **options).splits["train"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-32-be", "latin-1"])
def test_encodings_are_read_or_named(encoding, suffix):
    texts = TEXTS[:2] if encoding == "latin-1" else TEXTS
    if suffix == "csv":
        content = pd.DataFrame({"text": [*texts, "é"]}).to_csv(index=False)
    else:
        texts = [text for text in texts if suffix == "jsonl" or "\n" not in text]
        lines = [*texts, "é"] if suffix == "txt" else [json.dumps(text, ensure_ascii=False) for text in [*texts, "é"]]
        content = "\n".join(lines) + "\n"
    for name, written in (
        (f"in.{suffix}", content.encode(encoding)),
        (f"in.{suffix}.gz", gzip.compress(content.encode(encoding))),
    ):
        Path(name).write_bytes(written)
        if encoding in {"utf-16-le", "utf-32-be"}:
            assert f"{name} seems to be {encoding[:6].upper()} without a byte order mark" in refusal(read, name)
        elif encoding == "latin-1":
            assert f"{name} is not UTF-8 (after row 0), perhaps Windows-1252: save it as UTF-8" in refusal(read, name)
        else:
            assert read(name) == [*texts, "é"]


def test_damaged_utf_16_and_gzip_are_refused():
    content = "\n".join(TEXTS)
    Path("in.txt").write_bytes(content.encode("utf-16")[:-1])
    assert "in.txt is not UTF-16 (after row" in refusal(read, "in.txt")
    Path("in.txt").write_bytes(gzip.compress(content.encode())[:-9])
    assert "in.txt is damaged, truncated or not a .txt file: Compressed file ended" in refusal(read, "in.txt")
    Path("in.csv").write_bytes(gzip.compress(b""))
    assert "input 'in.csv' is empty" in refusal(read, "in.csv")
    Path("in.parquet").write_bytes(gzip.compress(b"PAR1"))
    assert "a .parquet file can't be read from gzip" in refusal(read, "in.parquet")


def write_parts(folder: str, number: int = 12, name: str = "part-{}-0a.c000.snappy.parquet") -> list[list[float]]:
    """Writes two vectors per part in a folder as Spark does, the third part without rows; returns the vectors."""
    Path(folder).mkdir(parents=True)
    vectors = np.arange(number * 2 * 3, dtype=np.float32).reshape(-1, 3)
    for i in range(number):
        part = vectors[2 * i : 2 * i + (0 if i == 2 else 2)]
        pq.write_table(pa.table({"v": pa.array(list(part), pa.list_(pa.float32()))}), Path(folder, name.format(i)))
        Path(folder, f".{name.format(i)}.crc").write_bytes(b"crc")
    Path(folder, "_SUCCESS").touch()
    return np.delete(vectors, [4, 5], 0).tolist()


def test_the_parts_of_a_folder_are_read_in_the_order_of_their_numbers():
    expected = write_parts("vectors.parquet")
    blocks = list(read_blocks("vectors.parquet"))
    assert np.concatenate([block.rows for block in blocks]).tolist() == expected
    assert [block.first_row for block in blocks] == list(range(0, 22, 2))
    assert blocks[-1].position == blocks[-1].total
    assert read(f"file://{Path.cwd()}/vectors.parquet") == expected


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"w": [[1.0, 2.0, 3.0]]}, "has other columns than the files before it"),
        ({"v": [[1.0, 2.0]]}, "row 6 of parts is a list of 2 numbers, and the rows before it are a list of 3 numbers"),
        ({"v": ["a text"]}, "has other columns than the files before it"),
        (None, "folder 'parts' has files of several formats, "),
    ],
)
def test_parts_that_differ_are_refused(column, message):
    write_parts("parts", 4)
    if column:
        pq.write_table(pa.table(column), "parts/part-9.parquet")
    else:
        Path("parts/part-9.csv").write_text("v\n1\n")
    assert message in refusal(read, "parts")


SCORED = pd.DataFrame(ROWS, columns=COLUMNS)
TO_PARQUET, TO_CSV = pd.DataFrame.to_parquet, pd.DataFrame.to_csv
LAYOUTS = {
    "hub": [("data/train-00000-of-00002.parquet", 0, 1), ("data/train-00001-of-00002.parquet", 1, 3)],
    "old hub": [("data/train-00000-of-00001-0123456789abcdef.parquet", 0, 3)],
    "spark": [("train/part-00000-x.c000.snappy.parquet", 0, 2), ("train/part-00001-x.c000.snappy.parquet", 2, 3)],
    "spark with a suffix": [("train.parquet/part-00000-x.parquet", 0, 3)],
    "hub's conversion": [("train/0000.parquet", 0, 3)],
    "gzip": [("train.csv.gz", 0, 3)],
    "capitals": [("TRAIN.CSV", 0, 3)],
    "lines": [("train.jsonl.gz", 0, 3)],
    "data": [("data/train.tsv", 0, 3)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_found_in_the_layouts_of_others(layout):
    for name, start, end in LAYOUTS[layout]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        part = SCORED[start:end]
        if "parquet" in name:
            part.to_parquet(name)
        elif "json" in name:
            part.to_json(name, orient="records", lines=True)
        else:
            part.to_csv(name, index=False, sep="\t" if name.endswith("tsv") else ",")
        Path(name).with_name("_SUCCESS").touch()
        Path(name).with_name("README.md").write_text("# Data")
    assert pairs() == ROWS
    assert pairs(f"file://{Path.cwd()}") == ROWS


def test_files_that_would_be_left_out_or_doubled_are_refused():
    Path("data").mkdir()
    SCORED.to_csv("train.csv", index=False)
    SCORED.to_csv("data/train.csv", index=False)
    assert "has two files for the split train, train.csv and data/train.csv: keep one" in refusal(pairs)
    Path("data/part-2.csv").symlink_to("nowhere.csv")
    assert "'data/part-2.csv' can't be read: it is a link to nothing" in refusal(read, "data")


def test_linked_folders_are_read_and_the_hubs_metadata_is_not():
    SCORED[:2].to_json("rows.json", orient="records", lines=True)
    Path("train").mkdir()
    Path("train/dataset_info.json").write_text("{}")
    SCORED[2:].to_json("train/b.json", orient="records", lines=True)
    Path("more").mkdir()
    Path("rows.json").rename("more/a.json")
    Path("train/a").symlink_to("../more")
    assert pairs() == ROWS


def test_shards_that_are_missing_are_refused():
    SCORED.to_parquet("train-00000-of-00003.parquet")
    assert "train-*-of-00003.parquet has 1 files, number 0: it needs one of each number from 0 to 2" in refusal(pairs)


TSV = "sentence1\tsentence2\tscore\n"
UNQUOTED = [
    'a\tb\t0\n"Hello\tx\t1\nworld"\ty\t5\n',  # reading quotes would join the last two lines
    'a\tb\t0\n"Hello\tx\t1\nc\td\t5\n',
    'a\tb\t0\n"Hello" he said\tx\t1\n"c" "d"\td\t5\n',
    'a "\tb"\t0\n"He said ""no\tx\t1\nc"\td\t5\n',
]


@pytest.mark.parametrize("rows", [*UNQUOTED, 'a\tb\t0\n"Hello"\tx\t1\n"c" "d"\td\t5\n', 'a\tb\t0\n"Hello"\tx\t4\n'])
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
    pd.DataFrame(rows, columns=COLUMNS).to_csv("train.tsv", index=False, sep="\t")
    assert "train.tsv has a field in quotes that holds a tab and a line's end" in refusal(pairs)
    Path("train.tsv").write_text(f"{TSV}a\tb\n")
    assert "row 1 of " in (message := refusal(pairs))
    assert "can't be read as tsv: 2 cells, and the first line has 3" in message


def test_unneeded_keys_of_jsonl_may_be_of_any_types():
    """As seen in 20 MB of pairs, in which types of keys change from row 100,000 on."""
    rows = [{"sentence1": f"a {i}", "sentence2": "b", "score": i % 6, "note": None, "id": i} for i in range(3000)]
    for row in rows[2000:]:
        row |= {"score": row["score"] / 2, "note": "text", "id": str(row["id"]), "new": {"key": [1]}}
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pairs() == [(row["sentence1"], "b", row["score"]) for row in rows]


NAMES = [
    (("text1", "text2", "label"), "sentence1=text1,sentence2=text2,score=label"),
    (
        ("sentence_A", "sentence_B", "relatedness_score"),
        "sentence1=sentence_A,sentence2=sentence_B,score=relatedness_score",
    ),
    (("anchor", "positive", "similarity"), "sentence1=anchor,sentence2=positive,score=similarity"),
    (("Sentence1", "Sentence2", "Score"), "sentence1=Sentence1,sentence2=Sentence2,score=Score"),
    (
        ("Question, 1", "Question, 2", "is_duplicate"),
        '"sentence1=Question, 1","sentence2=Question, 2",score=is_duplicate',
    ),
    (("sentence1", "sentence2", "label"), "score=label"),
]


@pytest.mark.parametrize(("names", "option"), NAMES)
def test_other_names_of_columns_are_suggested_and_taken(names, option):
    pd.DataFrame(ROWS, columns=names).to_csv("train.csv", index=False)
    assert refusal(pairs).endswith(f"its columns are {', '.join(names)}: did you mean --columns {shlex.quote(option)}?")
    columns = parse_columns(option)
    data = load_pairs(".", splits=["train"], columns=columns)
    assert (rows_of(data.splits["train"]), data.columns) == (ROWS, columns)


def test_a_hint_says_what_else_is_missing():
    pd.DataFrame(ROWS, columns=["anchor", "positive", "id"])[["anchor", "positive"]].to_csv("train.csv", index=False)
    hint = "did you mean --columns sentence1=anchor,sentence2=positive? A column of scores is needed too"
    assert refusal(pairs).endswith(hint)
    SCORED.to_csv("train.csv", index=False, sep=";")
    assert "its columns are sentence1;sentence2;score: separate cells as its suffix says, not by ';'" in refusal(pairs)
    assert "columns can rename sentence1, sentence2, score, not 'text'" in refusal(pairs, columns={"text": "a"})


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        *((f"{start}/a%20b/c%C3%A9", "/a b/cé") for start in ("file://", "file:", "file://localhost")),
        ("file://host/a", "file:/host/a"),
        ("file", "file"),
        ("file::data", "file::data"),
    ],
)
def test_file_uris_are_paths(uri, path):
    assert expand_user(uri) == Path(path)
