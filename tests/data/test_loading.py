"""Datasets without scores: what is recognized, how it is split, and what is refused."""

import re

import numpy as np
import pandas as pd
import pytest

from scripts.make_growth import draw_queries
from tests.helpers.refusals import refusal
from tests.helpers.tables import write_frame
from twinsqueeze.data import rows_alone
from twinsqueeze.data.dataset import RowSplit
from twinsqueeze.data.loading import load_dataset
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
    ids=["numpy", "other order and type", "parquet", "two files", "csv"],
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


def test_rows_are_in_the_same_split_in_any_order_and_once(tmp_path):
    notes = []
    first = load_dataset(write_npy(tmp_path / "a.npy", VECTORS))
    shuffled = np.random.default_rng(1).permutation(np.concatenate([VECTORS, VECTORS[:50] * 2])).astype(">f8")
    again = load_dataset(write_npy(tmp_path / "b.npy", shuffled), reporter=SILENT._replace(info=notes.append))
    for split, rows in rows_by_split(first).items():
        np.testing.assert_allclose(sorted(rows.tolist()), sorted(rows_by_split(again)[split].tolist()), atol=1e-6)
    assert notes == [
        "b.npy: numbers are read as float32, not as >f8",
        "b.npy: 50 of 350 rows are duplicates and left out",
    ]
    train_and_dev = load_dataset(str(tmp_path / "a.npy"), splits=("dev", "train"))
    assert list(train_and_dev.splits) == ["train", "dev"]
    assert train_and_dev.digest == first.digest


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
    write_frame(pd.DataFrame(dict(zip(names, columns, strict=True))), tmp_path / "p.jsonl")
    dataset = load_dataset(str(tmp_path / "p.jsonl"))
    assert dataset.task == RETRIEVAL
    pairs, queries = set(), []
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


def write_beir(folder):
    (folder / "qrels").mkdir()
    corpus = [{"_id": f"d{i}", "title": f"tool {i}" if i else "", "text": f"does {i}"} for i in range(20)]
    queries = [{"_id": f"q{i}", "text": f"ask {i}"} for i in range(60)]
    write_frame(pd.DataFrame(corpus), folder / "corpus.jsonl")
    write_frame(pd.DataFrame(queries), folder / "queries.jsonl")
    judgments = [(f"q{i}", f"d{i % 20}", i % 3) for i in range(60)]
    for split, rows in (("train", judgments[::2]), ("dev", judgments[1::2])):
        write_frame(pd.DataFrame(rows, columns=["query-id", "corpus-id", "score"]), folder / "qrels" / f"{split}.tsv")
    return str(folder)


def test_a_beir_folder_has_graded_judgments_and_the_whole_corpus(tmp_path):
    splits = load_dataset(write_beir(tmp_path)).splits
    assert splits["dev"].texts[:2] == ["does 0", "tool 1: does 1"]
    assert all(len(split.corpus) == 20 for split in splits.values())
    judged = {
        name: {(s.rows[q], s.rows[p], r) for q, p, r in zip(s.first, s.second, s.relevance, strict=True)}
        for name, s in splits.items()
    }
    passages = ["does 0", *(f"tool {i}: does {i}" for i in range(1, 20))]
    expected = [{(f"ask {i}", passages[i % 20], i % 3) for i in range(start, 60, 2) if i % 3} for start in (0, 1)]
    assert judged["train"] | judged["test"] == expected[0]
    assert judged["test"]
    assert judged["dev"] == expected[1]


def test_scored_pairs_are_recognized_and_the_demo_stays(tmp_path):
    assert load_dataset("demo").task == SIMILARITY
    assert "not 'title'" in refusal(load_dataset, "demo", columns={"title": "text"})
    pd.DataFrame({"text1": ["a"], "text2": ["b"], "label": [1]}).to_csv(tmp_path / "train.csv", index=False)
    assert "did you mean --columns sentence1=text1" in refusal(load_dataset, str(tmp_path))
    assert "put it into a folder as train.csv" in refusal(load_dataset, str(tmp_path / "train.csv"))


