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


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval."""

    low: float
    high: float


class Resamples:
    """Pairs drawn with replacement again and again, to see how much scores depend on which pairs are in a split.

    A resample is a vector of counts, so scores are weighted sums and nothing is sorted again: 0.1 s for 1,500 pairs,
    where `scipy.stats.bootstrap`, which the tests compare with, takes 1 s. What does not depend on predictions is
    computed once. Intervals are percentile intervals (Efron 1979); seeds of training are another matter.

    Args:
        labels: (P,) labels.
        resamples: How many times P pairs are drawn.
        seed: Of the draws, so that equal predictions give equal intervals.
    """

    def __init__(self, labels: FloatArray, *, resamples: int = 1000, seed: int = 0) -> None:
        self.labels = np.asarray(labels, dtype=np.float64)
        pairs = len(self.labels)
        generator = np.random.default_rng(seed)
        draws = (generator.integers(pairs, size=pairs) for _ in range(resamples))
        self._counts = np.stack([np.bincount(drawn, minlength=pairs) for drawn in draws]).astype(np.float64)  # (B, P)
        self._values = _Weighted(self.labels - self.labels.mean(), self._counts)
        self._ranks = _Weighted(_weighted_ranks(self.labels, self._counts), self._counts)

    def intervals(self, predicted: FloatArray) -> dict[str, Interval]:
        """95% intervals of every score of (P,) cosines."""
        return {name: _interval(values) for name, values in self._scores(predicted).items()}

    def difference(self, ours: FloatArray, theirs: FloatArray, metric: str) -> tuple[float, Interval]:
        """How much more a score of `ours` is than that of `theirs` on the same pairs, with its 95% interval.

        Every resample holds the same pairs for both, so that what is hard for both does not widen the interval.

        Args:
            ours: (P,) cosines.
            theirs: (P,) cosines of the same pairs.
            metric: mse, mae, pearson or spearman.

        Returns:
            The difference over all pairs, and its interval; NaN where predictions are constant.
        """
        difference = float(getattr(score(ours, self.labels), metric) - getattr(score(theirs, self.labels), metric))
        return difference, _interval(self._scores(ours)[metric] - self._scores(theirs)[metric])

    def _scores(self, predicted: FloatArray) -> dict[str, FloatArray]:
        """Every score of (P,) cosines in each resample, (B,)."""
        predicted = np.asarray(predicted, dtype=np.float64)
        counts, pairs = self._counts, len(predicted)
        error = predicted - self.labels
        ranks = _weighted_ranks(predicted, counts)
        return {
            "mse": counts @ np.square(error) / pairs,
            "mae": counts @ np.abs(error) / pairs,
            "pearson": self._values.correlation(_Weighted(predicted - predicted.mean(), counts)),
            "spearman": self._ranks.correlation(_Weighted(ranks, counts)),
        }


def _interval(draws: FloatArray) -> Interval:
    return Interval(*map(float, np.nanquantile(draws, [0.025, 0.975])))


def _weighted_ranks(values: FloatArray, counts: FloatArray) -> FloatArray:
    """Ranks (B, P) of `values` (P,), value i standing `counts[b, i]` times, ties sharing their mean rank; centred."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks: FloatArray = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    centred: FloatArray = ranks[:, group] - (len(values) + 1) / 2
    return centred


class _Weighted:
    """Values, (P,) or (B, P), weighted by counts (B, P) in each of B resamples."""

    def __init__(self, values: FloatArray, counts: FloatArray) -> None:
        self.values, self.counts = values, counts
        self.total = counts.sum(1)
        self.mean = self._mean(values)
        self.variance = self._mean(values * values) - self.mean**2

    def correlation(self, other: "_Weighted") -> FloatArray:
        """Pearson's, (B,)."""
        covariance = self._mean(self.values * other.values) - self.mean * other.mean
        with np.errstate(invalid="ignore", divide="ignore"):
            r: FloatArray = covariance / np.sqrt(self.variance * other.variance)
        return r

    def _mean(self, values: FloatArray) -> FloatArray:
        summed: FloatArray = np.einsum("bp,...p->b" if values.ndim == 1 else "bp,bp->b", self.counts, values)
        mean: FloatArray = summed / self.total
        return mean


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


def neighbours_kept(reference: Any, found: Any) -> float:
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
