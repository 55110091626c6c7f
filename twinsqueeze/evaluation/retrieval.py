"""What search keeps: the nearest neighbours, and whether a sentence finds its partner. Arrays in, numbers out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from twinsqueeze.evaluation.metrics import neighbor_recall
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.similarity import NEIGHBOURS, nearest_neighbors, unit_tensors

# Pairs with at least this score, 0 to 5, mean the same: each sentence is to find the other.
PARTNER_SCORE = 4.0
# Cosines closer than this are equal: signs tie often, and how a product is rounded must not break ties.
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class RelevantPairs:
    """Who is to find whom, each way counted once.

    Attributes:
        queries: (C,) rows of the sentences that search, in rising order.
        targets: (C,) rows of what they are to find; a sentence with several partners stands here for each.
    """

    queries: Any
    targets: Any


def relevant_pairs(first: Any, second: Any, scores: FloatArray) -> RelevantPairs:
    """The partners in some pairs; a sentence that is paired with itself has nothing to find.

    Args:
        first: (P,) rows of the pairs' first sentences.
        second: (P,) rows of the pairs' second sentences.
        scores: (P,) 0 to 5.
    """
    close = (scores >= PARTNER_SCORE) & (first != second)
    one_way = np.stack([first[close], second[close]], axis=1)
    both = np.unique(np.concatenate([one_way, one_way[:, ::-1]]), axis=0)
    return RelevantPairs(both[:, 0], both[:, 1])


@dataclass(frozen=True)
class SearchScores:
    """What a search finds among a split's sentences; NaN where there is nothing to find.

    Attributes:
        neighbor_recall: Share of the 10 nearest uncompressed neighbours that are still among the 10 nearest.
        recall_at_1: Share of a sentence's partners that are the nearest of all, mean over the sentences with partners.
        recall_at_10: The same for the 10 nearest.
        mrr: Mean over those sentences of 1 / the rank of the partner that is found first.
    """

    neighbor_recall: float
    recall_at_1: float
    recall_at_10: float
    mrr: float

    def as_floats(self) -> dict[str, float]:
        """The scores by name."""
        return asdict(self)


def retrieval_scores(
    vectors: FloatArray, reference: Any, wanted: RelevantPairs, *, queries: FloatArray | None = None, block: int = 1024
) -> SearchScores:
    """Searches every vector among all the others, by cosine.

    Args:
        vectors: (N, d) of any length.
        reference: (N, k) indices from `metrics.nearest_neighbors` of the uncompressed vectors.
        wanted: The partners.
        queries: (N, d) what searches, where that is another than the vectors, which are what is found.
        block: Rows of the N x N similarities that are held at a time, so that memory stays bounded.
    """
    kept = neighbor_recall(reference, nearest_neighbors(vectors, reference.shape[1], queries=queries, block=block))
    unit, asked = unit_tensors(vectors, queries)
    cases = range(0, len(wanted.queries), block)
    ranks = [_ranks(unit, asked, wanted.queries[i : i + block], wanted.targets[i : i + block]) for i in cases]
    return SearchScores(kept, *_retrieval(wanted.queries, np.concatenate([*ranks, np.empty(0)])))


def _ranks(unit: torch.Tensor, asked: torch.Tensor, queries: Any, targets: Any) -> FloatArray:
    """The rank of each target among what its query finds, 1 for the nearest; equal ones share their mean rank."""
    similarity = (asked[queries] @ unit.T).numpy()
    rows = np.arange(len(queries))
    similarity[rows, queries] = -np.inf
    own = similarity[rows, targets][:, None]
    nearer = np.count_nonzero(similarity > own + TIE_TOLERANCE, axis=1)
    equal = np.count_nonzero(similarity >= own - TIE_TOLERANCE, axis=1) - nearer  # the target is one of them
    ranks: FloatArray = nearer + (equal + 1) / 2
    return ranks


def _retrieval(queries: Any, ranks: FloatArray) -> Sequence[float]:
    """Recall at 1, recall at 10 and the mean reciprocal rank, each a mean over the distinct queries."""
    if not len(queries):
        return (float("nan"),) * 3
    _, starts, counts = np.unique(queries, return_index=True, return_counts=True)
    recalls = [np.add.reduceat((ranks <= k).astype(float), starts) / counts for k in (1, NEIGHBOURS)]
    first = np.minimum.reduceat(ranks, starts)
    return [float(values.mean()) for values in (*recalls, 1 / first)]
