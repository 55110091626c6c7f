"""The neighbourhood loss: who is near whom is to stay as the encoder has it.

Every sentence has a distribution over the others, the softmax of its cosines to them; the loss is the Kullback-Leibler
divergence of the compressed vectors' distributions from the encoder's. This is the loss of stochastic neighbour
embedding (Hinton and Roweis 2002) on cosines, as used to distil relations between examples (Passalis and Tefas 2018,
arXiv 1803.10837). It needs no labels, so that it can be of any sentences: of those of a batch's pairs, of which few are
near each other but for the twins, or of some that are drawn with their nearest. The compressed vectors are those of
noisy sentences, the encoder's are not: noise may not change who is near whom.
"""

import numpy as np
import torch

from twinsqueeze.types import IntArray

# Sentences that are compared with each other where they are drawn for it.
DRAWN = 512


def draw_with_nearest(generator: np.random.Generator, nearest: IntArray) -> IntArray:
    """Distinct sentences, each followed by its nearest, until there are `DRAWN` of them, or all where there are fewer.

    Args:
        generator: Draws which ones.
        nearest: (N, k) row numbers of each sentence's nearest.

    Returns:
        (min(DRAWN, N),) row numbers.
    """
    first = generator.permutation(len(nearest))[:DRAWN]
    rows = np.concatenate([first[:, None], nearest[first]], 1).ravel()
    _, places = np.unique(rows, return_index=True)
    return rows[np.sort(places)[: len(first)]]


def distributions(unit: torch.Tensor, temperature: float) -> torch.Tensor:
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


def divergence(unit: torch.Tensor, reference: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
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
    found = distributions(unit, temperature).view(-1, *reference.shape)  # (A, S, N, N)
    wanted = reference.exp()
    terms = wanted * (reference - found).nan_to_num_(0.0)  # of the diagonal: -inf less -inf
    loss = terms.sum((-1, -2)) / size
    of_logits = (found.exp() - wanted).view(-1, size, size).div_(size * temperature)
    gradient = (of_logits + of_logits.transpose(-1, -2)) @ unit
    assert len(unit) % seeds == 0
    return loss.view(-1), gradient
