"""Storage formats against explicit arithmetic and sentence-transformers."""

import numpy as np
import pytest
import torch
from sentence_transformers.util.quantization import quantize_embeddings

from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import PRECISIONS, check_precision, dequantize, int8_calibration_ranges, quantize
from twinsqueeze.model.quantizers import ProductQuantizer, SignQuantizer
from twinsqueeze.recipe import Recipe, bytes_per_vector


def vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def test_int8_cuts_the_range_of_each_dimension_into_256_steps():
    train, others = vectors(300, 12, 0), vectors(200, 12, 1)
    ranges = int8_calibration_ranges(train)
    assert np.shape(ranges) == (2, 12)
    low, high = np.array(ranges)
    np.testing.assert_array_equal(low, train.min(0))
    np.testing.assert_array_equal(high, train.max(0))
    found = quantize(others, "int8", ranges)
    assert found.dtype == np.int8
    step = (high - low) / 255
    restored = low + (found.astype(np.float64) + 128 + 0.5) * step
    inside = (others >= low) & (others < high)
    assert (np.abs(restored - others) <= step * 0.5001)[inside].all()
    assert set(found[others <= low]) <= {-128}
    assert set(found[others > high]) <= {127}
    assert (~inside).any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("dim", "part"), [(2, 2), (8, 4), (12, 3), (12, 6), (384, 4), (384, 12)])
def test_bytes_per_vector_match_the_arrays(precision, dim, part):
    given, codebooks = vectors(3, dim, 3), torch.rand(dim // part, 256, part)
    stored = quantize(given, precision, int8_calibration_ranges(given), codebooks)
    assert stored.dtype == {"float32": np.float32, "product": np.uint8, "ubinary": np.uint8}.get(precision, np.int8)
    assert bytes_per_vector(precision, dim, part) == stored.nbytes // 3
    quantizers = {"product": ProductQuantizer(codebooks[None]), "binary": SignQuantizer(), "float32": None}
    if precision in quantizers:  # precisions of training
        compressor = CompressorNetwork([(torch.zeros(dim, 384), torch.zeros(dim))], quantizers[precision])
        quantizer = {"binary": "sign", "float32": "none"}.get(precision, precision)
        recipe = Recipe(architecture="linear", subvector_dim=part, quantizer=quantizer, dim=dim)
        assert compressor.bytes_per_vector == recipe.bytes_per_vector == stored.nbytes // 3


def test_unavailable_precisions_are_an_error():
    for precision, message in [
        ("int4", "one of float32, int8, product, binary, ubinary, not 'int4'"),
        ("int8", "model 'm' has no ranges to scale int8 by"),
        ("product", "model 'm' was not trained as product codes"),
    ]:
        with pytest.raises(InputError, match=message):
            check_precision(precision, None, None, "m")
    check_precision("binary", None, None, "m")


@pytest.mark.parametrize("dim", [3, 8, 12, 384])
def test_quantize_and_dequantize_match_sentence_transformers(dim):
    train, others = vectors(300, dim, 0), vectors(200, dim, 1)
    train[:, 1] = others[:, 1] = 0.25  # a constant dimension has no range
    ranges = int8_calibration_ranges(train)
    stored = quantize_embeddings(others, "int8", ranges=np.array(ranges, np.float32))
    np.testing.assert_array_equal(quantize(others, "int8", ranges), stored)
    np.testing.assert_array_equal(dequantize(others, "int8", ranges), stored)
    for precision in ("binary", "ubinary"):
        packed = quantize_embeddings(others, precision)
        assert quantize(others, precision).dtype == packed.dtype
        np.testing.assert_array_equal(quantize(others, precision), packed)
    packed = quantize(others, "ubinary")  # eight signs in a byte
    np.testing.assert_array_equal(quantize(others, "binary").astype(int) + 128, packed)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1)[:, :dim], others > 0)
    np.testing.assert_array_equal(dequantize(others, "binary"), np.where(others > 0, 1.0, -1.0))
    np.testing.assert_array_equal(dequantize(others, "float32"), others)
    assert dequantize(others, "int8", ranges).dtype == dequantize(others, "binary").dtype == np.float32
