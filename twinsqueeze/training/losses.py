"""Losses with hand-written gradients: label losses, the neighborhood loss and the pair cosine."""

import numpy as np
import torch

from twinsqueeze.model.quantizers import EPSILON
from twinsqueeze.types import IntArray
from twinsqueeze.utils.similarity import pairwise_cosine


def mse_loss(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error over the last axis, and its gradient with respect to the predictions.

    Args:
        predicted: (…, P) cosines.
        labels: (…, P) or what broadcasts to it.

    Returns:
        (…) and (…, P).
    """
    error = predicted - labels
    return error.square().mean(-1), error * (2 / error.shape[-1])


def pearson_loss(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
    x_length, y_length = (torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(EPSILON) for v in (x, y))
    x, y = x / x_length, y / y_length
    r = (x * y).sum(-1, keepdim=True)
    return 1 - r.squeeze(-1), (r * x - y) / x_length


# Each gives loss and gradient: for so few numbers autograd's bookkeeping takes ten times as long as the arithmetic.
LOSSES = {"mse": mse_loss, "pearson": pearson_loss}
# Sentences that are compared with each other where they are drawn for it.
SAMPLE_SIZE = 512


def sample_with_neighbors(generator: np.random.Generator, nearest: IntArray) -> IntArray:
    """Samples at most `SAMPLE_SIZE` distinct sentences, each followed by its nearest neighbors.

    Args:
        generator: Draws which ones.
        nearest: (N, k) row numbers of each sentence's nearest.

    Returns:
        (min(DRAWN, N),) row numbers.
    """
    first = generator.permutation(len(nearest))[:SAMPLE_SIZE]
    rows = np.concatenate([first[:, None], nearest[first]], 1).ravel()
    _, places = np.unique(rows, return_index=True)
    return rows[np.sort(places)[: len(first)]]


def log_neighbor_probs(unit: torch.Tensor, temperature: float) -> torch.Tensor:
    """Each vector's log-probabilities over the others.

    Args:
        unit: (…, N, d) vectors of length 1.
        temperature: Of the softmax: at 0.05 a cosine that is 0.1 higher has 7.4 times the weight.

    Returns:
        (…, N, N), -inf on the diagonal.
    """
    logits = (unit @ unit.transpose(-1, -2)).div_(temperature)
    logits.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return torch.log_softmax(logits, -1)


def neighborhood_kl_loss(
    unit: torch.Tensor, reference: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean divergence KL(p || q) of the vectors' distributions q from those of the reference, p.

    With logits z = u u' / T: dKL/dz = (q - p) / N, and u stands on both sides of z.

    Args:
        unit: (R, N, dim) compressed vectors of length 1.
        reference: (S, N, N) log-probabilities, of which replica r is held to the r mod S'th.
        temperature: That of the reference.

    Returns:
        (R,), at least 0, and its gradient with respect to `unit`, (R, N, dim).
    """
    seeds, size = reference.shape[:2]
    found = log_neighbor_probs(unit, temperature).view(-1, *reference.shape)  # (A, S, N, N)
    wanted = reference.exp()
    terms = wanted * (reference - found).nan_to_num_(0.0)  # of the diagonal: -inf less -inf
    loss = terms.sum((-1, -2)) / size
    of_logits = (found.exp() - wanted).view(-1, size, size).div_(size * temperature)
    gradient = (of_logits + of_logits.transpose(-1, -2)) @ unit
    assert len(unit) % seeds == 0
    return loss.view(-1), gradient


class L2Normalize:
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


class PairCosine(L2Normalize):
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
