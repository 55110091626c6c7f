import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.neighbors import NearestNeighbors

from tests.helpers.search import nearest
from twinsqueeze.evaluation.bootstrap import PairBootstrap
from twinsqueeze.evaluation.metrics import (
    METRICS,
    RelevantPairs,
    neighbor_recall,
    relevant_pairs,
    retrieval_scores,
    score,
)
from twinsqueeze.evaluation.query_bootstrap import mean_difference_interval, mean_interval
from twinsqueeze.utils import similarity
from twinsqueeze.utils.similarity import nearest_neighbors, pair_cosines

# Of many resamples at once, as scipy.stats.bootstrap calls them.
STATISTICS = {
    "mse": lambda x, y, axis: np.square(x - y).mean(axis),
    "mae": lambda x, y, axis: np.abs(x - y).mean(axis),
    "pearson": lambda x, y, axis: stats.pearsonr(x, y, axis=axis)[0],
    "spearman": lambda x, y, axis: stats.pearsonr(*stats.rankdata([x, y], axis=axis), axis=axis)[0],
}


@pytest.fixture
def predictions():
    """Three replicas' predictions with ties, and labels with ties."""
    generator = np.random.default_rng(0)
    labels = np.round(generator.random(200), 1)
    return np.round(labels + 0.3 * generator.normal(size=(3, 200)), 2), labels


def test_scores_match_scipy_and_scikit_learn(predictions):
    predicted, labels = predictions
    functions = (mean_squared_error, mean_absolute_error, stats.pearsonr, stats.spearmanr)
    expected = [[np.ravel(function(labels, row))[0] for row in predicted] for function in functions]
    np.testing.assert_allclose(score(predicted, labels), expected, atol=1e-12)


def test_constant_predictions_have_no_correlation():
    scores = score(np.full(5, 0.3), np.arange(5.0))
    assert np.isnan([scores.pearson, scores.spearman]).all()


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_match_scipys_paired_bootstrap(predictions, metric):
    """Both predictions share most of their error, so an unpaired interval of the difference would be far wider."""
    ours, labels = predictions[0][0], predictions[1]
    theirs = ours + np.round(0.05 * np.random.default_rng(3).normal(size=len(ours)), 2) - 0.02
    statistic, bootstrap = STATISTICS[metric], PairBootstrap(labels, resamples=5000, seed=5)

    def difference_of(x, z, y, axis):
        return statistic(x, y, axis) - statistic(z, y, axis)

    difference, interval = bootstrap.difference(ours, theirs, metric)
    assert difference == pytest.approx(difference_of(ours, theirs, labels, -1), abs=1e-12)
    both = bootstrap.difference(np.stack([ours, theirs]), theirs, metric)
    assert (both[0], *both[1]) == pytest.approx((difference / 2, interval.low / 2, interval.high / 2))  # a mean of two
    of_ours = bootstrap.intervals(ours)[metric]
    for found, function, samples in ((of_ours, statistic, []), (interval, difference_of, [theirs])):
        expected = stats.bootstrap(
            [ours, *samples, labels], function, paired=True, n_resamples=5000, method="percentile", rng=6
        ).confidence_interval
        assert found == pytest.approx(tuple(expected), abs=0.05 * (expected.high - expected.low))


@pytest.mark.parametrize("is_difference", [False, True])
def test_intervals_of_queries_match_scipys_bootstrap(is_difference):
    generator = np.random.default_rng(3)
    baseline = generator.beta(0.5, 1, 400)
    values = baseline + generator.normal(0.01, 0.02, 400)
    found = mean_difference_interval(values, baseline) if is_difference else mean_interval(values)
    sample = values - baseline if is_difference else values
    expected = stats.bootstrap([sample], np.mean, method="percentile", n_resamples=4000, rng=3).confidence_interval
    assert found == pytest.approx(tuple(expected), abs=0.0003 if is_difference else 0.004)


def test_few_sentences_have_few_neighbors():
    assert nearest_neighbors(np.eye(3, dtype=np.float32), 10).shape == (3, 2)
    alone = nearest_neighbors(np.ones((1, 2)))
    assert np.isnan(neighbor_recall(alone, alone))


def test_cosines_by_hand():
    vectors = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(pair_cosines(vectors, np.array([0, 0]), np.array([1, 2])), [np.sqrt(0.5), 0])


def test_pairs_scored_4_or_more_are_relevant_both_ways_once():
    first, second = np.array([0, 2, 5, 3, 4]), np.array([1, 0, 5, 4, 3])
    pairs = relevant_pairs(first, second, np.array([4.0, 3.9, 5.0, 4.6, 5.0]))
    assert pairs.queries.tolist() == [0, 1, 3, 4]
    assert pairs.targets.tolist() == [1, 0, 4, 3]


@pytest.mark.parametrize(("queries_are_stored", "block"), [(True, 1), (True, 90), (True, 32), (False, 32)])
def test_retrieval_scores_match_scikit_learns_search(queries_are_stored, block, monkeypatch):
    """Of 90 sentences, some of which are in several pairs."""
    monkeypatch.setattr(similarity, "QUERIES_AT_ONCE", block)
    generator = np.random.default_rng(4)
    vectors = generator.normal(size=(90, 12)).astype(np.float32)
    first, second = generator.integers(90, size=(2, 80))
    vectors[second] += 0.6 * vectors[first]
    reference = nearest(vectors)
    np.testing.assert_array_equal(nearest_neighbors(vectors, 10), reference)
    pairs = relevant_pairs(first, second, np.round(generator.uniform(0, 5, size=80), 1))
    stored = vectors[:, :8] if queries_are_stored else vectors.round()  # without ties, unlike signs
    queries = None if queries_are_stored else vectors
    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(stored)
    found = search.kneighbors(stored if queries_are_stored else vectors, 90)[1]
    found = [[target for target in row if target != query] for query, row in enumerate(found)]
    relevant = {query: set(pairs.targets[pairs.queries == query].tolist()) for query in set(pairs.queries.tolist())}
    neighbors = {query: set(row) for query, row in enumerate(reference.tolist())}
    assert max(map(len, relevant.values())) > 1

    def mean_recall(targets_by_query, k):
        recalls = [len(targets.intersection(found[q][:k])) / len(targets) for q, targets in targets_by_query.items()]
        return np.mean(recalls)

    mrr = np.mean([1 / (1 + min(map(found[query].index, targets))) for query, targets in relevant.items()])
    expected = mean_recall(neighbors, 10), mean_recall(relevant, 1), mean_recall(relevant, 10), mrr
    scores = retrieval_scores(stored, reference, pairs, queries=queries)
    assert scores == pytest.approx(expected)
    assert 0 < scores.recall_at_1 < scores.recall_at_10 < 1
    assert queries_are_stored or scores != retrieval_scores(stored, reference, pairs)


def test_equal_vectors_find_no_more_than_chance():
    reference = nearest_neighbors(np.random.default_rng(0).normal(size=(101, 8)))
    pairs = RelevantPairs(np.arange(100), np.arange(1, 101))
    scores = retrieval_scores(np.ones((101, 8), np.float32), reference, pairs)
    assert (scores.recall_at_1, scores.recall_at_10) == (0, 0)
    assert scores.mrr == pytest.approx(1 / 50.5)  # the mean rank of 100


def test_scores_are_nan_without_relevant_pairs():
    pairs = relevant_pairs(np.array([0]), np.array([1]), np.array([3.0]))
    recall, *others = retrieval_scores(np.eye(3), nearest_neighbors(np.eye(3)), pairs)
    assert recall == 1
    assert np.isnan(others).all()
