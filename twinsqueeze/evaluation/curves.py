"""Scores on dev after every epoch of a training."""

from collections.abc import Callable

import numpy as np
import torch

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.evaluation.metrics import score
from twinsqueeze.evaluation.retrieval import RetrievalEvaluator
from twinsqueeze.model.compressor import CompressorBatch, predict_pair_cosines_of_each
from twinsqueeze.task import SIMILARITY
from twinsqueeze.types import FloatArray

CurveScorer = Callable[[CompressorBatch], FloatArray]


def curve_scorer(dev: EncodedSplit, label_transform: str, device: torch.device) -> CurveScorer:
    """Returns a function from R replicas on a device to the `curve_scores` of the split's task, (C, R)."""
    if dev.task == SIMILARITY:
        vectors = torch.from_numpy(dev.embeddings).to(device)
        labels = scores_to_labels(dev.scores, label_transform)
        return lambda model: np.stack(score(predict_pair_cosines_of_each(model, vectors, dev), labels))
    evaluator = RetrievalEvaluator(dev, device)
    return lambda model: np.stack([evaluator.curve_scores(model.replica(r)) for r in range(len(model))], axis=1)
