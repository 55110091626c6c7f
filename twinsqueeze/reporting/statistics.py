"""Means, standard deviations and differences over the seeds of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class SeedStats:
    """Mean, sample standard deviation and number of values over seeds, or over draws of a random baseline."""

    mean: float  # NaN without values
    deviation: float  # NaN for a single value
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "SeedStats":
        """Compute the statistics of some values."""
        count = len(values)
        return cls(float(np.mean(values)) if count else nan, float(np.std(values, ddof=1)) if count > 1 else nan, count)

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the mean by Student's t, NaN for a single value."""
        if not self.count > 1:
            return nan, nan
        half = stats.t.ppf(0.975, self.count - 1) * self.deviation / np.sqrt(self.count)
        return float(self.mean - half), float(self.mean + half)

    def format(self, digits: int = 4) -> str:
        """Text such as "0.8040 ± 0.0114", without deviation for a single value."""
        if isnan(self.mean):
            return "n/a"
        return f"{self.mean:.{digits}f}" + ("" if isnan(self.deviation) else f" ± {self.deviation:.{digits}f}")


NO_VALUES = SeedStats.of([])


@dataclass(frozen=True)
class MeanDifference:
    """Difference of two means with its 95% confidence interval, NaN where there are too few values for one."""

    mean: float
    low: float
    high: float

    @classmethod
    def between(cls, values: Sequence[float], reference: Sequence[float]) -> "MeanDifference":
        """Compute mean(values) - mean(reference) and its interval by Welch's t-test (1947)."""
        mean = float(np.mean(values) - np.mean(reference))
        if min(len(values), len(reference)) < 2 or np.ptp(values) + np.ptp(reference) == 0:
            return cls(mean, nan, nan)
        # Seeds are not paired: results of the same seed at two values of alpha hardly correlate.
        interval = stats.ttest_ind(values, reference, equal_var=False).confidence_interval()
        return cls(mean, float(interval.low), float(interval.high))

    def format(self) -> str:
        """Text such as "+0.0123 (+0.0101 to +0.0145)", without interval where it is NaN."""
        return f"{self.mean:+.4f}" + ("" if isnan(self.low) else f" ({self.low:+.4f} to {self.high:+.4f})")
