"""Quantizers against FAISS's product quantizer, and their straight-through gradients against autograd."""

import faiss
import numpy as np
import pytest
import torch
from sklearn.metrics import mean_squared_error
from threadpoolctl import threadpool_limits
from torch.nn import functional

from twinsqueeze.evaluation.faiss_fitting import single_threaded
from twinsqueeze.model.quantizers import ProductQuantizer, Quantizer, SignQuantizer, balance_subspaces, fit_codebooks

REPLICAS, ROWS, DIM = 2, 300, 12


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(params=[3, 4, 6])
def codebooks(request) -> torch.Tensor:
    vectors = unit(REPLICAS, 900, DIM, seed=1).numpy()
    return torch.stack([fit_codebooks(each, request.param, seed) for seed, each in enumerate(vectors)])


def test_codes_match_faiss(codebooks):
    quantizer, vectors = ProductQuantizer(codebooks), unit(REPLICAS, ROWS, DIM)
    codes = quantizer.encode(vectors)
    decoded = quantizer.decode(codes).numpy()
    dequantized = quantizer.dequantize(3 * vectors).numpy()
    for r in range(REPLICAS):
        index = faiss.IndexPQ(DIM, codebooks.shape[1], int(np.log2(codebooks.shape[2])))
        faiss.copy_array_to_vector(codebooks[r].numpy().ravel(), index.pq.centroids)
        index.is_trained = True
        theirs = index.sa_encode(vectors[r].numpy())
        np.testing.assert_array_equal(codes[r].numpy(), theirs)
        np.testing.assert_allclose(decoded[r], index.sa_decode(theirs), atol=1e-6)
        np.testing.assert_allclose(dequantized[r], decoded[r], atol=1e-6)
        np.testing.assert_array_equal(quantizer.replica(r).dequantize(vectors[r : r + 1]).numpy()[0], decoded[r])


@pytest.mark.parametrize(("depth", "beam"), [(2, 1), (2, 5), (4, 5)])
def test_codes_of_residuals_match_faiss(depth, beam):
    codebooks = torch.stack([fit_codebooks(unit(900, DIM, seed=r).numpy(), 6, r, depth) for r in range(REPLICAS)])
    quantizer, vectors = ProductQuantizer(codebooks, depth), unit(REPLICAS, ROWS, DIM)
    codes = quantizer.encode(vectors, beam=beam)
    decoded = quantizer.decode(codes).numpy()
    for r in range(REPLICAS):
        index = faiss.IndexProductResidualQuantizer(DIM, DIM // 6, depth, 8, faiss.METRIC_INNER_PRODUCT)
        for m, books in enumerate(codebooks[r].split(depth)):
            part = faiss.downcast_AdditiveQuantizer(index.prq.subquantizer(m))
            part.max_beam_size, part.is_trained = beam, True
            faiss.copy_array_to_vector(books.numpy().ravel(), part.codebooks)
            part.compute_codebook_tables()
        faiss.copy_array_to_vector(codebooks[r].numpy().ravel(), index.prq.codebooks)
        index.is_trained = index.prq.is_trained = True
        theirs = index.sa_encode(vectors[r].numpy())
        assert (codes[r].numpy() == theirs).mean() > 0.999  # but for ties
        np.testing.assert_allclose(decoded[r], index.sa_decode(codes[r].numpy().astype(np.uint8)), atol=1e-6)
        np.testing.assert_array_equal(quantizer.replica(r).encode(vectors[r : r + 1], beam=beam)[0], codes[r])


@pytest.mark.parametrize(("dim", "subvector_dim", "depth"), [(12, 4, 1), (12, 6, 1), (16, 8, 2)])
def test_codebooks_are_as_good_as_those_of_faiss(dim, subvector_dim, depth):
    vectors, subvectors = unit(2000, dim, seed=2).numpy(), dim // subvector_dim
    ours = fit_codebooks(vectors, subvector_dim, 0, depth)
    assert ours.shape == (subvectors * depth, 256, subvector_dim)
    index = faiss.IndexPQ(dim, subvectors, 8)
    if depth > 1:
        index = faiss.IndexProductResidualQuantizer(dim, subvectors, depth, 8)
    with single_threaded(faiss):
        index.train(vectors)
    restored = ProductQuantizer(ours[None], depth).dequantize(torch.from_numpy(vectors)[None])[0].numpy()
    theirs = index.sa_decode(index.sa_encode(vectors))
    assert mean_squared_error(restored, vectors) < 1.05 * mean_squared_error(theirs, vectors)
    assert torch.equal(fit_codebooks(vectors, subvector_dim, 0, depth), ours)
    assert not torch.equal(fit_codebooks(vectors, subvector_dim, 1, depth), ours)


def test_codebooks_do_not_depend_on_the_number_of_threads():
    vectors, fitted = unit(9000, 8).numpy(), []
    for threads in (1, 2):
        with threadpool_limits(threads):
            fitted.append(fit_codebooks(vectors, 4, 0))
    assert torch.equal(*fitted)


def test_few_vectors_have_one_centroid_each():
    vectors = unit(5, 8).numpy()
    codebooks = fit_codebooks(np.concatenate([vectors, vectors[:1]]), 4, 0)
    assert codebooks.shape == (2, 6, 4)
    found = ProductQuantizer(codebooks[None]).dequantize(torch.from_numpy(vectors)[None])[0]
    np.testing.assert_allclose(found.numpy(), vectors, atol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "product", "residual"])
