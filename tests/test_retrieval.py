import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.neighbors import NearestNeighbors

from twinsqueeze.evaluation.metrics import neighbor_recall
from twinsqueeze.evaluation.retrieval import RelevantPairs, relevant_pairs, retrieval_scores
from twinsqueeze.utils.similarity import nearest_neighbors


@pytest.fixture
def sentences():
    """Vectors, their ten nearest, and pairs with scores; some sentences are in several pairs."""
    generator = np.random.default_rng(4)
    vectors = generator.normal(size=(90, 12)).astype(np.float32)
    first, second = generator.integers(90, size=(2, 80))
    vectors[second] += 0.6 * vectors[first]
    return vectors, nearest_neighbors(vectors), first, second, np.round(generator.uniform(0, 5, size=80), 1)


def test_partners_are_the_pairs_of_4_and_more_each_way_once():
    first, second = np.array([0, 2, 5, 3, 4]), np.array([1, 0, 5, 4, 3])
    wanted = relevant_pairs(first, second, np.array([4.0, 3.9, 5.0, 4.6, 5.0]))
    assert wanted.queries.tolist() == [0, 1, 3, 4]
    assert wanted.targets.tolist() == [1, 0, 4, 3]


def test_a_search_by_hand():
    vectors = np.array([[1, 0], [1, 0.1], [1, 0.3], [0, 1], [0.1, 1]], np.float32)
    wanted = RelevantPairs(np.array([0, 0, 3]), np.array([1, 2, 0]))  # found first, second, and last
    scores = retrieval_scores(vectors, nearest_neighbors(vectors, 2), wanted)
    assert scores.neighbor_recall == 1
    assert scores.recall_at_1 == pytest.approx((1 / 2 + 0) / 2)
    assert scores.recall_at_10 == 1
    assert scores.mrr == pytest.approx((1 + 1 / 4) / 2)


def test_ranks_are_those_of_scikit_learns_search(sentences):
    vectors, reference, first, second, scores = sentences
    wanted = relevant_pairs(first, second, scores)
    found = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors).kneighbors(n_neighbors=89)[1]
    relevant = {query: set(wanted.targets[wanted.queries == query]) for query in set(wanted.queries)}
    assert max(map(len, relevant.values())) > 1
    expected = {
        f"recall_at_{k}": np.mean([len(them & set(found[query][:k])) / len(them) for query, them in relevant.items()])
        for k in (1, 10)
    }
    ours = retrieval_scores(vectors, reference, wanted, block=32).as_floats()
    assert {name: ours[name] for name in expected} == pytest.approx(expected)
    assert 0 < ours["recall_at_1"] < ours["recall_at_10"] < 1


def test_the_reciprocal_rank_of_single_partners_is_scikit_learns(sentences):
    vectors, reference, *_ = sentences
    wanted = RelevantPairs(np.arange(90), np.random.default_rng(1).permutation(90).take(range(90)))
    wanted = RelevantPairs(*(values[wanted.queries != wanted.targets] for values in (wanted.queries, wanted.targets)))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = (unit @ unit.T)[wanted.queries]
    similarity[np.arange(len(similarity)), wanted.queries] = -2
    relevant = np.eye(90, dtype=bool)[wanted.targets]
    expected = label_ranking_average_precision_score(relevant, similarity)
    assert retrieval_scores(vectors, reference, wanted).mrr == pytest.approx(expected)


def test_queries_that_are_not_what_is_found_are_scikit_learns(sentences):
    vectors, reference, first, second, scores = sentences
    wanted = relevant_pairs(first, second, scores)
    stored = vectors.round()  # no two are level, as signs would be
    found = NearestNeighbors(metric="cosine", algorithm="brute").fit(stored).kneighbors(vectors, 90)[1]
    others = [row[row != query] for query, row in enumerate(found)]
    ours = retrieval_scores(stored, reference, wanted, queries=vectors, block=32)
    kept = [len(set(them[:10]) & set(before)) / 10 for them, before in zip(others, reference, strict=True)]
    assert ours.neighbor_recall == pytest.approx(np.mean(kept))
    best = [
        1 / (1 + min(others[query].tolist().index(target) for target in wanted.targets[wanted.queries == query]))
        for query in np.unique(wanted.queries)
    ]
    assert ours.mrr == pytest.approx(np.mean(best))
    assert ours != retrieval_scores(stored, reference, wanted)


def test_neighbor_recall_are_those_of_metrics_whatever_the_block(sentences):
    vectors, reference, first, second, scores = sentences
    wanted = relevant_pairs(first, second, scores)
    squeezed = vectors[:, :4]
    expected = retrieval_scores(squeezed, reference, wanted)
    assert expected.neighbor_recall == neighbor_recall(reference, nearest_neighbors(squeezed))
    for block in (1, 7, 90, 1000):
        assert retrieval_scores(squeezed, reference, wanted, block=block) == expected


def test_who_cannot_tell_sentences_apart_finds_no_more_than_chance():
    vectors = np.ones((101, 8), np.float32)
    wanted = RelevantPairs(np.arange(100), np.arange(1, 101))
    scores = retrieval_scores(vectors, nearest_neighbors(np.random.default_rng(0).normal(size=(101, 8))), wanted)
    assert (scores.recall_at_1, scores.recall_at_10) == (0, 0)
    assert scores.mrr == pytest.approx(1 / 50.5)  # the mean rank of 100


def test_where_no_pair_is_close_there_is_nothing_to_find():
    wanted = relevant_pairs(np.array([0]), np.array([1]), np.array([3.0]))
    scores = retrieval_scores(np.eye(3), nearest_neighbors(np.eye(3)), wanted)
    assert np.isnan([scores.recall_at_1, scores.recall_at_10, scores.mrr]).all()
    assert scores.neighbor_recall == 1
