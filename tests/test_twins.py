import pytest
import torch
from torch import nn

from twinsqueeze.twins import AsymmetricCosine, TwinCosine, pairwise_cosine


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
    cosine = TwinCosine(outputs.detach())
    torch.testing.assert_close(cosine.value, expected.detach())
    torch.testing.assert_close(cosine.backward(towards), gradient)


def test_a_vector_of_zeros_has_the_cosine_zero():
    assert TwinCosine(torch.zeros(1, 2, 4)).value.item() == 0


def test_gradient_through_the_length_is_autograds():
    outputs = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(2, 6, 5, dtype=torch.float64)
    (nn.functional.normalize(outputs, dim=-1) * towards).sum().backward()
    torch.testing.assert_close(TwinCosine(outputs.detach()).backward_unit(towards), outputs.grad)


def test_the_cosine_of_queries_and_what_is_stored_is_pytorchs_and_its_gradients_autograds():
    queries, stored = (nn.functional.normalize(torch.randn(3, 14, 5), dim=-1).requires_grad_() for _ in range(2))
    first, second = slice(0, 7), slice(7, 14)
    ways = [
        nn.functional.cosine_similarity(queries[:, a], stored[:, b], -1) for a, b in ((first, second), (second, first))
    ]
    expected, towards = torch.stack(ways, 1), torch.randn(3, 2, 7)
    cosine = AsymmetricCosine(queries.detach(), stored.detach())
    torch.testing.assert_close(cosine.value, expected.detach())
    products = torch.stack([(queries[:, a] * stored[:, b]).sum(-1) for a, b in ((first, second), (second, first))], 1)
    gradients = torch.autograd.grad((products * towards).sum(), [queries, stored])
    for found, wanted in zip(cosine.backward(towards), gradients, strict=True):
        torch.testing.assert_close(found, wanted)
