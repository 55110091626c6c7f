"""Comparisons of results of trainings."""

import numpy as np

from twinsqueeze.training.loop import TrainingResult


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def same_bits(a: TrainingResult, b: TrainingResult) -> bool:
    def arrays(result: TrainingResult) -> list[np.ndarray]:
        history = result.history
        tensors = [tensor.numpy() for tensor in result.compressor.state_dict().values()]
        return [*tensors, history.loss, history.clean_loss, *history.dev.values()]

    pairs = zip(arrays(a), arrays(b), strict=True)
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)
