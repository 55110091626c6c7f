"""Compressed vectors in fewer bytes a number, by sentence-transformers' own quantisation.

Its names: float32, int8 (each number's range over the train sentences cut into 256 steps), binary and ubinary (signs,
eight to a byte, as int8 or uint8). product is ours: the codes of a compressor that was trained as product codes.
"""

from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from twinsqueeze.errors import InputError
from twinsqueeze.recipe import bytes_per_vector
from twinsqueeze.types import AnyArray

if TYPE_CHECKING:
    import torch

# The least and the greatest value of each number of a compressed vector.
Int8Ranges = tuple[tuple[float, ...], tuple[float, ...]]


PRECISIONS = ("float32", "int8", "product", "binary", "ubinary")


def storage_dtype(precision: str, dim: int, part: int | None = None) -> tuple[np.dtype[Any], int]:
    """The type of the numbers of a row of `quantize`, and how many they are; arguments as for `bytes_per_vector`."""
    dtype = np.dtype({"float32": np.float32, "product": np.uint8, "ubinary": np.uint8}.get(precision, np.int8))
    return dtype, bytes_per_vector(precision, dim, part) // dtype.itemsize


def int8_calibration_ranges(vectors: AnyArray) -> Int8Ranges:
    """The ranges that int8 is scaled by.

    Args:
        vectors: (N, dim) float32, the compressed vectors of the distinct train sentences.
    """
    return tuple(vectors.min(0).tolist()), tuple(vectors.max(0).tolist())


def check_precision(precision: str, ranges: Int8Ranges | None, codebooks: Any, model: str) -> None:
    """Refuses what `quantize` can't do for a model.

    Args:
        precision: As the user typed it.
        ranges: Those that travel with the model, None where it has none.
        codebooks: The same.
        model: What the user called it.

    Raises:
        InputError: If there is no such precision, or the model lacks the ranges that it needs.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "int8" and ranges is None:
        raise InputError(
            f"model {model!r} has no ranges to scale int8 by, which a training now writes beside the weights: "
            "train it again, or choose float32 or binary"
        )
    if precision == "product" and codebooks is None:
        raise InputError(
            f"model {model!r} was not trained as product codes and has no codebooks: choose float32, int8 or binary"
        )


def quantize(
    vectors: AnyArray, precision: str, ranges: Int8Ranges | None = None, codebooks: "torch.Tensor | None" = None
) -> AnyArray:
    """Compressed vectors at a precision.

    Args:
        vectors: (N, dim) float32.
        precision: One of `PRECISIONS`.
        ranges: The model's; needed for int8 alone.
        codebooks: The model's, (M, K, P); needed for product alone.

    Returns:
        (N, dim) float32 or int8, (N, M) uint8 (product), or (N, ceil(dim / 8)) int8 (binary) or uint8 (ubinary).
    """
    if precision == "float32":
        return vectors
    if precision == "product":
        import torch  # noqa: PLC0415 - which the rest here does without

        from twinsqueeze.model.quantizers import ProductQuantizer  # noqa: PLC0415 - it takes PyTorch

        assert codebooks is not None
        codes: AnyArray = ProductQuantizer(codebooks[None]).codes(torch.from_numpy(vectors)[None])[0].numpy()
        return codes.astype(np.uint8)
    # Takes 8 seconds to import: only where there is something to quantise.
    from sentence_transformers.util.quantization import quantize_embeddings  # noqa: PLC0415 - as above

    kind = cast(Literal["float32", "int8", "binary", "ubinary"], precision)
    scales = None if ranges is None else np.array(ranges, np.float32)
    quantised = quantize_embeddings(vectors, kind, ranges=scales)
    return cast(AnyArray, quantised)


def dequantize(vectors: AnyArray, precision: str, ranges: Int8Ranges | None = None) -> AnyArray:
    """What a search compares by cosine in vectors of a precision: int8 as it is, signs as 1 and -1.

    `quantize` without sentence-transformers, whose import every training would wait for.

    Args:
        vectors: (N, dim) float32.
        precision: float32, int8 or binary.
        ranges: The model's; needed for int8 alone.

    Returns:
        (N, dim) float32.
    """
    if precision == "int8":
        low, high = np.array(ranges, np.float32)
        steps = (high - low) / 255
        steps = np.where(steps == 0, 1, steps)
        steps_up: AnyArray = np.clip(np.floor((vectors - low) / steps), 0, 255)
        return (steps_up - 128).astype(np.float32)
    if precision == "binary":
        return np.where(vectors > 0, np.float32(1), np.float32(-1))
    return vectors
