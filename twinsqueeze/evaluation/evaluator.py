"""Evaluation of trained compressors, and of any vectors, on a split."""

from dataclasses import dataclass, field

import numpy as np
import torch

from twinsqueeze.data.dataset import NO_ROWS, EncodedSplit
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.evaluation.bootstrap import Interval, PairBootstrap
from twinsqueeze.evaluation.metrics import RetrievalScores, relevant_pairs, retrieval_scores, score
from twinsqueeze.model.compressor import CompressorNetwork, predict_pair_cosines
from twinsqueeze.model.precision import Int8Ranges, dequantize
from twinsqueeze.recipe_fields import LABEL_TRANSFORMS
from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.similarity import nearest_neighbors, pair_cosines

# Scores that are recorded at every precision.
SEARCH_SCORES = ("spearman", *RetrievalScores._fields)


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a compressor on a split.

    Of queries or rows alone there are no pairs: `predicted` and `labels` are empty, and `query_scores` has the scores
    of each query. `by_precision` has the task's `search_scores` at other precisions: "int8" (if ranges are known) and
    "binary", or for pairs and a compressor that was trained with a quantizer "asymmetric", which compares float queries
    with quantized vectors.
    """

    predicted: FloatArray  # (P,) cosines of the pairs' compressed vectors
    labels: FloatArray  # (P,)
    scores: dict[str, float]  # the scores of the split's task
    intervals: dict[str, Interval]  # bootstrap intervals, over pairs or queries, of the task's `interval_scores`
    by_precision: dict[str, dict[str, float]]
    query_scores: dict[str, FloatArray] = field(default_factory=dict)  # (Q,) by name
    query_rows: IntArray = field(default_factory=lambda: NO_ROWS)  # (Q,) rows of the queries in the split

    @property
    def losses(self) -> FloatArray:
        """(P,) squared error of each pair."""
        return np.square(self.predicted - self.labels)


class Evaluator:
    """Evaluates any number of compressors, which run on `device`, on a split, whose scores become labels."""

    def __init__(self, split: EncodedSplit, label_transform: str, device: torch.device) -> None:
        self.split = split
        self.label_transform = label_transform
        self.labels = scores_to_labels(split.scores, label_transform)
        self._vectors = torch.from_numpy(split.embeddings).to(device)
        self._bootstrap = PairBootstrap(self.labels)
        self._neighbors = nearest_neighbors(split.embeddings)
        self._relevant = relevant_pairs(split.first, split.second, split.scores)

    def __call__(self, compressor: CompressorNetwork, ranges: Int8Ranges | None = None) -> EvaluationResult:
        """Evaluate a compressor on the evaluator's device; without calibration ranges, int8 is left out."""
        predicted = predict_pair_cosines(compressor, self._vectors, self.split)
        vectors = compressor.compress_as_stored(self._vectors).cpu().numpy()
        if compressor.precision == "float32":
            at_precisions = {
                precision: self.score_vectors(dequantize(vectors, precision, ranges))
                for precision in ("int8", "binary")
                if precision != "int8" or ranges
            }
        else:
            queries = compressor.compress(self._vectors).cpu().numpy()
            at_precisions = {"asymmetric": self.score_vectors(vectors, queries)}
        return EvaluationResult(
            predicted=predicted,
            labels=self.labels,
            scores=score(predicted, self.labels).means() | self._score_retrieval(vectors),
            intervals=self._bootstrap.intervals(predicted),
            by_precision={
                precision: {name: scores[name] for name in SEARCH_SCORES} for precision, scores in at_precisions.items()
            },
        )

    def score_vectors(self, stored: FloatArray, queries: FloatArray | None = None) -> dict[str, float]:
        """Return all scores of stored vectors (N, dim), which are also the queries unless others are given."""
        return self.score_by_labels(stored, queries)[self.label_transform]

    def score_by_labels(self, stored: FloatArray, queries: FloatArray | None = None) -> dict[str, dict[str, float]]:
        """Return `score_vectors` for every label transform, in the time of one: the search needs no labels."""
        first, second = self.split.first, self.split.second
        cosines = pair_cosines(stored, first, second, queries)
        if queries is not None:  # each sentence of a pair is the query once
            cosines = np.stack([cosines, pair_cosines(stored, second, first, queries)])
        search_scores = self._score_retrieval(stored, queries)
        labels = {transform: scores_to_labels(self.split.scores, transform) for transform in LABEL_TRANSFORMS}
        return {transform: score(cosines, each).means() | search_scores for transform, each in labels.items()}

    def _score_retrieval(self, stored: FloatArray, queries: FloatArray | None = None) -> dict[str, float]:
        return retrieval_scores(stored, self._neighbors, self._relevant, queries=queries)._asdict()


def pair_losses(compressor: CompressorNetwork, split: EncodedSplit, label_transform: str) -> FloatArray:
    """Return the squared error of each pair of a split, (P,), without a full evaluation."""
    vectors = torch.from_numpy(split.embeddings).to(compressor.device)
    labels = scores_to_labels(split.scores, label_transform)
    return np.square(predict_pair_cosines(compressor, vectors, split) - labels)
