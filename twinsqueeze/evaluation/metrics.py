"""Scores of predictions and of neighbourhoods, with bootstrap intervals. Arrays in, numbers out."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy import stats

from twinsqueeze.types import FloatArray
from twinsqueeze.utils.similarity import normalize_rows


@dataclass(frozen=True)
class Scores:
    """How predicted cosines agree with labels; each field of the shape of the predictions without their last axis.

    Attributes:
        mse: Mean squared error.
        mae: Mean absolute error.
        pearson: Pearson's correlation, -1 to 1; NaN where predictions or labels are constant.
        spearman: Spearman's rank correlation, ties sharing their mean rank; NaN where Pearson's is.
    """

    mse: FloatArray
    mae: FloatArray
    pearson: FloatArray
    spearman: FloatArray

    def as_floats(self) -> dict[str, float]:
        """The scores of a single list of predictions, by name."""
        return {name: float(value) for name, value in asdict(self).items()}


METRICS = tuple(field.name for field in fields(Scores))


def score(predicted: FloatArray, labels: FloatArray) -> Scores:
    """Scores predictions against labels over the last axis.

    Args:
        predicted: (…, P) cosines, -1 to 1.
        labels: (…, P) or (P,) labels, 0 to 1.
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
    queries: FloatArray, stored: FloatArray, first: Any, second: Any, labels: FloatArray
) -> dict[str, float]:
    """The scores of pairs of which one is a query and the other is stored: means over both ways.

    Args:
        queries: (N, d) of any length.
        stored: (N, d) what is left of them.
        first: (P,) row numbers.
        second: (P,) row numbers.
        labels: (P,) labels, 0 to 1.
    """
    asked, found = normalize_rows(queries), normalize_rows(stored)
    ways = [np.einsum("pd,pd->p", asked[a], found[b]) for a, b in ((first, second), (second, first))]
    return {name: float(np.mean(values)) for name, values in asdict(score(np.stack(ways), labels)).items()}


def neighbor_recall(reference: Any, found: Any) -> float:
    """Share of the reference's nearest neighbours that are found again, 0 to 1; order within the k does not count.

    Args:
        reference: (N, k) indices from `nearest_neighbors` of the uncompressed vectors.
        found: (N, k) indices from `nearest_neighbors` of the compressed ones.

    Returns:
        NaN where nothing has a neighbour.
    """
    if not reference.size:
        return float("nan")
    return float((reference[:, :, None] == found[:, None, :]).any(-1).mean())
