"""Adam on one flat tensor, and learning rate schedules."""

import math
from collections.abc import Callable

import torch


def lr_at(schedule: str, lr: float, progress: float) -> float:
    """Returns the learning rate of a step, given the initial one and the completed share of all steps, 0 to 1."""
    if schedule == "constant":
        return lr
    if schedule == "cosine":  # Loshchilov and Hutter 2017, arXiv 1608.03983
        return lr * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "linear":
        return lr * (1 - progress)
    raise ValueError(f"unknown schedule {schedule!r}")


class FlatAdam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with PyTorch's defaults: betas 0.9 and 0.999, epsilon 1e-8.

    Calls the same kernel as `torch.optim.Adam(fused=True)`, to the same bits. That class imports torch._dynamo, which
    takes a second, and its bookkeeping doubles the time of a step at R = 1. A positive `weight_decay` is AdamW's
    decoupled decay (Loshchilov and Hutter 2019, arXiv 1711.05101).
    """

    def __init__(self, parameters: torch.Tensor, gradient: torch.Tensor, lr: float, weight_decay: float = 0.0) -> None:
        self.lr = lr
        mean, mean_square = torch.zeros_like(parameters), torch.zeros_like(parameters)
        step = torch.zeros((), device=parameters.device)
        # The optimizer's tensors; writing to them changes the optimizer.
        self.state = {"mean": mean, "mean_square": mean_square, "step": step}
        self._update: Callable[..., None] = torch._fused_adamw_ if weight_decay else torch._fused_adam_
        self._tensors: tuple[list[torch.Tensor], ...] = [parameters], [gradient], [mean], [mean_square], [], [step]
        self._options = {"beta1": 0.9, "beta2": 0.999, "weight_decay": weight_decay, "eps": 1e-8}

    def step(self) -> None:
        """Updates the parameters."""
        self.state["step"] += 1
        self._update(*self._tensors, lr=self.lr, **self._options, amsgrad=False, maximize=False)
