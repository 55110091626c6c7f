"""Losses with hand-written gradients.

For tensors this small, autograd's bookkeeping takes ten times as long as the arithmetic. Each docstring names the
expression in autograd that a test compares with.

Losses on labels take cosines (..., P) and labels (P,) or (..., P), and return the loss (...) and its gradient (..., P).
"""

import numpy as np
import torch

from twinsqueeze.model.quantizers import EPSILON, L2Normalize
from twinsqueeze.types import IntArray
from twinsqueeze.utils.similarity import pairwise_cosine


def mse_loss(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error over the last axis. Autograd: `functional.mse_loss`."""
    error = predicted - labels
    return error.square().mean(-1), error * (2 / error.shape[-1])


def pearson_loss(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One minus Pearson's correlation over the last axis, 0 to 2.

    With centered x and y: dr/dx = y / (|x| |y|) - r x / |x|^2. If predictions or labels are constant, r is 0.
    Autograd: `1 - torch.corrcoef(torch.stack([predicted, labels]))[0, 1]`.
    """
    x = predicted - predicted.mean(-1, keepdim=True)
    y = labels - labels.mean(-1, keepdim=True)
    x_norm, y_norm = (torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(EPSILON) for v in (x, y))
    x, y = x / x_norm, y / y_norm
    r = (x * y).sum(-1, keepdim=True)
    return 1 - r.squeeze(-1), (r * x - y) / x_norm


# Losses on labels by `Recipe.loss`.
LABEL_LOSSES = {"mse": mse_loss, "pearson": pearson_loss}


class PairCosine:
    """Cosines (R, B) of outputs (R, 2B, dim): the B first sentences, then the B second ones. 0 if a vector is zero.

    Autograd: `functional.cosine_similarity(first, second, dim=-1)`.
    """

    def __init__(self, outputs: torch.Tensor) -> None:
        self.normalized = L2Normalize(outputs)
        self._sides = self.normalized.unit.view(len(outputs), 2, -1, outputs.shape[-1])
        self.value = pairwise_cosine(self._sides[:, 0], self._sides[:, 1])

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Returns the gradient with respect to the outputs x, y: d cos / dx = (v - cos * u) / |x|, u = x / |x|."""
        result: torch.Tensor = self._sides.flip(1)
        result.addcmul_(self._sides, self.value[:, None, :, None], value=-1)
        result.mul_(gradient[:, None, :, None])
        return result.view(len(result), -1, result.shape[-1]).mul_(self.normalized.inverse_norm)


def candidate_log_probs(
    queries: torch.Tensor, stored: torch.Tensor, candidates: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Returns the log-softmax of queries' cosines with their candidates, (R, B, C); -inf for all other vectors.

    `queries` (R, B, dim) and `stored` (R, C, dim) are unit vectors. `candidates` (S, B, C) says which of the stored
    vectors a query has; replica r has those of seed r mod S.
    """
    logits = (queries @ stored.transpose(-1, -2)).div_(temperature).view(-1, *candidates.shape)  # (A, S, B, C)
    log_probs = torch.log_softmax(logits.masked_fill_(~candidates, -torch.inf), -1)
    # A query without candidates, such as the only row of a last batch, has no loss instead of NaN.
    has_candidates = candidates.any(-1, keepdim=True)
    return log_probs.masked_fill_(~has_candidates, -torch.inf).flatten(0, 1)


def infonce_loss(
    log_probs: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748): cross-entropy of each query's passage among candidates.

    `log_probs` (R, B, C) are from `candidate_log_probs`, and `targets` (S, B) are columns. With p = exp(log_probs) and
    the cosines c: dL/dc = (p - y) / (B T). Autograd: `functional.cross_entropy(logits, targets)` per replica.
    Returns the loss (R,), and its gradient with respect to the cosines, (R, B, C).
    """
    columns = targets.repeat(len(log_probs) // len(targets), 1)[..., None]  # (R, B, 1)
    loss = -log_probs.gather(-1, columns).squeeze(-1).mean(-1)
    gradient = log_probs.exp()
    gradient.scatter_add_(-1, columns, torch.full_like(columns, -1, dtype=gradient.dtype))
    return loss, gradient.div_(targets.shape[1] * temperature)


def distillation_loss(
    log_probs: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean KL(p || q) of the queries' distributions q over their candidates from the teacher's p.

    Both are from `candidate_log_probs`: (R, B, C), and the teacher's (S, B, C); replica r has teacher r mod S.
    Autograd: `functional.kl_div(q, p, log_target=True, reduction="batchmean")` per replica, without -inf.
    Returns the loss (R,), and its gradient with respect to the cosines, (R, B, C).
    """
    log_probs = log_probs.view(-1, *teacher.shape)
    teacher_probs, size = teacher.exp(), teacher.shape[1]
    terms = teacher_probs * (teacher - log_probs).nan_to_num_(0.0)  # of no candidates: -inf minus -inf
    loss = terms.sum((-1, -2)) / size
    return loss.view(-1), (log_probs.exp() - teacher_probs).flatten(0, 1).div_(size * temperature)


# Sentences per step of the neighborhood loss, if they are sampled from the train split.
SAMPLE_SIZE = 512


def sample_with_neighbors(generator: np.random.Generator, neighbors: IntArray) -> IntArray:
    """Samples `SAMPLE_SIZE` distinct rows or all N, each followed by its nearest neighbors, (N, k) rows."""
    sampled = generator.permutation(len(neighbors))[:SAMPLE_SIZE]
    rows = np.concatenate([sampled[:, None], neighbors[sampled]], 1).ravel()
    _, first_places = np.unique(rows, return_index=True)
    return rows[np.sort(first_places)[: len(sampled)]]


def log_neighbor_probs(unit: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns the log-softmax of each of (..., N, d) unit vectors' cosines with the others; the diagonal is -inf."""
    logits = (unit @ unit.transpose(-1, -2)).div_(temperature)
    logits.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return torch.log_softmax(logits, -1)


def neighborhood_kl_loss(
    unit: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean KL(p || q) of the vectors' neighbor distributions q from the teacher's p, and its gradient.

    With logits z = u u' / T: dKL/dz = (q - p) / N, and u is on both sides of z. Autograd: without the diagonal,
    `functional.kl_div(log_neighbor_probs(unit, T), teacher, log_target=True, reduction="batchmean")` per replica.
    `unit` and its gradient are (R, N, dim). `teacher` has log-probabilities (S, N, N); replica r has teacher r mod S.
    """
    size = teacher.shape[-1]
    log_probs = log_neighbor_probs(unit, temperature).view(-1, *teacher.shape)  # (A, S, N, N)
    teacher_probs = teacher.exp()
    terms = teacher_probs * (teacher - log_probs).nan_to_num_(0.0)  # on the diagonal: -inf minus -inf
    loss = terms.sum((-1, -2)) / size
    logit_gradient = (log_probs.exp() - teacher_probs).view(-1, size, size).div_(size * temperature)
    gradient = (logit_gradient + logit_gradient.transpose(-1, -2)) @ unit
    return loss.view(-1), gradient
