"""Storage formats of compressed vectors.

The formats and names are those of sentence-transformers: float32, int8 (the range of each dimension cut into 256
steps), binary and ubinary (signs, eight per byte, as int8 or uint8). product is the code of a product quantizer.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from twinsqueeze.errors import InputError
from twinsqueeze.recipe import bytes_per_vector
from twinsqueeze.types import AnyArray

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "int8", "product", "binary", "ubinary")
# The least and the greatest value of each dimension.
Int8Ranges = tuple[tuple[float, ...], tuple[float, ...]]


def storage_dtype(precision: str, dim: int, subvector_dim: int | None = None) -> tuple[np.dtype[Any], int]:
    """Returns the dtype and the number of columns of `quantize`'s result; arguments as for `bytes_per_vector`."""
    dtype = np.dtype({"float32": np.float32, "product": np.uint8, "ubinary": np.uint8}.get(precision, np.int8))
    return dtype, bytes_per_vector(precision, dim, subvector_dim) // dtype.itemsize


def int8_calibration_ranges(vectors: AnyArray) -> Int8Ranges:
    """Returns the ranges for int8 of compressed vectors, (N, dim) float32."""
    return tuple(vectors.min(0).tolist()), tuple(vectors.max(0).tolist())


def check_precision(precision: str, ranges: Int8Ranges | None, codebooks: Any, model: str) -> None:
    """Checks that a model's vectors can be stored at a precision.

    Args:
        precision: The user's choice.
        ranges: The model's int8 ranges; None if it has none.
        codebooks: The model's codebooks; None if it has none.
        model: The user's name of the model.

    Raises:
        InputError: If the precision is unknown, or the model lacks ranges or codebooks.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "int8" and ranges is None:
        raise InputError(f"model {model!r} has no ranges to scale int8 by: train it again, or choose float32 or binary")
    if precision == "product" and codebooks is None:
        raise InputError(f"model {model!r} was not trained as product codes: choose float32, int8 or binary")


def quantize(
    vectors: AnyArray, precision: str, ranges: Int8Ranges | None = None, codebooks: "torch.Tensor | None" = None
) -> AnyArray:
    """Converts compressed vectors to a storage format.

    Args:
        vectors: (N, dim) float32.
        precision: One of `PRECISIONS`.
        ranges: The model's ranges, for int8.
        codebooks: (M, K, P), the model's codebooks, for product.

    Returns:
        (N, dim) float32 or int8, (N, M) uint8 (product), or (N, ceil(dim / 8)) int8 (binary) or uint8 (ubinary).
    """
    if precision == "product":
        import torch  # noqa: PLC0415 - other precisions need no PyTorch

        from twinsqueeze.model.quantizers import ProductQuantizer  # noqa: PLC0415 - as above

        assert codebooks is not None
        codes: AnyArray = ProductQuantizer(codebooks[None]).encode(torch.from_numpy(vectors)[None])[0].numpy()
        return codes.astype(np.uint8)
    if precision == "int8":
        return dequantize(vectors, "int8", ranges).astype(np.int8)
    if precision in {"binary", "ubinary"}:
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits ^ 0x80).view(np.int8)  # b - 128
    return vectors


def dequantize(vectors: AnyArray, precision: str, ranges: Int8Ranges | None = None) -> AnyArray:
    """Returns the floats that a cosine search compares at a precision: int8 as it is, signs as 1 and -1.

    Args:
        vectors: (N, dim) float32.
        precision: float32, int8 or binary.
        ranges: The model's ranges, for int8.

    Returns:
        (N, dim) float32.
    """
    if precision == "int8":
        low, high = np.array(ranges, np.float32)
        steps = (high - low) / 255
        steps = np.where(steps == 0, 1, steps)
        codes: AnyArray = np.clip(np.floor((vectors - low) / steps), 0, 255)
        return (codes - 128).astype(np.float32)
    if precision == "binary":
        return np.where(vectors > 0, np.float32(1), np.float32(-1))
    return vectors
