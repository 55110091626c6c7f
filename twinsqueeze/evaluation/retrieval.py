"""Evaluation of compressors as a search: which passages, or which neighbors, a query finds.

Queries are float vectors and what is searched is stored vectors, as in an index: both pass the compressor, and only the
stored vectors its quantizer (asymmetric search, Jégou et al. 2011).
"""

import numpy as np
import torch

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.evaluation.evaluator import EvaluationResult
from twinsqueeze.evaluation.metrics import RelevantPairs, search
from twinsqueeze.evaluation.query_bootstrap import mean_interval
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import Int8Ranges, dequantize
from twinsqueeze.task import NEIGHBORS
from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.similarity import nearest_neighbors

# Of texts or vectors alone, so many rows are queries: the neighbor recall then has a standard error below 0.006.
MAX_QUERIES = 2000
CUTOFF = 10  # of nDCG, MRR and neighbor recall


class RetrievalEvaluator:
    """Evaluates any number of compressors, which run on `device`, on a split with queries, or of rows alone.

    A search is scored by (P,) pairs of a query and a relevant row with their relevance, and by the neighbors that the
    uncompressed vectors have. The queries of rows alone are up to `MAX_QUERIES` sampled rows.
    """

    def __init__(self, split: EncodedSplit, device: torch.device) -> None:
        self.split = split
        self.label_transform = "none"  # there are no scores
        num_rows = len(split.embeddings)
        self._corpus = np.arange(num_rows) if split.corpus is None else split.corpus
        if split.task == NEIGHBORS:
            self._queries = np.sort(np.random.default_rng(0).permutation(num_rows)[:MAX_QUERIES])
            self._own_rows = self._queries
        else:
            self._queries = np.unique(split.first)
            self._own_rows = np.full(len(self._queries), -1)
        pairs = np.argsort(split.first, kind="stable")
        order = np.argsort(self._corpus)
        targets = order[np.searchsorted(self._corpus, split.second[pairs], sorter=order)]
        self._relevant = RelevantPairs(np.searchsorted(self._queries, split.first[pairs]), targets)
        self._relevance = split.scores[pairs]
        self._vectors = torch.from_numpy(split.embeddings).to(device)
        vectors, queries = split.embeddings[self._corpus], split.embeddings[self._queries]
        self._neighbors = nearest_neighbors(vectors, CUTOFF, queries=queries, own_rows=self._own_rows)

    def __call__(self, compressor: CompressorNetwork, ranges: Int8Ranges | None = None) -> EvaluationResult:
        """Evaluates a compressor on the evaluator's device; without calibration ranges, int8 is left out."""
        stored, queries = self._compress(compressor)
        query_scores = self._score_queries(stored, queries)
        by_precision = {}
        if compressor.precision == "float32":
            for precision in ("int8", "binary"):
                if precision != "int8" or ranges:
                    forms = (dequantize(vectors, precision, ranges) for vectors in (stored, queries))
                    by_precision[precision] = _means(self._score_queries(*forms))
        shown = self.split.task.interval_scores
        return EvaluationResult(
            predicted=np.empty(0),
            labels=np.empty(0),
            scores=_means(query_scores),
            intervals={name: mean_interval(query_scores[name]) for name in shown},
            by_precision=by_precision,
            query_scores={name: query_scores[name] for name in shown},
            query_rows=self._queries,
        )

    def score_vectors(self, stored: FloatArray, queries: FloatArray | None = None) -> dict[str, float]:
        """Returns all scores of (N, dim) stored vectors of the split's rows; `queries` (N, dim) if they differ."""
        asked = stored if queries is None else queries
        return _means(self._score_queries(stored[self._corpus], asked[self._queries]))

    def score_by_labels(self, stored: FloatArray, queries: FloatArray | None = None) -> dict[str, dict[str, float]]:
        """Returns `score_vectors` under the name of no label transform."""
        return {self.label_transform: self.score_vectors(stored, queries)}

    def curve_scores(self, compressor: CompressorNetwork) -> FloatArray:
        """Returns the task's `curve_scores` of a compressor, (C,)."""
        names = self.split.task.curve_scores
        scores = self._score_queries(*self._compress(compressor), with_neighbors="neighbor_recall" in names)
        return np.array([scores[name].mean() for name in names])

    def _compress(self, compressor: CompressorNetwork) -> tuple[FloatArray, FloatArray]:
        """Returns the corpus as stored, (C, dim), and the queries as floats, (Q, dim)."""
        stored = compressor.compress_as_stored(self._vectors[self._corpus]).cpu().numpy()
        return stored, compressor.compress(self._vectors[self._queries]).cpu().numpy()

    def _score_queries(
        self, stored: FloatArray, queries: FloatArray, *, with_neighbors: bool = True
    ) -> dict[str, FloatArray]:
        """Returns every score of each query, (Q,), given (C, dim) stored vectors and (Q, dim) queries."""
        k = CUTOFF if with_neighbors else 0
        found, ranks = search(stored, self._relevant, k, queries=queries, own_rows=self._own_rows)
        scores = score_ranks(ranks, self._relevant.queries, self._relevance) if len(ranks) else {}
        if with_neighbors:
            scores["neighbor_recall"] = (self._neighbors[:, :, None] == found[:, None, :]).any(-1).mean(1)
        return scores


def score_ranks(ranks: FloatArray, queries: IntArray, relevance: FloatArray) -> dict[str, FloatArray]:
    """Returns scores of each query, (Q,), from the (P,) ranks and relevance of its relevant rows.

    nDCG@10 (Järvelin and Kekäläinen 2002) sums relevance / log2(1 + rank) and divides by the sum in the best order;
    MRR@10 is 1 / rank of the first relevant row; recall@k the share of relevant rows among the first k.
    """
    num_queries, counts = int(queries.max()) + 1, np.bincount(queries)

    def sum_by_query(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(queries, values, minlength=num_queries), np.float64)

    order = np.lexsort((-relevance, queries))  # the best order
    ideal_ranks = np.empty(len(ranks))
    ideal_ranks[order] = np.arange(len(ranks)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    gains, ideal = (np.where(r <= CUTOFF, relevance / np.log2(1 + r), 0) for r in (ranks, ideal_ranks))
    first_rank = np.full(num_queries, np.inf)
    np.minimum.at(first_rank, queries, ranks)
    return {
        "ndcg_at_10": sum_by_query(gains) / sum_by_query(ideal),
        "mrr_at_10": np.where(first_rank <= CUTOFF, 1 / first_rank, 0),
        **{f"recall_at_{k}": sum_by_query((ranks <= k).astype(float)) / counts for k in (1, 10, 100)},
    }


def _means(query_scores: dict[str, FloatArray]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in query_scores.items()}