def write_queries(path, queries, answers):
    pd.DataFrame({"query": list(queries), "answer": list(answers)}).to_parquet(path)


NAN, ZERO = VECTORS.copy(), VECTORS.copy()
NAN[7, 3], ZERO[9] = np.nan, 0


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("v.npy", lambda p: np.save(p, NAN), "row 7 of v.npy has numbers that are not finite"),
        ("v.npy", lambda p: np.save(p, ZERO), "row 9 of v.npy is zero, which has no direction"),
        ("v.npy", lambda p: np.save(p, np.ones((50, 4))), "all 50 rows of v.npy are equal"),
        ("v.npy", lambda p: np.save(p, VECTORS[:1]), "v.npy has one row: there is nothing to search"),
        ("v.npy", lambda p: np.save(p, VECTORS[:3]), "has 3 distinct rows, of which"),
        ("v.npy", lambda _: None, "not found: name an existing file or folder"),
        ("t.txt", lambda p: p.write_text("a\n\nb\n"), "row 1 of t.txt is an empty text"),
        ("p.parquet", lambda p: write_queries(p, TEXTS, VECTORS), "has vectors and column 'query' of no vectors: all"),
        ("p.parquet", lambda p: write_queries(p, VECTORS, UNIT[:, 1:]), "vectors of 5 dimensions and vectors of 6 di"),
        ("p.jsonl", lambda p: p.write_text('{"query": "a", "answer": " "}\n'), "row 1, answer of .*: ' ' is empty"),
        ("p.jsonl", lambda p: p.write_text('{"query": "a", "passage": null}\n'), "row 1 of .* is missing"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, write, message):
    write(tmp_path / name)
    assert re.search(message, refusal(load_dataset, str(tmp_path / name)))


def test_splits_of_different_dimensions_or_with_two_files_are_refused(tmp_path):
    for folder in ("vectors", "pairs", "texts"):
        (tmp_path / folder).mkdir()
    for split, vectors in (("train", VECTORS), ("dev", VECTORS[:, :5])):
        np.save(tmp_path / "vectors" / f"{split}.npy", vectors)
        write_queries(tmp_path / "pairs" / f"{split}.parquet", vectors, vectors)
    for suffix in ("txt", "jsonl"):
        (tmp_path / "texts" / f"train.{suffix}").write_text("a\nb\n")
    assert "vectors of different dimensions" in refusal(load_dataset, str(tmp_path / "vectors"))
    assert "vectors of 5 dimensions and vectors of 6 dimensions" in refusal(load_dataset, str(tmp_path / "pairs"))
    two_files = "two files for the split train, train.jsonl and train.txt: keep one"
    assert two_files in refusal(load_dataset, str(tmp_path / "texts"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qrels/train.tsv", lambda text: text.partition("\n")[2], "query-id, corpus-id, score, not q0, d0, 0"),
        ("qrels/train.tsv", lambda text: text.partition("\n")[0] + "\n", "train.tsv is missing or empty"),
        ("qrels/train.tsv", lambda text: text.replace("\t0\n", "\tgood\n", 1), "row 1 of .*: score 'good' is"),
        ("qrels/train.tsv", lambda text: text.replace("\td4\t", "\td99\t"), "the judgments name 'd99', which"),
        ("queries.jsonl", lambda text: text.replace('"text"', '"body"'), "lacks the key text: each line must be"),
        ("corpus.jsonl", lambda text: text.replace("does 0", " "), "row 1 of .*corpus.jsonl has no text"),
    ],
)
def test_files_of_beir_that_lack_something_are_refused(tmp_path, name, change, message):
    folder = write_beir(tmp_path)
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    assert re.search(message, refusal(load_dataset, folder))


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
