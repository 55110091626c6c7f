"""A trained compressor measured on a split."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twinsqueeze.compressor import Compressor
from twinsqueeze.embeddings import EncodedPairs
from twinsqueeze.metrics import Interval, bootstrap_intervals, nearest, neighbours_kept, score
from twinsqueeze.objectives import labels_from_scores
from twinsqueeze.training import predict

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Assessment:
    """What a compressor does on a split.

    Attributes:
        predicted: (P,) cosines of the compressed twins.
        labels: (P,) what they should be.
        scores: mse, mae, pearson, spearman, and neighbours_kept: the share of a sentence's 10 nearest among the split's
            sentences that are still among its 10 nearest when compressed.
        intervals: 95% bootstrap intervals over pairs of the first four.
    """

    predicted: FloatArray
    labels: FloatArray
    scores: dict[str, float]
    intervals: dict[str, Interval]

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
        self.labels = labels_from_scores(split.scores, label_kind)
        self._vectors = torch.from_numpy(split.embeddings).to(device)
        self._nearest = nearest(split.embeddings)

    def __call__(self, compressor: Compressor) -> Assessment:
        """Measures a compressor whose input dimension is that of the split's embeddings, on the evaluator's device."""
        predicted = predict(compressor, self._vectors, self.split)
        found = nearest(compressor.represent(self._vectors).cpu().numpy())
        return Assessment(
            predicted=predicted,
            labels=self.labels,
            scores=score(predicted, self.labels).as_floats()
            | {"neighbours_kept": neighbours_kept(self._nearest, found)},
            intervals=bootstrap_intervals(predicted, self.labels),
        )


def pair_losses(compressor: Compressor, split: EncodedPairs, label_kind: str) -> FloatArray:
    """Each pair's squared error, (P,), where nothing else of an assessment is wanted."""
    vectors = torch.from_numpy(split.embeddings).to(compressor.device)
    return np.square(predict(compressor, vectors, split) - labels_from_scores(split.scores, label_kind))
