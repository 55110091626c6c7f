"""The plain supervised baseline: a Dense layer trained with the CoSENT loss, as with sentence-transformers."""

import numpy as np
import torch

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.types import FloatArray

DENSE_DIM = 128
# The best of 3 to 30 epochs, batches of 64 to 256 and rates of 2e-4 to 3e-3 by dev Spearman on STS-B. From principal
# components, it keeps more neighbors and gains less.
EPOCHS, BATCH_SIZE, LR = 10, 256, 1e-3
SCALE = 20  # sentence-transformers' default


def fit_dense(train: EncodedSplit) -> tuple[FloatArray, FloatArray]:
    """Return weight (128, d) and bias (128,) of a linear layer, trained on the scored pairs of `train`."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.from_numpy(train.embeddings)
    pairs = torch.from_numpy(train.examples[:2].T.copy())
    scores = torch.from_numpy(train.scores)
    ((weight, bias),) = kaiming_uniform_layers((train.dimension, DENSE_DIM), np.random.default_rng(0))
    optimizer = torch.optim.Adam([weight.requires_grad_(), bias.requires_grad_()], LR)
    steps = EPOCHS * -(-len(pairs) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(pairs), generator=generator).split(BATCH_SIZE):
            outputs = torch.nn.functional.linear(vectors[pairs[batch]], weight, bias)
            loss = cosent_loss(torch.nn.functional.cosine_similarity(outputs[:, 0], outputs[:, 1]), scores[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return weight.detach().numpy(), bias.detach().numpy()


def cosent_loss(cosines: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return log(1 + sum of exp(20 (cos_j - cos_i)) over the pairs i, j of (P,) pairs with score_i > score_j).

    That is the CoSENT loss of https://kexue.fm/archives/8847 as sentence-transformers has it.
    """
    differences = SCALE * (cosines[None] - cosines[:, None])
    wrong = differences.masked_fill(scores[:, None] <= scores[None], -torch.inf)
    return torch.logsumexp(torch.cat([wrong.flatten(), wrong.new_zeros(1)]), 0)
