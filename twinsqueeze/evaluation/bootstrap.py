"""Paired bootstrap over sentence pairs."""

from typing import NamedTuple

import numpy as np

from twinsqueeze.evaluation.metrics import score
from twinsqueeze.types import FloatArray


class Interval(NamedTuple):
    """A 95% confidence interval."""

    low: float
    high: float


class PairBootstrap:
    """Percentile bootstrap (Efron 1979) of scores: B resamples of the P pairs of a split, with replacement.

    Intervals show how much scores depend on the choice of pairs, not on the seed of a training. A resample is a vector
    of counts, so that scores are weighted sums and nothing is sorted again: 0.1 s for 1,500 pairs, where
    `scipy.stats.bootstrap` takes 1 s. The tests compare the two.
    """

    def __init__(self, labels: FloatArray, *, resamples: int = 1000, seed: int = 0) -> None:
        self.labels = np.asarray(labels, dtype=np.float64)
        pairs = len(self.labels)
        generator = np.random.default_rng(seed)
        draws = (generator.integers(pairs, size=pairs) for _ in range(resamples))
        self._counts = np.stack([np.bincount(drawn, minlength=pairs) for drawn in draws]).astype(np.float64)  # (B, P)
        self._label_ranks = _weighted_ranks(self.labels, self._counts)

    def intervals(self, predicted: FloatArray) -> dict[str, Interval]:
        """Return the 95% interval of every score of (P,) predicted cosines."""
        return {name: _interval(values) for name, values in self._resampled_scores(predicted).items()}

    def difference(self, predicted: FloatArray, baseline: FloatArray, metric: str) -> tuple[float, Interval]:
        """Return a score of predictions minus that of a baseline, with its 95% interval.

        Both are (P,), or (K, P) to average K scores, such as those of several seeds. They are scored on the same
        resamples, so that pairs that are hard for both do not widen the interval.
        """
        means, resampled = [], []
        for cosines in (predicted, baseline):
            means.append(np.mean(getattr(score(cosines, self.labels), metric)))
            resampled.append(np.mean([self._resampled_scores(row)[metric] for row in np.atleast_2d(cosines)], axis=0))
        return float(means[0] - means[1]), _interval(resampled[0] - resampled[1])

    def _resampled_scores(self, predicted: FloatArray) -> dict[str, FloatArray]:
        """Return every score in each resample, (B,)."""
        predicted = np.asarray(predicted, dtype=np.float64)
        counts, pairs = self._counts, len(predicted)
        error = predicted - self.labels
        centered, centered_labels = predicted - predicted.mean(), self.labels - self.labels.mean()
        return {
            "mse": counts @ np.square(error) / pairs,
            "mae": counts @ np.abs(error) / pairs,
            "pearson": _weighted_correlation(centered_labels, centered, counts),
            "spearman": _weighted_correlation(self._label_ranks, _weighted_ranks(predicted, counts), counts),
        }


def _interval(values: FloatArray) -> Interval:
    return Interval(*map(float, np.nanquantile(values, [0.025, 0.975])))


def _weighted_ranks(values: FloatArray, counts: FloatArray) -> FloatArray:
    """Return centered ranks (B, P) of `values` (P,), each repeated counts[b, i] times, with mean ranks for ties."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    return np.asarray(ranks[:, group] - (len(values) + 1) / 2)


def _weighted_correlation(x: FloatArray, y: FloatArray, counts: FloatArray) -> FloatArray:
    """Return the Pearson correlation in each resample, (B,), of values (P,) or (B, P) that count counts[b, i] times."""
    x_mean, y_mean = _weighted_mean(x, counts), _weighted_mean(y, counts)
    covariance = _weighted_mean(x * y, counts) - x_mean * y_mean
    x_variance = _weighted_mean(x * x, counts) - x_mean**2
    y_variance = _weighted_mean(y * y, counts) - y_mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(covariance / np.sqrt(x_variance * y_variance))


def _weighted_mean(values: FloatArray, counts: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("bp,p->b" if values.ndim == 1 else "bp,bp->b", counts, values) / counts.sum(1))