def test_straight_through_gradients_match_autograd(kind, codebooks):
    padded_dim = DIM + 4  # the trainer pads outputs with zeros
    outputs = functional.pad(2 * torch.randn(REPLICAS, ROWS, DIM), (0, padded_dim - DIM)).requires_grad_()
    weights = torch.randn(REPLICAS, ROWS, padded_dim)
    quantizer: Quantizer = SignQuantizer() if kind == "binary" else ProductQuantizer(codebooks)
    if kind == "residual":
        quantizer = ProductQuantizer(torch.cat([codebooks, codebooks / 2], 2).unflatten(2, (2, -1)).flatten(1, 2), 2)
    dequantized, backward = quantizer.straight_through(outputs.detach())
    assert not dequantized[..., DIM:].any()
    if kind != "residual":  # whose beam is for storage
        np.testing.assert_allclose(dequantized.numpy(), quantizer.dequantize(outputs.detach()).numpy(), atol=1e-6)
    # The gradient of a weighted sum does not depend on the values, only on what the gradients pass through.
    passed = outputs.clamp(-1, 1) if kind == "binary" else functional.normalize(outputs, dim=-1)
    (passed * weights).sum().backward()
    found = backward(weights.clone())
    torch.testing.assert_close(found[..., :DIM], outputs.grad[..., :DIM], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("subvector_dim", [2, 4, 8])
def test_subspaces_have_similar_products_of_variances(subvector_dim):
    variances = 0.8 ** np.arange(32)
    order = balance_subspaces(variances.tolist(), subvector_dim)
    assert sorted(order) == list(range(32))
    products = np.log(variances[order].reshape(-1, subvector_dim)).sum(1)
    assert np.ptp(products) < 0.2 * np.ptp(np.log(variances.reshape(-1, subvector_dim)).sum(1))
    # Two subvectors, by hand: 256 | 128, then each to the smaller product.
    assert balance_subspaces([256.0, 128.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0], 4) == [0, 3, 4, 7, 1, 2, 5, 6]


def test_rounding_errors_of_zero_variances_do_not_unbalance_the_others():
    variances = [*0.8 ** np.arange(30)]
    for zero in (0.0, 1e-19, -1e-19):
        assert balance_subspaces([*variances, zero, zero / 10], 4) == balance_subspaces([*variances, 1e-6, 1e-6], 4)
