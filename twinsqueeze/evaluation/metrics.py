"""Metrics of predicted similarities, and of searches among the sentences of a split."""

from math import nan
from typing import NamedTuple

import numpy as np
from scipy import stats

from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.similarity import NUM_NEIGHBORS, num_found, similarity_blocks

# The sentences of a pair with at least this score, of 0 to 5, are relevant to each other.
RELEVANT_SCORE = 4.0
# Cosines that differ by less are ties. Sign codes tie often, and rounding errors must not decide a rank.
TIE_TOLERANCE = 1e-6


class Scores(NamedTuple):
    """Agreement of predicted cosines with labels; each field has the predictions' shape without the last axis."""

    mse: FloatArray
    mae: FloatArray
    pearson: FloatArray  # NaN where predictions or labels are constant
    spearman: FloatArray  # NaN as well; with mean ranks for ties

    def means(self) -> dict[str, float]:
        """Return the mean of every score by name, which is the score itself for a single list of predictions."""
        return {name: float(np.mean(values)) for name, values in self._asdict().items()}


METRICS = Scores._fields


def score(predicted: FloatArray, labels: FloatArray) -> Scores:
    """Score predicted cosines (..., P) against labels (..., P) or (P,) over the last axis."""
    predicted = np.asarray(predicted, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.float64)
    error = predicted - labels
    return Scores(
        mse=np.square(error).mean(-1),
        mae=np.abs(error).mean(-1),
        pearson=_correlation(predicted, labels),
        spearman=_correlation(stats.rankdata(predicted, axis=-1), stats.rankdata(labels, axis=-1)),
    )


def _correlation(x: FloatArray, y: FloatArray) -> FloatArray:
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r: FloatArray = (x * y).sum(-1) / np.sqrt(np.square(x).sum(-1) * np.square(y).sum(-1))
    return r


def neighbor_recall(reference: IntArray, found: IntArray) -> float:
    """Return the share of (N, k) reference neighbors among those found, in any order; NaN if there are none."""
    if not reference.size:
        return float("nan")
    return float((reference[:, :, None] == found[:, None, :]).any(-1).mean())


class RelevantPairs(NamedTuple):
    """Queries and their relevant rows, as numbers (C,) in ascending order of the queries."""

    queries: IntArray
    targets: IntArray


def relevant_pairs(first: IntArray, second: IntArray, scores: FloatArray) -> RelevantPairs:
    """Return every sentence's relevant sentences, once and never itself, of P pairs of rows with scores from 0 to 5."""
    relevant = (scores >= RELEVANT_SCORE) & (first != second)
    one_way = np.stack([first[relevant], second[relevant]], axis=1)
    both_ways = np.unique(np.concatenate([one_way, one_way[:, ::-1]]), axis=0)
    return RelevantPairs(both_ways[:, 0], both_ways[:, 1])


class RetrievalScores(NamedTuple):
    """Quality of a search among the sentences of a split, averaged over queries; NaN if there is nothing to find."""

    neighbor_recall: float  # share of the 10 nearest uncompressed neighbors that are among the 10 nearest found
    recall_at_1: float  # share of a query's relevant sentences that are the nearest one
    recall_at_10: float  # share of a query's relevant sentences among the 10 nearest
    mrr: float  # mean reciprocal rank: 1 / rank of the first relevant sentence found


def retrieval_scores(
    vectors: FloatArray,
    reference: IntArray,
    relevant: RelevantPairs,
    *,
    queries: FloatArray | None = None,
) -> RetrievalScores:
    """Score a search with every row of `queries` or of `vectors`, both (N, d), among all other rows of `vectors`.

    `reference` (N, k) are the `nearest_neighbors` of the uncompressed vectors.
    """
    found, ranks = search(vectors, relevant, reference.shape[1], queries=queries)
    recall = neighbor_recall(reference, found)
    if not len(relevant.queries):
        return RetrievalScores(recall, nan, nan, nan)
    _, starts, counts = np.unique(relevant.queries, return_index=True, return_counts=True)
    recalls = [np.add.reduceat((ranks <= k).astype(float), starts) / counts for k in (1, NUM_NEIGHBORS)]
    reciprocal_ranks = 1 / np.minimum.reduceat(ranks, starts)
    return RetrievalScores(recall, *(float(values.mean()) for values in (*recalls, reciprocal_ranks)))


def search(
    vectors: FloatArray,
    pairs: RelevantPairs,
    k: int,
    *,
    queries: FloatArray | None = None,
    own_rows: IntArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Search vectors (N, d) for the nearest of each query and for the targets of some.

    Args:
        vectors: The vectors that are searched.
        pairs: Numbers of queries and rows of their targets.
        k: Neighbors per query; may be 0.
        queries: As for `nearest_neighbors`.
        own_rows: As for `nearest_neighbors`.

    Returns:
        The `nearest_neighbors`, (Q, k), and the rank of each target among its query's results, (P,), 1 for the nearest,
        with mean ranks for ties.
    """
    k = num_found(k, len(vectors), own_rows)
    found: list[IntArray] = []
    ranks: list[FloatArray] = [np.empty(0)]
    for start, similarity in similarity_blocks(vectors, queries, own_rows):
        found.append(similarity.topk(k, dim=1).indices.numpy())
        first, end = np.searchsorted(pairs.queries, (start, start + len(similarity)))
        for i in range(first, end, len(similarity)):  # a block of pairs has the memory of a block of queries
            part = slice(i, min(i + len(similarity), end))
            ranks.append(_target_ranks(similarity.numpy()[pairs.queries[part] - start], pairs.targets[part]))
    return np.concatenate(found), np.concatenate(ranks)


def _target_ranks(similarity: FloatArray, targets: IntArray) -> FloatArray:
    """Return the rank of the target column in each of (P, N) rows."""
    target = similarity[np.arange(len(targets)), targets][:, None]
    nearer = np.count_nonzero(similarity > target + TIE_TOLERANCE, axis=1)
    ties = np.count_nonzero(similarity >= target - TIE_TOLERANCE, axis=1) - nearer  # the target included
    return np.asarray(nearer + (ties + 1) / 2)
