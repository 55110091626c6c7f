"""Storage formats against explicit arithmetic and sentence-transformers."""

import numpy as np
import pytest
import torch
from sentence_transformers.util.quantization import quantize_embeddings

from tests.helpers.vectors import unit_vectors
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import PRECISIONS, dequantize, int8_calibration_ranges, quantize
from twinsqueeze.model.quantizers import ProductQuantizer, SignQuantizer
from twinsqueeze.recipe import Recipe, bytes_per_vector


def test_int8_is_rounded_with_one_scale_for_all_dimensions():
    train, others = unit_vectors(300, 12, 0), unit_vectors(200, 12, 1)
    others[0, :2] = 2, -2  # beyond the values of train
    step = np.abs(train).max() / 126.5
    found = quantize(others, "int8", int8_calibration_ranges(train))
    ties = np.abs(others / step - np.floor(others / step) - 0.5) < 1e-3
    expected = np.clip(np.rint(others / step), -128, 127)
    np.testing.assert_array_equal(found[~ties], expected[~ties])
    assert found[0, :2].tolist() == [127, -128]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("dim", "part", "depth"), [(2, 2, 1), (8, 4, 3), (12, 3, 1), (384, 4, 1), (384, 12, 2)])
def test_bytes_per_vector_match_the_arrays(precision, dim, part, depth):
    given, codebooks = unit_vectors(3, dim, 3), torch.rand(dim // part * depth, 256, part)
    stored = quantize(given, precision, int8_calibration_ranges(given), codebooks)
    assert stored.dtype == {"float32": np.float32, "product": np.uint8, "ubinary": np.uint8}.get(precision, np.int8)
    assert bytes_per_vector(precision, dim, len(codebooks)) == stored.nbytes // 3
    quantizers = {"product": ProductQuantizer(codebooks[None], depth), "binary": SignQuantizer(), "float32": None}
    if precision in quantizers:  # precisions of training
        compressor = CompressorNetwork([(torch.zeros(dim, 384), torch.zeros(dim))], quantizers[precision])
        quantizer = {"binary": "sign", "float32": "none"}.get(precision, precision)
        fields = {"subvector_dim": part, "codes_per_subvector": depth}
        recipe = Recipe(architecture="linear", quantizer=quantizer, dim=dim, **fields)
        assert compressor.bytes_per_vector == recipe.bytes_per_vector == stored.nbytes // 3


@pytest.mark.parametrize("dim", [3, 8, 12, 384])
def test_quantize_and_dequantize_match_sentence_transformers(dim):
    train, others = unit_vectors(300, dim, 0), unit_vectors(200, dim, 1)
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
