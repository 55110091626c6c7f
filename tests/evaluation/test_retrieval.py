import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.neighbors import NearestNeighbors

from twinsqueeze.evaluation.metrics import RelevantPairs, neighbor_recall, relevant_pairs, retrieval_scores
from twinsqueeze.utils.similarity import nearest_neighbors


@pytest.fixture
def sentences():
    """Vectors, their ten nearest, and pairs with scores; some sentences are in several pairs."""
    generator = np.random.default_rng(4)
    vectors = generator.normal(size=(90, 12)).astype(np.float32)
    first, second = generator.integers(90, size=(2, 80))
    vectors[second] += 0.6 * vectors[first]
    return vectors, nearest_neighbors(vectors), first, second, np.round(generator.uniform(0, 5, size=80), 1)


def test_pairs_scored_4_or_more_are_relevant_both_ways_once():
    first, second = np.array([0, 2, 5, 3, 4]), np.array([1, 0, 5, 4, 3])
    pairs = relevant_pairs(first, second, np.array([4.0, 3.9, 5.0, 4.6, 5.0]))
    assert pairs.queries.tolist() == [0, 1, 3, 4]
    assert pairs.targets.tolist() == [1, 0, 4, 3]


def test_a_search_by_hand():
    vectors = np.array([[1, 0], [1, 0.1], [1, 0.3], [0, 1], [0.1, 1]], np.float32)
    pairs = RelevantPairs(np.array([0, 0, 3]), np.array([1, 2, 0]))  # found first, second, and last
    scores = retrieval_scores(vectors, nearest_neighbors(vectors, 2), pairs)
    assert scores.neighbor_recall == 1
    assert scores.recall_at_1 == pytest.approx((1 / 2 + 0) / 2)
    assert scores.recall_at_10 == 1
    assert scores.mrr == pytest.approx((1 + 1 / 4) / 2)


def test_recall_matches_scikit_learns_search(sentences):
    vectors, reference, first, second, scores = sentences
    pairs = relevant_pairs(first, second, scores)
    found = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors).kneighbors(n_neighbors=89)[1]
    relevant = {query: set(pairs.targets[pairs.queries == query]) for query in set(pairs.queries)}
    assert max(map(len, relevant.values())) > 1
    expected = {
        f"recall_at_{k}": np.mean([len(them & set(found[query][:k])) / len(them) for query, them in relevant.items()])
        for k in (1, 10)
    }
    ours = retrieval_scores(vectors, reference, pairs, block=32)._asdict()
    assert {name: ours[name] for name in expected} == pytest.approx(expected)
    assert 0 < ours["recall_at_1"] < ours["recall_at_10"] < 1


def test_mrr_of_single_relevant_sentences_matches_scikit_learn(sentences):
    vectors, reference, *_ = sentences
    pairs = RelevantPairs(np.arange(90), np.random.default_rng(1).permutation(90).take(range(90)))
    pairs = RelevantPairs(*(values[pairs.queries != pairs.targets] for values in (pairs.queries, pairs.targets)))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = (unit @ unit.T)[pairs.queries]
    similarity[np.arange(len(similarity)), pairs.queries] = -2
    relevant = np.eye(90, dtype=bool)[pairs.targets]
    expected = label_ranking_average_precision_score(relevant, similarity)
    assert retrieval_scores(vectors, reference, pairs).mrr == pytest.approx(expected)


def test_asymmetric_search_matches_scikit_learn(sentences):
    vectors, reference, first, second, scores = sentences
    pairs = relevant_pairs(first, second, scores)
    stored = vectors.round()  # without ties, unlike signs
    found = NearestNeighbors(metric="cosine", algorithm="brute").fit(stored).kneighbors(vectors, 90)[1]
    others = [row[row != query] for query, row in enumerate(found)]
    ours = retrieval_scores(stored, reference, pairs, queries=vectors, block=32)
    recalls = [len(set(them[:10]) & set(before)) / 10 for them, before in zip(others, reference, strict=True)]
    assert ours.neighbor_recall == pytest.approx(np.mean(recalls))
    best = [
        1 / (1 + min(others[query].tolist().index(target) for target in pairs.targets[pairs.queries == query]))
        for query in np.unique(pairs.queries)
    ]
    assert ours.mrr == pytest.approx(np.mean(best))
    assert ours != retrieval_scores(stored, reference, pairs)


def test_scores_do_not_depend_on_the_block_size(sentences):
    vectors, reference, first, second, scores = sentences
    pairs = relevant_pairs(first, second, scores)
    compressed = vectors[:, :4]
    expected = retrieval_scores(compressed, reference, pairs)
    assert expected.neighbor_recall == neighbor_recall(reference, nearest_neighbors(compressed))
    for block in (1, 7, 90, 1000):
        assert retrieval_scores(compressed, reference, pairs, block=block) == expected


def test_equal_vectors_find_no_more_than_chance():
    vectors = np.ones((101, 8), np.float32)
    pairs = RelevantPairs(np.arange(100), np.arange(1, 101))
    scores = retrieval_scores(vectors, nearest_neighbors(np.random.default_rng(0).normal(size=(101, 8))), pairs)
    assert (scores.recall_at_1, scores.recall_at_10) == (0, 0)
    assert scores.mrr == pytest.approx(1 / 50.5)  # the mean rank of 100


def test_scores_are_nan_without_relevant_pairs():
    pairs = relevant_pairs(np.array([0]), np.array([1]), np.array([3.0]))
    scores = retrieval_scores(np.eye(3), nearest_neighbors(np.eye(3)), pairs)
    assert np.isnan([scores.recall_at_1, scores.recall_at_10, scores.mrr]).all()
    assert scores.neighbor_recall == 1
