"""How the vectors of a batch are compared by cosine, with gradients written out as those of the layers are."""

import torch

from twinsqueeze.model.quantizers import EPSILON
from twinsqueeze.utils.similarity import pairwise_cosine


class Directions:
    """Vectors scaled to length 1, and how a loss of these reaches back to the vectors.

    Args:
        outputs: (R, N, dim) of the last layer.

    Attributes:
        unit: (R, N, dim) the outputs scaled to length 1; all zeros where they are.
    """

    def __init__(self, outputs: torch.Tensor) -> None:
        length = torch.linalg.vector_norm(outputs, dim=-1, keepdim=True)
        self._inverse_length: torch.Tensor = length.clamp_min_(EPSILON).reciprocal_()
        self.unit = outputs * self._inverse_length

    def backward_unit(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to the outputs.

        With u = x / |x|: dL/dx = (g - (g . u) u) / |x|.

        Args:
            gradient: (R, N, dim), of the loss with respect to `unit`.
        """
        along = (gradient * self.unit).sum(-1, keepdim=True)
        return torch.addcmul(gradient, self.unit, along, value=-1).mul_(self._inverse_length)


class TwinCosine(Directions):
    """The cosine of twins, and its gradient written out as that of the layers is.

    Args:
        outputs: (R, 2B, dim) of the last layer: in every replica the B first twins, then the B second ones.

    Attributes:
        value: (R, B) the cosine of each pair, 0 where a vector is all zeros.
    """

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__(outputs)
        self._twins = self.unit.view(len(outputs), 2, -1, outputs.shape[-1])
        self.value = pairwise_cosine(self._twins[:, 0], self._twins[:, 1])

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of the loss with respect to the outputs.

        With unit vectors u, v of the twins x, y: d cos / dx = (v - cos * u) / |x|.

        Args:
            gradient: (R, B), of the loss with respect to `value`.
        """
        result: torch.Tensor = self._twins.flip(1)
        result.addcmul_(self._twins, self.value[:, None, :, None], value=-1)
        result.mul_(gradient[:, None, :, None])
        return result.view(len(result), -1, result.shape[-1]).mul_(self._inverse_length)
