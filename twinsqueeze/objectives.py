"""Labels and losses."""

import torch

# Deviations from the mean are divided by no less.
SHORTEST = 1e-12


def mse(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error over the last axis, and its gradient with respect to the predictions.

    Args:
        predicted: (…, P) cosines.
        labels: (…, P) or what broadcasts to it.

    Returns:
        (…) and (…, P).
    """
    error = predicted - labels
    return error.square().mean(-1), error * (2 / error.shape[-1])


def pearson(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """1 less Pearson's correlation over the last axis, and its gradient with respect to the predictions.

    With centred x and y: dr/dx = y / (|x| |y|) - r x / |x|^2. Where predictions or labels are constant r counts as 0.

    Args:
        predicted: (…, P) cosines.
        labels: (…, P) or what broadcasts to it.

    Returns:
        (…), 0 to 2, and (…, P).
    """
    x = predicted - predicted.mean(-1, keepdim=True)
    y = labels - labels.mean(-1, keepdim=True)
    x_length, y_length = (torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(SHORTEST) for v in (x, y))
    x, y = x / x_length, y / y_length
    r = (x * y).sum(-1, keepdim=True)
    return 1 - r.squeeze(-1), (r * x - y) / x_length


# Each gives loss and gradient: for so few numbers autograd's bookkeeping takes ten times as long as the arithmetic.
OBJECTIVES = {"mse": mse, "pearson": pearson}
