import math

import numpy as np
import pytest
from scipy import stats

from twinsqueeze.reporting.statistics import MeanDifference, SeedStats


def test_a_spread_by_hand():
    spread = SeedStats.of([1.0, 2.0, 6.0])
    assert spread.mean == 3
    assert spread.deviation == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / 2
    half = 4.302652729911275 * math.sqrt(7 / 3)  # t at 0.975 with 2 degrees of freedom, from tables
    assert spread.interval == pytest.approx((3 - half, 3 + half))


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_values_have_no_spread(values):
    spread = SeedStats.of(values)
    assert spread.mean == pytest.approx(0.5 if values else float("nan"), nan_ok=True)
    assert math.isnan(spread.deviation)
    assert all(map(math.isnan, spread.interval))


def test_a_differences_interval_is_welchs():
    """By the formula of Welch and Satterthwaite."""
    ours, theirs = np.array([0.81, 0.80, 0.83, 0.79]), np.array([0.77, 0.78, 0.775])
    variances = [x.var(ddof=1) / len(x) for x in (ours, theirs)]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 3 + variances[1] ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    difference = MeanDifference.between(ours, theirs)
    assert difference.mean == pytest.approx(ours.mean() - theirs.mean())
    assert (difference.low, difference.high) == pytest.approx((difference.mean - half, difference.mean + half))


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [2.0, 3.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_a_difference_without_spread_has_no_interval(ours, theirs):
    difference = MeanDifference.between(ours, theirs)
    assert difference.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert math.isnan(difference.low)
    assert math.isnan(difference.high)
