"""Retrieval metrics: nearest neighbors, and recall of sentences that mean the same."""

from math import nan
from typing import NamedTuple

import numpy as np
import torch

from twinsqueeze.evaluation.metrics import neighbor_recall
from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.similarity import NUM_NEIGHBORS, nearest_neighbors, normalized_tensors

# The sentences of a pair with at least this score, of 0 to 5, are relevant to each other.
RELEVANT_SCORE = 4.0
# Cosines that differ by less are ties. Sign codes tie often, and rounding errors must not decide a rank.
TIE_TOLERANCE = 1e-6


class RelevantPairs(NamedTuple):
    """Queries and their relevant sentences, as row numbers (C,), without duplicates and in ascending order."""

    queries: IntArray
    targets: IntArray


def relevant_pairs(first: IntArray, second: IntArray, scores: FloatArray) -> RelevantPairs:
    """Return the relevant sentences of every sentence, of P pairs of rows with scores from 0 to 5; never itself."""
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
    block: int = 1024,
) -> RetrievalScores:
    """Score a search with every row of `queries` or of `vectors`, both (N, d), among all other rows of `vectors`.

    `reference` (N, k) are the `nearest_neighbors` of the uncompressed vectors. `block` is as for `nearest_neighbors`.
    """
    found = nearest_neighbors(vectors, reference.shape[1], queries=queries, block=block)
    recall = neighbor_recall(reference, found)
    if not len(relevant.queries):
        return RetrievalScores(recall, nan, nan, nan)
    stored, asked = normalized_tensors(vectors, queries)
    blocks = [slice(start, start + block) for start in range(0, len(relevant.queries), block)]
    ranks = np.concatenate([_ranks(stored, asked, relevant.queries[rows], relevant.targets[rows]) for rows in blocks])
    _, starts, counts = np.unique(relevant.queries, return_index=True, return_counts=True)
    recalls = [np.add.reduceat((ranks <= k).astype(float), starts) / counts for k in (1, NUM_NEIGHBORS)]
    reciprocal_ranks = 1 / np.minimum.reduceat(ranks, starts)
    return RetrievalScores(recall, *(float(values.mean()) for values in (*recalls, reciprocal_ranks)))


def _ranks(stored: torch.Tensor, asked: torch.Tensor, queries: IntArray, targets: IntArray) -> FloatArray:
    """Return the rank of each target among its query's results, 1 for the nearest, with mean ranks for ties."""
    similarity = (asked[queries] @ stored.T).numpy()
    rows = np.arange(len(queries))
    similarity[rows, queries] = -np.inf
    target = similarity[rows, targets][:, None]
    nearer = np.count_nonzero(similarity > target + TIE_TOLERANCE, axis=1)
    ties = np.count_nonzero(similarity >= target - TIE_TOLERANCE, axis=1) - nearer  # the target included
    return np.asarray(nearer + (ties + 1) / 2)
