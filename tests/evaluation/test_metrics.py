import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.neighbors import NearestNeighbors

from twinsqueeze.evaluation.bootstrap import PairBootstrap
from twinsqueeze.evaluation.metrics import METRICS, neighbor_recall, score
from twinsqueeze.utils.similarity import nearest_neighbors, pair_cosines


@pytest.fixture
def predictions():
    """Three replicas' predictions with ties, and labels with ties."""
    generator = np.random.default_rng(0)
    labels = np.round(generator.random(200), 1)
    return np.round(labels + 0.3 * generator.normal(size=(3, 200)), 2), labels


def test_scores_match_scipy_and_scikit_learn(predictions):
    predicted, labels = predictions
    scores = score(predicted, labels)
    for r in range(3):
        assert scores.mse[r] == pytest.approx(mean_squared_error(labels, predicted[r]), abs=1e-12)
        assert scores.mae[r] == pytest.approx(mean_absolute_error(labels, predicted[r]), abs=1e-12)
        assert scores.pearson[r] == pytest.approx(stats.pearsonr(labels, predicted[r])[0], abs=1e-12)
        assert scores.spearman[r] == pytest.approx(stats.spearmanr(labels, predicted[r])[0], abs=1e-12)


def test_scores_of_a_replica_do_not_depend_on_other_replicas(predictions):
    predicted, labels = predictions
    together, alone = score(predicted, labels), score(predicted[1:2], labels)
    for name in METRICS:
        assert getattr(together, name)[1] == getattr(alone, name)[0]


def test_constant_predictions_have_no_correlation():
    scores = score(np.full(5, 0.3), np.arange(5.0))
    assert np.isnan(scores.pearson)
    assert np.isnan(scores.spearman)


def test_intervals_match_scipys_bootstrap(predictions):
    predicted, labels = predictions
    ours = PairBootstrap(labels, resamples=2000, seed=5).intervals(predicted[0])

    statistics = {
        "mse": lambda x, y: mean_squared_error(y, x),
        "mae": lambda x, y: mean_absolute_error(y, x),
        "pearson": lambda x, y: stats.pearsonr(x, y)[0],
        "spearman": lambda x, y: stats.spearmanr(x, y)[0],
    }
    for name, statistic in statistics.items():
        theirs = stats.bootstrap(
            (predicted[0], labels),
            statistic,
            paired=True,
            vectorized=False,
            n_resamples=2000,
            method="percentile",
            rng=np.random.default_rng(6),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert ours[name].low == pytest.approx(theirs.low, abs=0.1 * width)
        assert ours[name].high == pytest.approx(theirs.high, abs=0.1 * width)


PAIRED = {
    "mse": lambda x, z, y: mean_squared_error(y, x) - mean_squared_error(y, z),
    "mae": lambda x, z, y: mean_absolute_error(y, x) - mean_absolute_error(y, z),
    "pearson": lambda x, z, y: stats.pearsonr(x, y)[0] - stats.pearsonr(z, y)[0],
    "spearman": lambda x, z, y: stats.spearmanr(x, y)[0] - stats.spearmanr(z, y)[0],
}


@pytest.mark.parametrize("metric", METRICS)
def test_differences_match_scipys_paired_bootstrap(predictions, metric):
    """The predictions share most of their error, so an unpaired interval would be far wider."""
    ours, labels = predictions[0][0], predictions[1]
    theirs = ours + np.round(0.05 * np.random.default_rng(3).normal(size=len(ours)), 2) - 0.02
    difference, interval = PairBootstrap(labels, resamples=2000, seed=5).difference(ours, theirs, metric)
    assert difference == pytest.approx(PAIRED[metric](ours, theirs, labels), abs=1e-12)
    expected = stats.bootstrap(
        (ours, theirs, labels),
        PAIRED[metric],
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(6),
    ).confidence_interval
    width = expected.high - expected.low
    assert interval.low == pytest.approx(expected.low, abs=0.1 * width)
    assert interval.high == pytest.approx(expected.high, abs=0.1 * width)


def test_equal_predictions_do_not_differ(predictions):
    difference, interval = PairBootstrap(predictions[1]).difference(predictions[0][0], predictions[0][0], "spearman")
    assert (difference, interval.low, interval.high) == (0, 0, 0)


def test_nearest_neighbors_match_scikit_learn():
    vectors = np.random.default_rng(1).normal(size=(150, 16)).astype(np.float32)
    expected = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(vectors).kneighbors()[1]
    np.testing.assert_array_equal(nearest_neighbors(vectors, 10, block=64), expected)


def test_neighbor_recall_by_hand():
    reference = np.array([[1, 2, 3], [0, 2, 3]])
    found = np.array([[3, 1, 9], [7, 8, 9]])  # two of three, in another order; none
    assert neighbor_recall(reference, found) == pytest.approx(1 / 3)
    assert neighbor_recall(reference, reference) == 1


def test_few_sentences_have_few_neighbors():
    assert nearest_neighbors(np.eye(3, dtype=np.float32), 10).shape == (3, 2)
    assert np.isnan(neighbor_recall(nearest_neighbors(np.ones((1, 2))), nearest_neighbors(np.ones((1, 2)))))


def test_cosines_by_hand():
    vectors = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(pair_cosines(vectors, np.array([0, 0]), np.array([1, 2])), [np.sqrt(0.5), 0])
