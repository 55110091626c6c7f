import pytest
import torch
from torch import nn

from twinsqueeze.training.losses import PairCosine
from twinsqueeze.utils.similarity import pairwise_cosine


def test_cosine_is_pytorchs():
    first, second = (nn.functional.normalize(torch.randn(2, 8, 5), dim=-1) for _ in range(2))
    expected = nn.functional.cosine_similarity(first, second, dim=-1)
    torch.testing.assert_close(pairwise_cosine(first, second), expected)


@pytest.mark.parametrize("dim", [2, 10, 32])
def test_the_twins_cosine_and_its_gradient_are_autograds(dim):
    outputs = torch.randn(3, 14, dim, requires_grad=True)
    unit = nn.functional.normalize(outputs, dim=-1)
    expected = (unit[:, :7] * unit[:, 7:]).sum(-1)
    towards = torch.randn(3, 7)
    (gradient,) = torch.autograd.grad((expected * towards).sum(), outputs)
    cosine = PairCosine(outputs.detach())
    torch.testing.assert_close(cosine.value, expected.detach())
    torch.testing.assert_close(cosine.backward(towards), gradient)


def test_a_vector_of_zeros_has_the_cosine_zero():
    assert PairCosine(torch.zeros(1, 2, 4)).value.item() == 0


def test_gradient_through_the_length_is_autograds():
    outputs = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(2, 6, 5, dtype=torch.float64)
    (nn.functional.normalize(outputs, dim=-1) * towards).sum().backward()
    torch.testing.assert_close(PairCosine(outputs.detach()).backward_unit(towards), outputs.grad)
