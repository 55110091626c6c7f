"""Quantizers against FAISS's product quantizer, and their straight-through gradients against autograd."""

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
    subvectors, centroids, subvector_dim = codebooks.shape
    index = faiss.IndexPQ(subvectors * subvector_dim, subvectors, int(np.log2(centroids)))
    faiss.copy_array_to_vector(codebooks.numpy().ravel(), index.pq.centroids)
    index.is_trained = True
    return index


def test_codes_match_faiss(codebooks):
    quantizer, vectors = ProductQuantizer(codebooks), unit(REPLICAS, ROWS, DIM)
    codes = quantizer.encode(vectors)
    decoded = quantizer.decode(codes).numpy()
    dequantized = quantizer.dequantize(3 * vectors).numpy()
    for r in range(REPLICAS):
        index = faiss_index(codebooks[r])
        theirs = index.sa_encode(vectors[r].numpy())
        np.testing.assert_array_equal(codes[r].numpy(), theirs)
        np.testing.assert_allclose(decoded[r], index.sa_decode(theirs), atol=1e-6)
        np.testing.assert_allclose(dequantized[r], decoded[r], atol=1e-6)
        np.testing.assert_array_equal(quantizer.replica(r).dequantize(vectors[r : r + 1]).numpy()[0], decoded[r])


def residual_index(codebooks: torch.Tensor, depth: int, beam: int) -> faiss.IndexProductResidualQuantizer:
    tables = len(codebooks)
    index = faiss.IndexProductResidualQuantizer(DIM, tables // depth, depth, 8, faiss.METRIC_INNER_PRODUCT)
    for m in range(tables // depth):
        part = faiss.downcast_AdditiveQuantizer(index.prq.subquantizer(m))
        part.max_beam_size, part.is_trained = beam, True
        faiss.copy_array_to_vector(codebooks[m * depth : (m + 1) * depth].numpy().ravel(), part.codebooks)
        part.compute_codebook_tables()
    faiss.copy_array_to_vector(codebooks.numpy().ravel(), index.prq.codebooks)
    index.is_trained = index.prq.is_trained = True
    return index


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("depth", [2, 4])
def test_codes_of_residuals_match_faiss(depth, beam):
    codebooks = torch.stack([fit_codebooks(unit(900, DIM, seed=r).numpy(), 6, r, depth) for r in range(REPLICAS)])
    quantizer, vectors = ProductQuantizer(codebooks, depth), unit(REPLICAS, ROWS, DIM)
    codes = quantizer.encode(vectors, beam=beam)
    decoded = quantizer.decode(codes).numpy()
    for r in range(REPLICAS):
        index = residual_index(codebooks[r], depth, beam)
        theirs = index.sa_encode(vectors[r].numpy())
        assert (codes[r].numpy() == theirs).mean() > 0.999  # but for ties
        np.testing.assert_allclose(decoded[r], index.sa_decode(codes[r].numpy().astype(np.uint8)), atol=1e-6)
        np.testing.assert_array_equal(quantizer.replica(r).encode(vectors[r : r + 1], beam=beam)[0], codes[r])


@pytest.mark.parametrize("subvector_dim", [4, 6])
def test_codebooks_are_as_good_as_those_of_faiss(subvector_dim):
    vectors = unit(2000, DIM, seed=2).numpy()
    ours = fit_codebooks(vectors, subvector_dim, 0)
    assert ours.shape == (DIM // subvector_dim, 256, subvector_dim)
    index = faiss.IndexPQ(DIM, DIM // subvector_dim, 8)
    index.train(vectors)

    def distortion(restored: np.ndarray) -> float:
        return float(np.square(restored - vectors).sum(1).mean())

    mine = ProductQuantizer(ours[None])
    lost = distortion(mine.dequantize(torch.from_numpy(vectors)[None])[0].numpy())
    assert lost < 1.05 * distortion(index.sa_decode(index.sa_encode(vectors)))
    assert torch.equal(fit_codebooks(vectors, subvector_dim, 0), ours)
    assert not torch.equal(fit_codebooks(vectors, subvector_dim, 1), ours)


def test_codebooks_of_residuals_are_as_good_as_those_of_faiss():
    vectors = unit(3000, 32, seed=2).numpy()
    ours = fit_codebooks(vectors, 16, 0, 2)
    assert ours.shape == (4, 256, 16)
    index = faiss.IndexProductResidualQuantizer(32, 2, 2, 8)
    index.train(vectors)
    mine = ProductQuantizer(ours[None], 2).dequantize(torch.from_numpy(vectors)[None])[0].numpy()
    theirs = index.sa_decode(index.sa_encode(vectors))
    ours_lost, theirs_lost = (float(np.square(restored - vectors).sum(1).mean()) for restored in (mine, theirs))
    assert ours_lost < 1.05 * theirs_lost


def test_codebooks_do_not_depend_on_the_number_of_threads():
    vectors = unit(9000, 16).numpy()

    def fitted(threads: int) -> torch.Tensor:
        with threadpool_limits(threads):
            return fit_codebooks(vectors, 4, 0)

    assert torch.equal(fitted(1), fitted(2))


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


@pytest.mark.parametrize("none", [0.0, 1e-19, -1e-19])
def test_rounding_errors_of_zero_variances_do_not_unbalance_the_others(none):
    variances = [*0.8 ** np.arange(30), none, none / 10]
    assert balance_subspaces(variances, 4) == balance_subspaces([*variances[:30], 1e-6, 1e-6], 4)
