"""Datasets without scores: what is recognized, how it is split, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from scripts.make_growth import draw_queries
from twinsqueeze.data import rows_alone
from twinsqueeze.data.dataset import RowSplit
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.errors import InputError
from twinsqueeze.task import NEIGHBORS, RETRIEVAL, SIMILARITY
from twinsqueeze.utils.console import SILENT

VECTORS = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
TEXTS = [f"sentence number {i}" for i in range(300)]


def rows_by_split(dataset):
    return {name: split.rows for name, split in dataset.splits.items()}


def write_npy(path, array):
    np.save(path, array)
    return str(path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, v: np.save(path / "v.npy", v),
        lambda path, v: np.save(path / "v.npy", np.asfortranarray(v * 3).astype(">f8")),
        lambda path, v: pd.DataFrame({"id": range(300), "embedding": list(v)}).to_parquet(path / "v.parquet"),
        lambda path, v: [np.save(path / f"part-{i}.npy", v[i::2]) for i in range(2)],
        lambda path, v: pd.DataFrame(v).to_csv(path / "v.csv", index=False),
    ],
)
def test_vectors_are_normalized_and_split_by_their_content(tmp_path, write):
    write(tmp_path, VECTORS)
    dataset = load_dataset(str(tmp_path))
    rows = rows_by_split(dataset)
    assert dataset.task == NEIGHBORS
    assert dataset.has_vectors
    np.testing.assert_allclose(sorted(np.concatenate(list(rows.values())).tolist()), sorted(UNIT.tolist()), atol=1e-6)
    assert 10 < len(rows["dev"]) < 60
    assert 10 < len(rows["test"]) < 60


def test_other_numbers_than_float32_are_reported_once(tmp_path):
    notes = []
    load_dataset(write_npy(tmp_path / "v.npy", VECTORS.astype(">f8")), reporter=SILENT._replace(info=notes.append))
    assert notes == ["v.npy: numbers are read as float32, not as >f8"]


def test_rows_are_in_the_same_split_in_any_order_and_once(tmp_path):
    first = rows_by_split(load_dataset(write_npy(tmp_path / "a.npy", VECTORS)))
    shuffled = np.random.default_rng(1).permutation(np.concatenate([VECTORS, VECTORS[:50] * 2]))
    again = rows_by_split(load_dataset(write_npy(tmp_path / "b.npy", shuffled)))
    for split, rows in first.items():
        np.testing.assert_allclose(sorted(rows.tolist()), sorted(again[split].tolist()), atol=1e-6)
    train_and_dev = load_dataset(str(tmp_path / "a.npy"), splits=("dev", "train"))
    assert list(train_and_dev.splits) == ["train", "dev"]
    assert train_and_dev.digest == load_dataset(str(tmp_path / "a.npy")).digest


def test_large_splits_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_alone, "MAX_ROWS", 100)
    rows = rows_by_split(load_dataset(write_npy(tmp_path / "v.npy", VECTORS)))
    assert len(rows["train"]) == 100
    assert {tuple(row) for row in rows["train"].round(5).tolist()} <= {tuple(row) for row in UNIT.round(5).tolist()}


def test_splits_with_files_are_kept_and_others_are_made(tmp_path):
    for split, lines in (("train", TEXTS[:200]), ("dev", TEXTS[200:])):
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    rows = rows_by_split(load_dataset(str(tmp_path)))
    assert rows["dev"] == TEXTS[200:]
    assert sorted(rows["train"] + rows["test"]) == sorted(TEXTS[:200])
    assert 5 < len(rows["test"]) < 40


@pytest.mark.parametrize("names", [("anchor", "positive"), ("Query", "passage"), ("question", "answer", "negative")])
def test_pairs_of_texts_are_split_by_the_query(tmp_path, names):
    columns = [[f"query {i // 2}" for i in range(200)], TEXTS[:200], TEXTS[100:]][: len(names)]
    pd.DataFrame(dict(zip(names, columns, strict=True))).to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    dataset = load_dataset(str(tmp_path / "p.jsonl"))
    assert dataset.task == RETRIEVAL
    pairs = set()
    queries = []
    for split in dataset.splits.values():
        columns_read = [split.first, split.second, *([split.negatives] if len(names) == 3 else [])]
        pairs |= {tuple(split.rows[i] for i in row) for row in zip(*columns_read, strict=True)}
        queries.append({split.rows[i] for i in split.first})
        assert set(split.corpus) == {i for column in columns_read[1:] for i in column}
    assert pairs == set(zip(*columns, strict=True))
    assert not queries[0] & queries[1]
    assert not queries[1] & queries[2]


def test_pairs_of_vectors_and_renamed_columns(tmp_path):
    pd.DataFrame({"title": list(VECTORS[:150]), "body": list(VECTORS[150:])}).to_parquet(tmp_path / "p.parquet")
    dataset = load_dataset(str(tmp_path / "p.parquet"), columns={"anchor": "title", "positive": "body"})
    assert dataset.task == RETRIEVAL
    train = dataset.splits["train"]
    for query, passage in zip(train.first, train.second, strict=True):
        i = int(np.abs(UNIT - train.rows[query]).sum(1).argmin())
        np.testing.assert_allclose(train.rows[passage], UNIT[i + 150], atol=1e-6)


def write_beir(folder, *, corpus=20, queries=60, qrels=("train", "dev"), answer=lambda i: f"d{i % 20}"):
    (folder / "qrels").mkdir()
    lines = [{"_id": f"d{i}", "title": f"tool {i}" if i else "", "text": f"does {i}"} for i in range(corpus)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": f"ask {i}"}) for i in range(queries))
    )
    for j, split in enumerate(qrels):
        rows = [f"q{i}\t{answer(i)}\t{i % 3}" for i in range(j, queries, len(qrels))]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    return str(folder)


def test_a_beir_folder_has_graded_judgments_and_the_whole_corpus(tmp_path):
    dataset = load_dataset(write_beir(tmp_path))
    splits = dataset.splits
    assert splits["dev"].texts[:2] == ["does 0", "tool 1: does 1"]
    assert all(len(split.corpus) == 20 for split in splits.values())
    judged = {
        name: {(s.rows[q], s.rows[p], r) for q, p, r in zip(s.first, s.second, s.relevance, strict=True)}
        for name, s in splits.items()
    }
    expected = {
        (f"ask {i}", f"tool {i % 20}: does {i % 20}" if i % 20 else "does 0", i % 3) for i in range(60) if i % 3
    }
    assert judged["dev"] == {row for row in expected if int(row[0][4:]) % 2}
    assert judged["train"] | judged["test"] == expected - judged["dev"]
    assert judged["test"]


def test_scored_pairs_are_recognized_and_the_demo_stays(tmp_path):
    assert load_dataset("demo").task == SIMILARITY
    pd.DataFrame({"text1": ["a"], "text2": ["b"], "label": [1]}).to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(InputError, match="did you mean --columns sentence1=text1"):
        load_dataset(str(tmp_path))
    with pytest.raises(InputError, match=r"put it into a folder as train\.csv"):
        load_dataset(str(tmp_path / "train.csv"))


NAN, ZERO = VECTORS.copy(), VECTORS.copy()
NAN[7, 3], ZERO[9] = np.nan, 0


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("v.npy", lambda p: np.save(p, NAN), "row 7 of v.npy has numbers that are not finite"),
        ("v.npy", lambda p: np.save(p, ZERO), "row 9 of v.npy is zero, which has no direction"),
        ("v.npy", lambda p: np.save(p, VECTORS[:, 0]), "vectors must be the rows of an array"),
        ("v.npy", lambda p: np.save(p, VECTORS.astype(object), allow_pickle=True), "an array of object values"),
        ("v.npy", lambda p: np.save(p, np.ones((50, 4))), "all 50 rows of v.npy are equal"),
        ("v.npy", lambda p: np.save(p, VECTORS[:1]), "v.npy has one row: there is nothing to search"),
        ("v.npy", lambda _: None, "not found: name an existing file or folder"),
        (
            "p.parquet",
            lambda p: pd.DataFrame({"query": TEXTS, "answer": list(VECTORS)}).to_parquet(p),
            "has vectors and column 'query' of no vectors: all must be of one kind",
        ),
        (
            "p.parquet",
            lambda p: pd.DataFrame({"query": list(VECTORS), "answer": list(VECTORS[:, :4])}).to_parquet(p),
            "has vectors of 4 dimensions and vectors of 6 dimensions: all must be of one kind",
        ),
        ("v.npy", lambda p: np.save(p, VECTORS[:3]), "has 3 distinct rows, of which"),
        ("t.txt", lambda p: p.write_text("a\n\nb\n"), "row 1 of t.txt is an empty text"),
        (
            "p.jsonl",
            lambda p: p.write_text('{"anchor": "a", "positive": " "}\n'),
            "row 1, positive of .*p.jsonl: ' ' is empty",
        ),
        ("p.jsonl", lambda p: p.write_text('{"query": "a", "passage": null}\n'), "row 1 of .*p.jsonl is missing"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        load_dataset(str(tmp_path / name))


def test_vectors_of_different_dimensions_are_refused(tmp_path):
    np.save(tmp_path / "train.npy", VECTORS)
    np.save(tmp_path / "dev.npy", VECTORS[:, :5])
    with pytest.raises(InputError, match="vectors of different dimensions"):
        load_dataset(str(tmp_path))


def test_pairs_of_different_dimensions_in_two_splits_are_refused(tmp_path):
    for split, dim in (("train", 6), ("dev", 5)):
        columns = {"anchor": list(VECTORS[:, :dim]), "positive": list(VECTORS[::-1, :dim])}
        pd.DataFrame(columns).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match="vectors of 5 dimensions and vectors of 6 dimensions"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "qrels/train.tsv",
            lambda text: text.partition("\n")[2],
            "must have the columns query-id, corpus-id, score, not q0, d0, 0",
        ),
        ("qrels/train.tsv", lambda text: text.partition("\n")[0] + "\n", "train.tsv .* no rows|is missing or empty"),
        (
            "qrels/train.tsv",
            lambda text: text.replace("\t0\n", "\tgood\n", 1),
            "row 1 of .*: score 'good' is not a num",
        ),
        (
            "queries.jsonl",
            lambda text: text.replace('"text"', '"body"'),
            "lacks the key text: each line must be an obj",
        ),
        ("corpus.jsonl", lambda text: text.replace("does 0", " "), "row 1 of .*corpus.jsonl has no text"),
    ],
)
def test_files_of_beir_that_lack_something_are_refused(tmp_path, name, change, message):
    folder = write_beir(tmp_path)
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    with pytest.raises(InputError, match=message):
        load_dataset(folder)


def test_two_files_for_a_split_are_refused(tmp_path):
    for name in ("train.txt", "train.jsonl"):
        (tmp_path / name).write_text("a\nb\n")
    with pytest.raises(InputError, match=r"two files for the split train, train\.jsonl and train\.txt: keep one"):
        load_dataset(str(tmp_path))


def test_other_columns_than_those_of_the_data_are_not_renamed():
    with pytest.raises(InputError, match="not 'title'"):
        load_dataset("demo", columns={"title": "text"})


def test_judgments_of_missing_documents_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"the judgments name 'd99', which .*corpus\.jsonl lacks"):
        load_dataset(write_beir(tmp_path, answer=lambda _: "d99"))


def test_drawn_queries_keep_all_their_passages_and_nothing_else():
    judged = {("a", "x"): 1.0, ("a", "y"): 2.0, ("b", "y"): 1.0, ("c", "z"): 1.0}
    rows = ["a", "b", "c", "unused", "x", "y", "z"]
    pairs = np.array([[rows.index(text) for text in pair] for pair in judged]).T
    drawn = draw_queries(RowSplit(rows, *pairs, np.array(list(judged.values()))), 2)
    texts = [(drawn.rows[query], drawn.rows[passage]) for query, passage in zip(drawn.first, drawn.second, strict=True)]
    queries = {query for query, _ in texts}
    assert len(queries) == 2
    assert dict(zip(texts, drawn.relevance, strict=True)) == {p: r for p, r in judged.items() if p[0] in queries}
    assert set(drawn.rows) == {text for pair in texts for text in pair}
