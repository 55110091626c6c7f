"""Adam on one flat tensor, and how its learning rate goes on."""

import math

import torch


def lr_at(schedule: str, lr: float, done: float) -> float:
    """The learning rate of a step.

    Args:
        schedule: "constant"; "cosine": lr * (1 + cos(pi * t)) / 2 (Loshchilov and Hutter 2017, arXiv 1608.03983);
            "linear": lr * (1 - t).
        lr: At the beginning.
        done: t, the share of the training's steps that are done, 0 to 1.
    """
    if schedule == "constant":
        return lr
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * done)) / 2
    if schedule == "linear":
        return lr * (1 - done)
    raise ValueError(f"unknown schedule {schedule!r}")


class FlatAdam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with beta 0.9 and 0.999 and epsilon 1e-8, PyTorch's defaults.

    Calls the fused kernel that `torch.optim.Adam(fused=True)` calls, with the same bits as result. That class imports
    torch._dynamo, which takes a second of every run, and its bookkeeping doubles the time of a step at R = 1.

    Args:
        parameters: Any shape, float32, changed in place.
        gradient: Of the same shape, read at every step.
        lr: Learning rate.
        weight_decay: Above 0, AdamW's decoupled decay (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Attributes:
        lr: Of the next step.
    """

    def __init__(self, parameters: torch.Tensor, gradient: torch.Tensor, lr: float, weight_decay: float = 0.0) -> None:
        self.lr = lr
        self.weight_decay = weight_decay
        self._update = torch._fused_adamw_ if weight_decay else torch._fused_adam_
        self._parameters, self._gradient = parameters, gradient
        self._mean = torch.zeros_like(parameters)
        self._mean_square = torch.zeros_like(parameters)
        self._step = torch.zeros((), device=parameters.device)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """What the next step follows from besides the parameters, by name; writing to it changes the optimiser."""
        return {"mean": self._mean, "mean_square": self._mean_square, "step": self._step}

    def step(self) -> None:
        """One update."""
        self._step += 1
        self._update(
            [self._parameters],
            [self._gradient],
            [self._mean],
            [self._mean_square],
            [],
            [self._step],
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
