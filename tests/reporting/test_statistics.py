import math

import numpy as np
import pytest
from scipy import stats

from twinsqueeze.reporting.statistics import MeanDifference, SeedStats


def test_mean_deviation_and_interval_are_those_computed_by_hand():
    seeds = SeedStats.of([1.0, 2.0, 6.0])
    half = 4.302652729911275 * math.sqrt(7 / 3)  # quantile 0.975 of Student's t with 2 degrees of freedom
    assert (seeds.mean, seeds.deviation) == pytest.approx((3, math.sqrt(7)))  # (4 + 1 + 9) / 2
    assert seeds.interval == pytest.approx((3 - half, 3 + half))


@pytest.mark.parametrize(("values", "mean"), [([], math.nan), ([0.5], 0.5)])
def test_too_few_values_have_neither_deviation_nor_interval(values, mean):
    seeds = SeedStats.of(values)
    assert [seeds.mean, seeds.deviation, *seeds.interval] == pytest.approx([mean] + [math.nan] * 3, nan_ok=True)


def test_interval_of_a_difference_equals_the_welch_satterthwaite_formula():
    values, reference = np.array([0.81, 0.80, 0.83, 0.79]), np.array([0.77, 0.78, 0.775])
    variances = [x.var(ddof=1) / len(x) for x in (values, reference)]
    degrees_of_freedom = sum(variances) ** 2 / (variances[0] ** 2 / 3 + variances[1] ** 2 / 2)
    half, mean = stats.t.ppf(0.975, degrees_of_freedom) * math.sqrt(sum(variances)), values.mean() - reference.mean()
    difference = MeanDifference.between(values, reference)
    assert (difference.low, difference.mean, difference.high) == pytest.approx((mean - half, mean, mean + half))


@pytest.mark.parametrize(("values", "reference"), [([1.0], [2.0, 4.0]), ([1.0, 1.0], [3.0, 3.0])])
def test_a_difference_of_constant_or_single_values_has_no_interval(values, reference):
    difference = MeanDifference.between(values, reference)
    assert [difference.mean, difference.low, difference.high] == pytest.approx([-2, math.nan, math.nan], nan_ok=True)
