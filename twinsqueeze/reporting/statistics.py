"""What several seeds of one recipe say: means, spreads and differences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class SeedStats:
    """Values over seeds.

    Attributes:
        mean: Their mean.
        deviation: Their sample standard deviation, NaN for a single value.
        count: How many there are.
    """

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "SeedStats":
        """The spread of some values, NaN if there are none."""
        count = len(values)
        mean = float(np.mean(values)) if count else float("nan")
        return cls(mean, float(np.std(values, ddof=1)) if count > 1 else float("nan"), count)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean by Student's t, NaN for a single value."""
        if not self.count > 1:
            return float("nan"), float("nan")
        half = stats.t.ppf(0.975, self.count - 1) * self.deviation / np.sqrt(self.count)
        return float(self.mean - half), float(self.mean + half)


@dataclass(frozen=True)
class MeanDifference:
    """A difference of two means with its 95% interval, NaN where there are too few seeds for one."""

    mean: float
    low: float
    high: float

    @classmethod
    def between(cls, ours: Sequence[float], theirs: Sequence[float]) -> "MeanDifference":
        """How much more `ours` are than `theirs` in the mean, by Welch's t (1947).

        Seeds are not paired: the same seed at two strengths of noise gives results that hardly correlate.
        """
        mean = float(np.mean(ours) - np.mean(theirs))
        if min(len(ours), len(theirs)) < 2 or np.ptp(ours) + np.ptp(theirs) == 0:
            return cls(mean, float("nan"), float("nan"))
        interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
        return cls(mean, float(interval.low), float(interval.high))
