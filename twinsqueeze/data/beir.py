"""Datasets in the form of the BEIR benchmark (Thakur et al. 2021, arXiv 2104.08663)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twinsqueeze.data.dataset import SPLITS, RowSplit
from twinsqueeze.data.hash_splits import check_sizes, hash_rows, split_by_hash
from twinsqueeze.data.table_files import TableFile
from twinsqueeze.data.table_rows import read_columns
from twinsqueeze.data.vector_text import IS_NUMBER
from twinsqueeze.errors import InputError, truncate_repr
from twinsqueeze.utils.files import is_dir, is_file

QRELS = ("query-id", "corpus-id", "score")
Judgment = tuple[str, str, float]  # ids of query and passage, and the relevance


def is_beir_folder(path: Path) -> bool:
    """Returns whether a folder has corpus.jsonl, queries.jsonl and qrels/."""
    return is_file(path / "corpus.jsonl") and is_file(path / "queries.jsonl") and is_dir(path / "qrels")


def load_beir(folder: Path) -> dict[str, RowSplit]:
    """Loads train, dev and test; a split without judgments is made of every tenth query of train.

    All splits have the whole corpus, whose passages are `title: text`, and their own queries.
    """
    corpus = _read_texts(folder / "corpus.jsonl", ("_id", "title", "text"))
    queries = _read_texts(folder / "queries.jsonl", ("_id", "text"))
    judgments = {split: _read_judgments(folder / "qrels" / f"{split}.tsv") for split in SPLITS}
    if not judgments["train"]:
        raise InputError(f"{folder / 'qrels' / 'train.tsv'} is missing or empty: a training needs judgments")
    found = sorted({query for query, *_ in judgments["train"]})
    made = [split for split in SPLITS[1:] if not judgments[split]]
    texts = [_find(queries, query, folder / "queries.jsonl") for query in found]
    by_split = dict(judgments)
    for split, places in split_by_hash(hash_rows(texts), made).items():
        chosen = {found[i] for i in places}
        by_split[split] = [judgment for judgment in judgments["train"] if judgment[0] in chosen]
    splits = {split: _build_split(folder, corpus, queries, by_split[split]) for split in SPLITS}
    check_sizes({split: len(np.unique(rows.first)) for split, rows in splits.items()}, folder.name, "queries")
    return splits


def _read_texts(file: Path, keys: Sequence[str]) -> dict[str, str]:
    """Returns the texts of a .jsonl file by their ids."""

    def choose(names: Sequence[str], source: str) -> list[str]:
        if missing := [key for key in keys if key not in names and key != "title"]:
            raise InputError(f"{source} lacks the key {missing[0]}: each line must be an object with {', '.join(keys)}")
        return [key for key in keys if key in names]

    ids, *parts = read_columns([TableFile(file, str(file), "jsonl")], choose)
    texts = {}
    for row, (id_, *values) in enumerate(zip(ids, *parts, strict=True), start=1):
        text = ": ".join(value.strip() for value in values if isinstance(value, str) and value.strip())
        if not text:
            raise InputError(f"row {row} of {file} has no text")
        texts[str(id_)] = text
    return texts


def _read_judgments(file: Path) -> list[Judgment]:
    """Returns the judgments of a .tsv file with a relevance above 0; none without the file."""
    if not is_file(file):
        return []

    def choose(names: Sequence[str], source: str) -> Sequence[str]:
        if len(names) != len(QRELS) or IS_NUMBER.fullmatch(names[-1]):  # the header is missing
            raise InputError(f"{source} must have the columns {', '.join(QRELS)}, not {', '.join(names)}")
        return names

    judgments = []
    rows = zip(*read_columns([TableFile(file, str(file), "tsv")], choose), strict=True)
    for row, (query, passage, score) in enumerate(rows, start=1):
        try:
            relevance = float(score)
        except ValueError:
            raise InputError(f"row {row} of {file}: score {truncate_repr(score)} is not a number") from None
        if relevance > 0:
            judgments.append((query, passage, relevance))
    return judgments


def _find(texts: dict[str, str], id_: str, file: Path) -> str:
    if id_ not in texts:
        raise InputError(f"the judgments name {truncate_repr(id_)}, which {file} lacks")
    return texts[id_]


def _build_split(
    folder: Path, corpus: dict[str, str], queries: dict[str, str], judgments: Sequence[Judgment]
) -> RowSplit:
    """Builds a split of the queries' texts and the corpus; equal texts are one row."""
    rows: dict[str, int] = {}
    for text in corpus.values():
        rows.setdefault(text, len(rows))
    num_passages = len(rows)
    first, second = [], []
    for query, passage, _ in judgments:
        first.append(rows.setdefault(_find(queries, query, folder / "queries.jsonl"), len(rows)))
        second.append(rows[_find(corpus, passage, folder / "corpus.jsonl")])
    relevance = np.array([score for *_, score in judgments])
    pairs, places = np.unique(np.array([first, second], np.int64).reshape(2, -1), axis=1, return_index=True)
    return RowSplit(list(rows), pairs[0], pairs[1], relevance[places], None, np.arange(num_passages))
