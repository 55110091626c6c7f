"""Evaluation of trained compressors on a split."""

from dataclasses import dataclass

import numpy as np
import torch

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.evaluation.bootstrap import Interval, PairBootstrap
from twinsqueeze.evaluation.metrics import asymmetric_scores, score
from twinsqueeze.evaluation.retrieval import RetrievalTask
from twinsqueeze.model.compressor import CompressorNetwork, predict_pair_cosines
from twinsqueeze.model.precision import Int8Ranges, dequantize
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.similarity import pair_cosines


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a compressor on a split.

    Attributes:
        predicted: (P,) cosines of the pairs' compressed vectors.
        labels: (P,) labels.
        scores: The fields of `metrics.Scores` and `retrieval.RetrievalScores` by name.
        intervals: 95% bootstrap intervals over pairs of the fields of `metrics.Scores`.
        by_precision: "spearman" and the fields of `retrieval.RetrievalScores` for the same compressor at other
            precisions. For one that was trained without a quantizer: "int8" (if ranges are known) and "binary". For one
            with a quantizer: "asymmetric", which compares float queries with quantized vectors.
    """

    predicted: FloatArray
    labels: FloatArray
    scores: dict[str, float]
    intervals: dict[str, Interval]
    by_precision: dict[str, dict[str, float]]

    @property
    def losses(self) -> FloatArray:
        """(P,) squared error of each pair."""
        return np.square(self.predicted - self.labels)


class Evaluator:
    """Evaluates any number of compressors on a split.

    Args:
        split: Pairs with embeddings of their sentences.
        label_transform: "tanh" or "linear".
        device: Device on which compressors run.
    """

    def __init__(self, split: EncodedPairs, label_transform: str, device: torch.device) -> None:
        self.split = split
        self.labels = scores_to_labels(split.scores, label_transform)
        self._vectors = torch.from_numpy(split.embeddings).to(device)
        self._bootstrap = PairBootstrap(self.labels)
        self._retrieval = RetrievalTask(split)

    def __call__(self, compressor: CompressorNetwork, ranges: Int8Ranges | None = None) -> EvaluationResult:
        """Evaluate a compressor.

        Args:
            compressor: On the evaluator's device, with the embeddings' dimension as input dimension.
            ranges: Calibration ranges of its vectors at int8; None leaves int8 out.
        """
        predicted = predict_pair_cosines(compressor, self._vectors, self.split)
        vectors = compressor.compress_as_stored(self._vectors).cpu().numpy()
        if compressor.precision == "float32":
            by_precision = {
                precision: self._score_quantized(dequantize(vectors, precision, ranges))
                for precision in ("int8", "binary")
                if precision != "int8" or ranges
            }
        else:
            queries = compressor.compress(self._vectors).cpu().numpy()
            by_precision = {"asymmetric": self._score_asymmetric(queries, vectors)}
        return EvaluationResult(
            predicted=predicted,
            labels=self.labels,
            scores=score(predicted, self.labels).as_floats() | self._retrieval.score(vectors),
            intervals=self._bootstrap.intervals(predicted),
            by_precision=by_precision,
        )

    def _score_asymmetric(self, queries: FloatArray, stored: FloatArray) -> dict[str, float]:
        scores = asymmetric_scores(queries, stored, self.split.first, self.split.second, self.labels)
        return {"spearman": scores["spearman"]} | self._retrieval.score(stored, queries)

    def _score_quantized(self, vectors: FloatArray) -> dict[str, float]:
        cosines = pair_cosines(vectors, self.split.first, self.split.second)
        return {"spearman": float(score(cosines, self.labels).spearman)} | self._retrieval.score(vectors)


def pair_losses(compressor: CompressorNetwork, split: EncodedPairs, label_transform: str) -> FloatArray:
    """Return the squared error of each pair of a split, (P,), without a full evaluation."""
    vectors = torch.from_numpy(split.embeddings).to(compressor.device)
    labels = scores_to_labels(split.scores, label_transform)
    return np.square(predict_pair_cosines(compressor, vectors, split) - labels)
