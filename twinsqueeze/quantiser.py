"""Quantised vectors in training: what is compared is what will be stored, and the gradient goes straight through.

The derivative of a quantiser is zero almost everywhere. The straight-through estimator (Bengio et al. 2013, arXiv
1308.3432) takes that of the identity instead, wherever a number is not beyond the outermost levels.
"""

import math

import torch

# Vectors are divided by no less, as by `torch.nn.functional.normalize`.
SHORTEST = 1e-12


def levels(vectors: torch.Tensor, precision: str, dim: int) -> torch.Tensor:
    """What is left of some vectors at a precision; their lengths do not matter.

    binary: the signs, -1, 0 or 1. int2: with each vector scaled to the root mean square 1, the middle of the step that
    a number falls into: -1.5 below -1, -0.5 up to 0, 0.5 up to 1, 1.5 from there on. These are nearly the best levels
    for numbers of a normal distribution (Max 1960: thresholds 0 and 0.98, levels 0.45 and 1.51).

    Args:
        vectors: (…, dim or more) float32; what lies behind the first `dim` is 0 and stays so.
        precision: float32 leaves them as they are.
        dim: Numbers that count.
    """
    if precision == "float32":
        return vectors
    if precision == "binary":
        return vectors.sign()
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min_(SHORTEST)
    return _steps(vectors * (math.sqrt(dim) / length), dim)


def _steps(scaled: torch.Tensor, dim: int) -> torch.Tensor:
    middle = scaled.floor().clamp_(-2, 1).add_(0.5)
    middle[..., dim:] = 0
    return middle


class Quantised:
    """The levels of a layer's outputs, and the way back.

    Args:
        outputs: (…, dim or more), not yet of length 1.
        precision: binary or int2.
        dim: Numbers that count.

    Attributes:
        levels: As from `levels`.
    """

    def __init__(self, outputs: torch.Tensor, precision: str, dim: int) -> None:
        self._binary = precision == "binary"
        if self._binary:
            self._scaled, outermost = outputs, 1.0
            self.levels = outputs.sign()
        else:
            length = torch.linalg.vector_norm(outputs, dim=-1, keepdim=True).clamp_min_(SHORTEST)
            self._scale = math.sqrt(dim) / length
            self._scaled, outermost = outputs * self._scale, 2.0
            self._dim = dim
            self.levels = _steps(self._scaled, dim)
        self._passes = self._scaled.abs() <= outermost

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to the outputs, straight through the levels; changes its argument.

        For int2 with the scaled vector u = sqrt(dim) x / |x|: dL/dx = (g - (g . u) u / dim) sqrt(dim) / |x|.

        Args:
            gradient: Of the loss with respect to `levels`, of their shape.
        """
        gradient.mul_(self._passes)
        if self._binary:
            return gradient
        along = (gradient * self._scaled).sum(-1, keepdim=True).div_(self._dim)
        return gradient.addcmul_(self._scaled, along, value=-1).mul_(self._scale)
