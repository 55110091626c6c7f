"""L2 normalization with its gradient."""

import torch

# Smallest divisor, as in `torch.nn.functional.normalize`.
EPSILON = 1e-12


class L2Normalize:
    """Vectors (..., dim), and `unit`, the same scaled to unit length; all-zero vectors stay zero."""

    def __init__(self, vectors: torch.Tensor) -> None:
        norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        self.inverse_norm: torch.Tensor = norm.clamp_min_(EPSILON).reciprocal_()
        self.unit = vectors * self.inverse_norm

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Returns the gradient with respect to `vectors`, given that with respect to `unit`; both (..., dim).

        With u = x / |x|: dL/dx = (g - (g . u) u) / |x|.
        """
        along = (gradient * self.unit).sum(-1, keepdim=True)
        return torch.addcmul(gradient, self.unit, along, value=-1).mul_(self.inverse_norm)
