"""Datasets: their splits as texts or vectors, and the same encoded."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from twinsqueeze.errors import InputError
from twinsqueeze.task import NEIGHBORS, RETRIEVAL, SIMILARITY, Task
from twinsqueeze.types import FloatArray, IntArray

SPLITS = ("train", "dev", "test")
NO_ROWS: IntArray = np.empty(0, np.int64)


@dataclass(frozen=True)
class EncodedSplit:
    """A split as vectors, and which of its rows belong together.

    Attributes:
        embeddings: (N, d) float32, unit vectors of the split's distinct rows.
        first: (P,) row of each pair's first sentence, or of its query. Of texts or vectors alone there are no pairs.
        second: (P,) row of each pair's second sentence, or of the passage that answers the query.
        scores: (P,) float64, human scores from 0 to 5, or the relevance of the passage, above 0.
        unpaired: (M, d), sentences in no pair, for losses that need no scores.
        negatives: (P,) row of a passage that does not answer the query, or None.
        corpus: Rows (C,) among which queries are searched; None for all.
        task: What can be measured on the split.
    """

    embeddings: FloatArray
    first: IntArray
    second: IntArray
    scores: FloatArray
    unpaired: FloatArray | None = None
    negatives: IntArray | None = None
    corpus: IntArray | None = None
    task: Task = SIMILARITY

    def __len__(self) -> int:
        return int(self.examples.shape[1])

    @property
    def examples(self) -> IntArray:
        """(k, E) rows that are trained on together: pairs, pairs with a negative, or single rows."""
        if self.task == NEIGHBORS:
            return np.arange(len(self.embeddings))[None]
        return np.stack([self.first, self.second, *([] if self.negatives is None else [self.negatives])])

    @property
    def stored_rows(self) -> IntArray:
        """Rows that a search stores, in ascending order: the corpus, or the passages of queries, or all."""
        if self.corpus is not None:
            return np.sort(self.corpus)
        return np.unique(self.second) if self.task == RETRIEVAL else np.arange(len(self.embeddings))

    @property
    def stored_vectors(self) -> FloatArray:
        """(F, d), what quantizers are fitted to: the vectors that a search stores, of scored pairs all sentences."""
        return self.sentences if self.task == SIMILARITY else self.embeddings[self.stored_rows]

    @property
    def sentences(self) -> FloatArray:
        """(N + M, d), the embeddings followed by the unpaired ones."""
        return self.embeddings if self.unpaired is None else np.concatenate([self.embeddings, self.unpaired])

    def without_pairs(self) -> "EncodedSplit":
        """Returns the `sentences` as rows alone."""
        return EncodedSplit(self.sentences, NO_ROWS, NO_ROWS, np.empty(0), task=NEIGHBORS)

    @property
    def dimension(self) -> int:
        """Dimension d of the embeddings."""
        return int(self.embeddings.shape[1])


class Split(Protocol):
    """A split before it is encoded."""

    @property
    def task(self) -> Task:
        """What can be measured on it."""

    @property
    def texts(self) -> Collection[str]:
        """Distinct texts to encode; empty if the rows are vectors."""

    @property
    def digest(self) -> str:
        """16 hex digits over all rows."""

    def __len__(self) -> int:
        """Returns the number of pairs, or of rows without pairs."""

    def encode(self, embeddings: FloatArray, row: Mapping[str, int]) -> EncodedSplit:
        """Returns the split with the embeddings of its texts, given the row of each text in `embeddings`."""

    def columns(self, query_rows: IntArray) -> dict[str, Sequence[Any]]:
        """Returns what predictions are shown beside as columns of a table: the pairs, or the queries at some rows."""


@dataclass(frozen=True)
class RowSplit:
    """Distinct texts, or (N, d) unit vectors, and pairs of a query and a relevant passage among them.

    The other attributes are those of `EncodedSplit`.
    """

    rows: Sequence[str] | FloatArray
    first: IntArray = field(default_factory=lambda: NO_ROWS)
    second: IntArray = field(default_factory=lambda: NO_ROWS)
    relevance: FloatArray = field(default_factory=lambda: np.empty(0))
    negatives: IntArray | None = None
    corpus: IntArray | None = None

    @property
    def task(self) -> Task:
        """Retrieval if there are pairs."""
        return RETRIEVAL if len(self.first) else NEIGHBORS

    @property
    def texts(self) -> Sequence[str]:
        """The rows if they are texts."""
        return () if isinstance(self.rows, np.ndarray) else self.rows

    def __len__(self) -> int:
        return len(self.first) or len(self.rows)

    @cached_property
    def digest(self) -> str:
        """16 hex digits of a SHA-256 over rows and pairs in order."""
        digest = hashlib.sha256()
        if isinstance(self.rows, np.ndarray):
            digest.update(np.ascontiguousarray(self.rows).data)
        else:
            digest.update("\0".join(self.rows).encode("utf-8", "surrogatepass"))
        for array in (self.first, self.second, self.relevance, self.negatives, self.corpus):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def encode(self, embeddings: FloatArray, row: Mapping[str, int]) -> EncodedSplit:
        """Returns the split with the embeddings of its texts; vectors are their own embeddings."""
        rows = self.rows
        vectors = rows if isinstance(rows, np.ndarray) else embeddings[[row[text] for text in rows]]
        return EncodedSplit(
            vectors, self.first, self.second, self.relevance, None, self.negatives, self.corpus, self.task
        )

    def columns(self, query_rows: IntArray) -> dict[str, Sequence[Any]]:
        """Returns the queries: texts, or row numbers of vectors."""
        return {"query": [self.texts[int(i)] for i in query_rows] if self.texts else query_rows.tolist()}


@dataclass(frozen=True)
class Dataset:
    """The splits of a dataset.

    Attributes:
        name: Display name: "stsb", "demo", a Hub id, or the name of a folder or file.
        source: URL or absolute path that the rows were read from.
        splits: The requested splits, in the order train, dev, test.
        notice: A warning that belongs beside every result on this dataset, or None.
        score_max: As given to `load_dataset`.
        columns: As given to `load_dataset`.
    """

    name: str
    source: str
    splits: Mapping[str, Split]
    notice: str | None = None
    score_max: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """What can be measured on the data."""
        return next(iter(self.splits.values())).task

    @property
    def has_vectors(self) -> bool:
        """Whether the rows are vectors, which need no encoder."""
        return not any(split.texts for split in self.splits.values())

    @property
    def digest(self) -> str:
        """16 hex digits over train and dev, which determine a training; test has its own digest."""
        text = "".join(self.splits[name].digest for name in SPLITS[:2] if name in self.splits)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_splits(splits: Collection[str]) -> list[str]:
    """Returns the names of splits in the order of `SPLITS`; raises an `InputError` for any other name."""
    if unknown := set(splits) - set(SPLITS):
        raise InputError(f"split must be one of {', '.join(SPLITS)}, not {sorted(unknown)[0]!r}")
    return [name for name in SPLITS if name in splits]
