"""A trained compressor measured on a split."""

from dataclasses import dataclass

import numpy as np
import torch

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.evaluation.bootstrap import Interval, PairBootstrap
from twinsqueeze.evaluation.metrics import asymmetric_scores, score
from twinsqueeze.evaluation.retrieval import relevant_pairs, retrieval_scores
from twinsqueeze.model.compressor import CompressorNetwork, predict_pair_cosines
from twinsqueeze.model.precision import Int8Ranges, dequantize
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.similarity import nearest_neighbors, pair_cosines


@dataclass(frozen=True)
class EvaluationResult:
    """What a compressor does on a split.

    Attributes:
        predicted: (P,) cosines of the compressed twins.
        labels: (P,) what they should be.
        scores: mse, mae, pearson, spearman and what `retrieval.SearchScores` has.
        intervals: 95% bootstrap intervals over pairs of the first four.
        by_precision: Spearman and what `retrieval.SearchScores` has of the same vectors, compared in another way: those
            of a compressor that was trained in floats at int8 (where the model has ranges to scale it by) and binary;
            those of one that was trained at fewer bits asymmetric, queries in floats with what is stored.
    """

    predicted: FloatArray
    labels: FloatArray
    scores: dict[str, float]
    intervals: dict[str, Interval]
    by_precision: dict[str, dict[str, float]]

    @property
    def losses(self) -> FloatArray:
        """Each pair's squared error, (P,)."""
        return np.square(self.predicted - self.labels)


class Evaluator:
    """A split, ready to measure any number of compressors on.

    Args:
        split: Pairs with their sentences' vectors.
        label_kind: "tanh" or "linear".
        device: Where compressors are run.
    """

    def __init__(self, split: EncodedPairs, label_kind: str, device: torch.device) -> None:
        self.split = split
        self.labels = scores_to_labels(split.scores, label_kind)
        self._vectors = torch.from_numpy(split.embeddings).to(device)
        self._resamples = PairBootstrap(self.labels)
        self._nearest = nearest_neighbors(split.embeddings)
        self._partners = relevant_pairs(split.first, split.second, split.scores)

    def __call__(self, compressor: CompressorNetwork, ranges: Int8Ranges | None = None) -> EvaluationResult:
        """Measures a compressor.

        Args:
            compressor: Its input dimension is that of the split's embeddings; on the evaluator's device.
            ranges: What its vectors are scaled by for int8; None leaves int8 out.
        """
        predicted = predict_pair_cosines(compressor, self._vectors, self.split)
        vectors = compressor.compress_as_stored(self._vectors).cpu().numpy()
        if compressor.precision == "float32":
            by_precision = {
                precision: self._quantised(dequantize(vectors, precision, ranges))
                for precision in ("int8", "binary")
                if precision != "int8" or ranges
            }
        else:
            by_precision = {"asymmetric": self._asymmetric(compressor.compress(self._vectors).cpu().numpy(), vectors)}
        return EvaluationResult(
            predicted=predicted,
            labels=self.labels,
            scores=score(predicted, self.labels).as_floats() | self._search(vectors),
            intervals=self._resamples.intervals(predicted),
            by_precision=by_precision,
        )

    def _search(self, vectors: FloatArray, queries: FloatArray | None = None) -> dict[str, float]:
        return retrieval_scores(vectors, self._nearest, self._partners, queries=queries).as_floats()

    def _asymmetric(self, queries: FloatArray, stored: FloatArray) -> dict[str, float]:
        scores = asymmetric_scores(queries, stored, self.split.first, self.split.second, self.labels)
        return {"spearman": scores["spearman"]} | self._search(stored, queries)

    def _quantised(self, vectors: FloatArray) -> dict[str, float]:
        cosine = pair_cosines(vectors, self.split.first, self.split.second)
        return {"spearman": float(score(cosine, self.labels).spearman)} | self._search(vectors)


def pair_losses(compressor: CompressorNetwork, split: EncodedPairs, label_kind: str) -> FloatArray:
    """Each pair's squared error, (P,), where nothing else of an assessment is wanted."""
    vectors = torch.from_numpy(split.embeddings).to(compressor.device)
    return np.square(predict_pair_cosines(compressor, vectors, split) - scores_to_labels(split.scores, label_kind))
