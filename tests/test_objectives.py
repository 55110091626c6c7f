import numpy as np
import pytest
import torch
from scipy import stats

from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.training.losses import mse_loss, pearson_loss


def test_labels_by_hand():
    scores = np.array([0.0, 1.25, 2.5, 5.0])
    np.testing.assert_allclose(scores_to_labels(scores, "linear"), [0, 0.25, 0.5, 1])
    # tanh(2) = 0.9640275800758169, tanh(1) = 0.7615941559557649
    by_hand = [(1 - 0.9640275800758169) / 2, (1 - 0.7615941559557649) / 2, 0.5, (1 + 0.9640275800758169) / 2]
    np.testing.assert_allclose(scores_to_labels(scores, "tanh"), by_hand)


def test_unknown_labels_are_refused():
    with pytest.raises(ValueError, match="unknown labels 'rank'"):
        scores_to_labels(np.zeros(1), "rank")


def test_mse_and_its_gradient_are_pytorchs_for_each_replica():
    predicted, labels = torch.rand(3, 5, 7, requires_grad=True), torch.rand(5, 7)
    expected = torch.stack(
        [torch.stack([torch.nn.functional.mse_loss(predicted[i, j], labels[j]) for j in range(5)]) for i in range(3)]
    )
    (expected_gradient,) = torch.autograd.grad(expected.sum(), predicted)
    loss, gradient = mse_loss(predicted.detach(), labels)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, expected_gradient)


def test_pearson_is_scipys_and_its_gradient_autograds():
    predicted, labels = torch.rand(3, 5, 7, dtype=torch.float64, requires_grad=True), torch.rand(5, 7).double()
    loss, gradient = pearson_loss(predicted.detach(), labels)
    for i in range(3):
        for j in range(5):
            expected = stats.pearsonr(predicted[i, j].detach().numpy(), labels[j].numpy()).statistic
            assert loss[i, j].item() == pytest.approx(1 - expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: pearson_loss(x, labels)[0], predicted)
    (expected_gradient,) = torch.autograd.grad(pearson_loss(predicted, labels)[0].sum(), predicted)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("labels", [torch.ones(4), torch.rand(4)])
def test_pearson_of_constants_is_finite(labels):
    loss, gradient = pearson_loss(torch.full((4,), 0.5), labels)
    assert loss == pytest.approx(1)
    assert torch.isfinite(gradient).all()
