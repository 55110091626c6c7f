"""Codes of few bits against FAISS's product quantiser, and the way through them against autograd."""

import faiss
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional

from twinsqueeze.model.quantizers import ProductQuantizer, Quantizer, SignQuantizer, balance_subspaces, fit_codebooks

REPLICAS, ROWS, DIM = 2, 300, 12


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(params=[3, 4, 6])
def codebooks(request) -> torch.Tensor:
    vectors = unit(REPLICAS, 900, DIM, seed=1).numpy()
    return torch.stack([fit_codebooks(each, request.param, seed) for seed, each in enumerate(vectors)])


def faiss_index(codebooks: torch.Tensor) -> faiss.IndexPQ:
    parts, centroids, width = codebooks.shape
    index = faiss.IndexPQ(parts * width, parts, int(np.log2(centroids)))
    faiss.copy_array_to_vector(codebooks.numpy().ravel(), index.pq.centroids)
    index.is_trained = True
    return index


def test_codes_are_faisss(codebooks):
    quantiser, vectors = ProductQuantizer(codebooks), unit(REPLICAS, ROWS, DIM)
    codes = quantiser.encode(vectors)
    decoded = quantiser.decode(codes).numpy()
    dequantized = quantiser.dequantize(3 * vectors).numpy()
    for r in range(REPLICAS):
        index = faiss_index(codebooks[r])
        theirs = index.sa_encode(vectors[r].numpy())
        np.testing.assert_array_equal(codes[r].numpy(), theirs)
        np.testing.assert_allclose(decoded[r], index.sa_decode(theirs), atol=1e-6)
        np.testing.assert_allclose(dequantized[r], decoded[r], atol=1e-6)
        np.testing.assert_array_equal(quantiser.replica(r).dequantize(vectors[r : r + 1]).numpy()[0], decoded[r])


@pytest.mark.parametrize("part", [4, 6])
def test_codebooks_are_as_good_as_faisss(part):
    vectors = unit(2000, DIM, seed=2).numpy()
    ours = fit_codebooks(vectors, part, 0)
    assert ours.shape == (DIM // part, 256, part)
    index = faiss.IndexPQ(DIM, DIM // part, 8)
    index.train(vectors)

    def distortion(restored: np.ndarray) -> float:
        return float(np.square(restored - vectors).sum(1).mean())

    mine = ProductQuantizer(ours[None])
    lost = distortion(mine.dequantize(torch.from_numpy(vectors)[None])[0].numpy())
    assert lost < 1.05 * distortion(index.sa_decode(index.sa_encode(vectors)))
    assert torch.equal(fit_codebooks(vectors, part, 0), ours)
    assert not torch.equal(fit_codebooks(vectors, part, 1), ours)


def test_codebooks_do_not_depend_on_the_number_of_threads():
    vectors = unit(9000, 16).numpy()

    def fitted(threads: int) -> torch.Tensor:
        with threadpool_limits(threads):
            return fit_codebooks(vectors, 4, 0)

    assert torch.equal(fitted(1), fitted(2))


def test_few_vectors_have_as_many_centroids():
    vectors = unit(5, 8).numpy()
    codebooks = fit_codebooks(np.concatenate([vectors, vectors[:1]]), 4, 0)
    assert codebooks.shape == (2, 6, 4)
    found = ProductQuantizer(codebooks[None]).dequantize(torch.from_numpy(vectors)[None])[0]
    np.testing.assert_allclose(found.numpy(), vectors, atol=1e-6)


class Straight(torch.autograd.Function):
    """Levels whose gradient is that of the identity, where `passes` says so."""

    @staticmethod
    def forward(ctx, x, dequantized, passes):
        ctx.save_for_backward(passes)
        return dequantized

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


@pytest.mark.parametrize("kind", ["binary", "product"])
def test_the_gradient_goes_straight_through(kind, codebooks):
    filled = DIM + 4  # the trainer fills outputs up with zeros
    outputs = functional.pad(2 * torch.randn(REPLICAS, ROWS, DIM), (0, filled - DIM)).requires_grad_()
    towards = torch.randn(REPLICAS, ROWS, filled)
    quantiser: Quantizer = SignQuantizer() if kind == "binary" else ProductQuantizer(codebooks)
    dequantized, backward = quantiser.straight_through(outputs.detach())
    assert not dequantized[..., DIM:].any()
    np.testing.assert_allclose(dequantized.numpy(), quantiser.dequantize(outputs.detach()).numpy(), atol=1e-6)
    if kind == "binary":
        compared = Straight.apply(outputs, outputs.sign(), outputs.abs() <= 1)
    else:
        compared = Straight.apply(functional.normalize(outputs, dim=-1), dequantized, torch.ones_like(dequantized))
    (compared * towards).sum().backward()
    found = backward(towards.clone())
    torch.testing.assert_close(found[..., :DIM], outputs.grad[..., :DIM], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("part", [2, 4, 8])
def test_parts_have_about_equal_tasks(part):
    variances = 0.8 ** np.arange(32)
    order = balance_subspaces(variances.tolist(), part)
    assert sorted(order) == list(range(32))
    products = np.log(variances[order].reshape(-1, part)).sum(1)
    assert np.ptp(products) < 0.2 * np.ptp(np.log(variances.reshape(-1, part)).sum(1))
    # Two parts, by hand: 256 | 128, then 64 and 32 to the smaller product each time, and so on.
    assert balance_subspaces([256.0, 128.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0], 4) == [0, 3, 4, 7, 1, 2, 5, 6]


@pytest.mark.parametrize("none", [0.0, 1e-19, -1e-19])
def test_what_rounding_leaves_of_no_variance_does_not_unbalance_the_others(none):
    variances = [*0.8 ** np.arange(30), none, none / 10]
    assert balance_subspaces(variances, 4) == balance_subspaces([*variances[:30], 1e-6, 1e-6], 4)
