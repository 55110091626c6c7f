"""Percentile bootstrap of means over queries."""

import numpy as np

from twinsqueeze.evaluation.bootstrap import Interval
from twinsqueeze.types import FloatArray


def mean_interval(values: FloatArray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Return the 95% interval of the mean of (Q,) values by the percentile bootstrap (Efron 1979)."""
    values, generator = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return Interval(*map(float, np.quantile(means, [0.025, 0.975])))


def mean_difference_interval(values: FloatArray, baseline: FloatArray) -> Interval:
    """Return the 95% interval of mean(values) - mean(baseline), both (Q,) of the same queries in the same order.

    Both are resampled alike, so that queries that are hard for both do not widen the interval.
    """
    return mean_interval(np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64))
