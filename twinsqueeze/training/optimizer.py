"""Adam on one flat tensor, and learning rate schedules."""

import math

import torch


def lr_at(schedule: str, lr: float, progress: float) -> float:
    """Returns the learning rate of a step.

    Args:
        schedule: "constant"; "cosine": lr * (1 + cos(pi * t)) / 2 (Loshchilov and Hutter 2017, arXiv 1608.03983);
            "linear": lr * (1 - t).
        lr: The initial learning rate.
        progress: t, the completed share of all steps, 0 to 1.
    """
    if schedule == "constant":
        return lr
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "linear":
        return lr * (1 - progress)
    raise ValueError(f"unknown schedule {schedule!r}")


class FlatAdam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with PyTorch's defaults: betas 0.9 and 0.999, epsilon 1e-8.

    Calls the same kernel as `torch.optim.Adam(fused=True)`, to the same bits. That class imports torch._dynamo, which
    takes a second, and its bookkeeping doubles the time of a step at R = 1.

    Args:
        parameters: Any shape, float32; updated in place.
        gradient: Of the same shape; read by every step.
        lr: Learning rate.
        weight_decay: If positive, AdamW's decoupled decay (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Attributes:
        lr: Learning rate of the next step.
    """

    def __init__(self, parameters: torch.Tensor, gradient: torch.Tensor, lr: float, weight_decay: float = 0.0) -> None:
        self.lr = lr
        self._weight_decay = weight_decay
        self._update = torch._fused_adamw_ if weight_decay else torch._fused_adam_
        self._parameters, self._gradient = parameters, gradient
        self._mean = torch.zeros_like(parameters)
        self._mean_square = torch.zeros_like(parameters)
        self._step = torch.zeros((), device=parameters.device)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The optimizer's tensors by name; writing to them changes the optimizer."""
        return {"mean": self._mean, "mean_square": self._mean_square, "step": self._step}

    def step(self) -> None:
        """Updates the parameters."""
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
            weight_decay=self._weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
