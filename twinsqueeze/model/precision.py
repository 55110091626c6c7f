"""Storage formats of compressed vectors.

The formats and names are those of sentence-transformers: float32, int8 (ranges of dimensions cut into 256 steps),
binary and ubinary (signs, eight per byte, as int8 or uint8). product is the code of a product quantizer.
"""

import numpy as np
import torch

from twinsqueeze.errors import InputError
from twinsqueeze.model.quantizers import ProductQuantizer
from twinsqueeze.types import AnyArray

PRECISIONS = ("float32", "int8", "product", "binary", "ubinary")
# The least and the greatest value of each dimension, as in `sentence_transformers.quantize_embeddings`.
Int8Ranges = tuple[tuple[float, ...], tuple[float, ...]]


def int8_calibration_ranges(vectors: AnyArray) -> Int8Ranges:
    """Returns the same range for every dimension of (N, dim) float32 vectors: codes are round(value / step).

    Cosines of codes are then near those of the vectors. The least and the greatest value of each dimension as its range
    would scale dimensions differently and move the origin. A code is floor((value - low) / step) - 128, so rounding
    needs low = -128.5 steps.
    """
    step = float(np.abs(vectors).max()) / 126.5
    dim = vectors.shape[1]
    return (-128.5 * step,) * dim, (126.5 * step,) * dim


def check_precision(precision: str, ranges: Int8Ranges | None, codebooks: torch.Tensor | None, model: str) -> None:
    """Raises an `InputError` if a precision is unknown, or the `model` lacks the ranges or codebooks that it needs."""
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "int8" and ranges is None:
        raise InputError(f"model {model!r} has no ranges to scale int8 by: train it again, or choose float32 or binary")
    if precision == "product" and codebooks is None:
        raise InputError(f"model {model!r} was not trained as product codes: choose float32, int8 or binary")


def quantize(
    vectors: AnyArray, precision: str, ranges: Int8Ranges | None = None, codebooks: torch.Tensor | None = None
) -> AnyArray:
    """Converts (N, dim) float32 vectors to a storage format, with the `ranges` for int8, the `codebooks` for product.

    Returns (N, dim) float32 or int8, (N, len(codebooks)) uint8 (product), or (N, ceil(dim / 8)) int8 (binary) or uint8
    (ubinary).
    """
    if precision == "product":
        assert codebooks is not None
        quantizer = ProductQuantizer(codebooks[None], codebooks[:, 0].numel() // vectors.shape[1])
        codes: AnyArray = quantizer.encode(torch.from_numpy(vectors)[None])[0].numpy()
        return codes.astype(np.uint8)
    if precision == "int8":
        return dequantize(vectors, "int8", ranges).astype(np.int8)
    if precision in {"binary", "ubinary"}:
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits ^ 0x80).view(np.int8)  # b - 128
    return vectors


def dequantize(vectors: AnyArray, precision: str, ranges: Int8Ranges | None = None) -> AnyArray:
    """Returns the (N, dim) floats that a cosine search compares, at float32, int8 (as it is) or binary (1 and -1)."""
    if precision == "int8":
        low, high = np.array(ranges, np.float32)
        steps = (high - low) / 255
        steps[steps == 0] = 1
        codes: AnyArray = np.clip(np.floor((vectors - low) / steps), 0, 255)
        return (codes - 128).astype(np.float32)
    if precision == "binary":
        return np.where(vectors > 0, np.float32(1), np.float32(-1))
    return vectors
