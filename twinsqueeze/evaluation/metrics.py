"""Metrics of predicted similarities and of neighborhoods."""

from dataclasses import asdict, dataclass, fields

import numpy as np
from scipy import stats

from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.similarity import normalize_rows


@dataclass(frozen=True)
class Scores:
    """Agreement of predicted cosines with labels; each field has the predictions' shape without the last axis.

    Attributes:
        mse: Mean squared error.
        mae: Mean absolute error.
        pearson: Pearson correlation, -1 to 1; NaN where predictions or labels are constant.
        spearman: Spearman rank correlation, with mean ranks for ties; NaN where `pearson` is.
    """

    mse: FloatArray
    mae: FloatArray
    pearson: FloatArray
    spearman: FloatArray

    def as_floats(self) -> dict[str, float]:
        """Return the scores of a single list of predictions by name."""
        return {name: float(value) for name, value in asdict(self).items()}


METRICS = tuple(field.name for field in fields(Scores))


def score(predicted: FloatArray, labels: FloatArray) -> Scores:
    """Score predictions against labels over the last axis.

    Args:
        predicted: (..., P) cosines, -1 to 1.
        labels: (..., P) or (P,) labels, 0 to 1.
    """
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


def asymmetric_scores(
    queries: FloatArray, stored: FloatArray, first: IntArray, second: IntArray, labels: FloatArray
) -> dict[str, float]:
    """Score pairs of a query vector and a stored vector; each sentence of a pair is the query once, scores are means.

    Args:
        queries: (N, d) query vectors of the sentences, of any length.
        stored: (N, d) stored vectors of the same sentences, of any length.
        first: (P,) row of each pair's first sentence.
        second: (P,) row of each pair's second sentence.
        labels: (P,) labels, 0 to 1.
    """
    queries, stored = normalize_rows(queries), normalize_rows(stored)
    cosines = [np.einsum("pd,pd->p", queries[a], stored[b]) for a, b in ((first, second), (second, first))]
    return {name: float(np.mean(values)) for name, values in asdict(score(np.stack(cosines), labels)).items()}


def neighbor_recall(reference: IntArray, found: IntArray) -> float:
    """Return the share of the reference's nearest neighbors that are found, 0 to 1; NaN if there are no neighbors.

    Args:
        reference: (N, k) indices that `nearest_neighbors` returns for uncompressed vectors.
        found: (N, k) indices that it returns for compressed vectors, in any order.
    """
    if not reference.size:
        return float("nan")
    return float((reference[:, :, None] == found[:, None, :]).any(-1).mean())
