from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity

from tests.helpers.pairs import random_queries
from tests.helpers.search import nearest, recall
from twinsqueeze.evaluation import retrieval
from twinsqueeze.evaluation.retrieval import RetrievalEvaluator
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.quantizers import ProductQuantizer
from twinsqueeze.task import NEIGHBORS

CPU = torch.device("cpu")
SPLIT = random_queries(50, 12, seed=4)
PASSAGES, QUERIES = SPLIT.embeddings[:20], SPLIT.embeddings[20:]


def test_scores_are_scikit_learns_and_those_of_the_definitions():
    generator = np.random.default_rng(0)
    stored, queries = (generator.normal(size=(70, 6)).astype(np.float32) for _ in range(2))
    scores = RetrievalEvaluator(SPLIT, CPU).score_vectors(stored, queries)
    cosines = cosine_similarity(queries[20:], stored[:20])
    relevance = np.zeros_like(cosines)
    relevance[SPLIT.first - 20, SPLIT.second] = SPLIT.scores
    assert scores["ndcg_at_10"] == pytest.approx(ndcg_score(relevance, cosines, k=10))
    order = np.argsort(-cosines, axis=1)
    found = np.take_along_axis(relevance > 0, order, 1)
    first = found.argmax(1) + 1
    assert scores["mrr_at_10"] == pytest.approx(np.where(first <= 10, 1 / first, 0).mean())
    for k in (1, 10, 100):
        assert scores[f"recall_at_{k}"] == pytest.approx((found[:, :k].sum(1) / found.sum(1)).mean())
    assert scores["neighbor_recall"] == pytest.approx(recall(nearest(PASSAGES, QUERIES), order[:, :10]))


def test_uncompressed_vectors_find_all_neighbors_and_ties_have_mean_ranks():
    evaluator = RetrievalEvaluator(SPLIT, CPU)
    assert evaluator.score_vectors(SPLIT.embeddings)["neighbor_recall"] == 1
    same = evaluator.score_vectors(np.ones((70, 3), np.float32))  # every rank is 10.5
    assert same["ndcg_at_10"] == same["mrr_at_10"] == same["recall_at_10"] == 0
    assert same["recall_at_100"] == 1


def test_queries_are_floats_and_what_they_search_is_stored():
    generator = torch.Generator().manual_seed(0)
    layer = torch.randn(8, 12, generator=generator), torch.zeros(8)
    network = CompressorNetwork([layer], ProductQuantizer(torch.randn(1, 2, 16, 4, generator=generator)))
    evaluator, vectors = RetrievalEvaluator(SPLIT, CPU), torch.from_numpy(SPLIT.embeddings)
    result = evaluator(network)
    expected = evaluator.score_vectors(network.compress_as_stored(vectors).numpy(), network.compress(vectors).numpy())
    assert result.scores == expected
    assert evaluator.curve_scores(network)[0] == expected["ndcg_at_10"]
    assert result.by_precision == {}
    low, high = result.intervals["ndcg_at_10"]
    assert low < result.query_scores["ndcg_at_10"].mean() < high
    assert set(RetrievalEvaluator(SPLIT, CPU)(CompressorNetwork([layer])).by_precision) == {"binary"}


def test_rows_alone_are_queries_among_each_other(monkeypatch):
    monkeypatch.setattr(retrieval, "MAX_QUERIES", 15)
    rows = replace(SPLIT, task=NEIGHBORS, corpus=None, first=SPLIT.first[:0], second=SPLIT.second[:0])
    evaluator = RetrievalEvaluator(rows, CPU)
    reduced = SPLIT.embeddings[:, :4]
    chosen = evaluator(CompressorNetwork([(torch.eye(4, 12), torch.zeros(4))])).query_rows
    assert len(chosen) == 15
    expected = recall(nearest(SPLIT.embeddings)[chosen], nearest(reduced)[chosen])
    assert evaluator.score_vectors(reduced) == {"neighbor_recall": pytest.approx(expected)}
