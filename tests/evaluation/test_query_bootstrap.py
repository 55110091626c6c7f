import numpy as np
import pytest
from scipy import stats

from twinsqueeze.evaluation.query_bootstrap import mean_difference_interval, mean_interval

RNG = np.random.default_rng(3)


def scipy_interval(values):
    found = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=RNG)
    return found.confidence_interval


def test_intervals_of_means_are_those_of_scipy():
    values = RNG.beta(0.5, 1, 400)
    assert mean_interval(values) == pytest.approx(scipy_interval(values), abs=0.004)


def test_differences_are_paired():
    baseline = RNG.beta(0.5, 1, 400)
    values = baseline + RNG.normal(0.01, 0.02, 400)
    found = mean_difference_interval(values, baseline)
    assert found == pytest.approx(scipy_interval(values - baseline), abs=0.0003)
    assert found.low > 0
