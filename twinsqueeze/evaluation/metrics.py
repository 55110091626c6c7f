"""Metrics of predicted similarities and of neighborhoods."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.similarity import normalize_rows


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


def asymmetric_cosines(stored: FloatArray, queries: FloatArray, first: IntArray, second: IntArray) -> FloatArray:
    """Return cosines (2, P) of query and stored vectors (N, d): each sentence of the P pairs is the query once."""
    queries, stored = normalize_rows(queries), normalize_rows(stored)
    return np.stack([np.einsum("pd,pd->p", queries[a], stored[b]) for a, b in ((first, second), (second, first))])


def neighbor_recall(reference: IntArray, found: IntArray) -> float:
    """Return the share of (N, k) reference neighbors among those found, in any order; NaN if there are none."""
    if not reference.size:
        return float("nan")
    return float((reference[:, :, None] == found[:, None, :]).any(-1).mean())
