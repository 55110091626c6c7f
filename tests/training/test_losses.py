"""Losses and their gradients. Those of neighbors and of searches are in the trainings that autograd repeats."""

import numpy as np
import pytest
import torch
from scipy import stats

from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.training.losses import PairCosine, mse_loss, pearson_loss


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (mse_loss, lambda x, y: np.square(x - y).mean(-1)),
        (pearson_loss, lambda x, y: 1 - stats.pearsonr(x, y, axis=-1).statistic),
    ],
)
def test_losses_match_scipy_and_their_gradients_autograd(loss, expected):
    predicted = torch.rand(3, 5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(5, 7, dtype=torch.float64)
    value, gradient = loss(predicted.detach(), labels)
    arrays = predicted.detach().numpy(), labels.expand_as(predicted).numpy()
    np.testing.assert_allclose(value, expected(*arrays), atol=1e-12)
    torch.testing.assert_close(gradient, *torch.autograd.grad(loss(predicted, labels)[0].sum(), predicted))


@pytest.mark.parametrize("labels", [torch.ones(4), torch.rand(4)])
def test_constants_have_a_finite_loss(labels):
    loss, gradient = pearson_loss(torch.full((4,), 0.5), labels)
    assert loss == pytest.approx(1)
    assert torch.isfinite(gradient).all()
    assert PairCosine(torch.zeros(1, 2, 8)).value.item() == 0


def test_an_unknown_label_transform_is_an_error():
    with pytest.raises(ValueError, match="unknown label transform 'rank'"):
        scores_to_labels(np.zeros(1), "rank")
