"""Vectors or texts compressed, a block at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from twinsqueeze.data.encoder import BATCH_SIZE
from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import ALIGNMENT, CompressorNetwork
from twinsqueeze.model.precision import Int8Ranges, quantize
from twinsqueeze.types import AnyArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class VectorCompressor:
    """Blocks of vectors to compressed vectors, a row's bits being the same whatever stands beside it.

    Args:
        compressor: On the CPU.
        precision: As for `quantize`.
        ranges: As for `quantize`.
    """

    def __init__(self, compressor: CompressorNetwork, precision: str, ranges: Int8Ranges | None) -> None:
        self.compressor = compressor
        self.precision = precision
        self.ranges = ranges

    def __call__(self, vectors: AnyArray, where: str, first: int) -> AnyArray:
        """Compresses a block.

        Args:
            vectors: (N, d) float32.
            where: What the rows are in, for messages.
            first: The number of the first row there.

        Returns:
            (N, dim), or as `quantize` packs it.

        Raises:
            InputError: If a vector is not finite, or so long that its compressed vector is not.
        """
        rows = len(vectors)
        if rows % ALIGNMENT:  # few rows take another kernel, whose last bits are others
            vectors = np.pad(vectors, ((0, -rows % ALIGNMENT), (0, 0)))
        given = torch.from_numpy(np.require(vectors, np.float32, ("C", "W")))
        compressed = self.compressor.compress(given)
        # One sum is cheaper than a look at every number, and not finite wherever one of them is not.
        if not (given.sum().isfinite() and compressed.sum().isfinite()):
            _check_finite(vectors, compressed.numpy(), where, first)
        return quantize(compressed.numpy()[:rows], self.precision, self.ranges, self.compressor.codebooks)


def _check_finite(vectors: AnyArray, compressed: AnyArray, where: str, first: int) -> None:
    for checked, what in ((vectors, "has NaN or infinite numbers"), (compressed, "is too long a vector")):
        bad = ~np.isfinite(checked).all(1)
        if bad.any():
            raise InputError(f"row {first + int(np.argmax(bad))} of {where} {what}: mend it or leave it out")


class TextCompressor:
    """Blocks of texts to compressed vectors.

    Args:
        model: Encoder and compressor, such as `text_model` joins.
        precision: As for `quantize`.
        ranges: As for `quantize`.
        codebooks: As for `quantize`.

    Attributes:
        limit: Tokens of a text that the encoder looks at; None where it has no limit.
        cut: How many texts were longer.
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        precision: str,
        ranges: Int8Ranges | None,
        codebooks: torch.Tensor | None = None,
    ) -> None:
        self.model = model
        self.precision = precision
        self.ranges = ranges
        self.codebooks = codebooks
        self.limit: int | None = model.max_seq_length
        self.cut = 0

    def __call__(self, texts: Sequence[str]) -> AnyArray:
        """Compresses a block of N texts: (N, dim), or as `quantize` packs it."""
        self.cut += sum(map(self._is_cut, texts))
        vectors = self.model.encode(list(texts), batch_size=BATCH_SIZE, show_progress_bar=False)
        return quantize(vectors, self.precision, self.ranges, self.codebooks)

    def _is_cut(self, text: str) -> bool:
        # No token is shorter than a character, but for the two that mark the beginning and the end.
        if self.limit is None or len(text) <= self.limit - 2:
            return False
        return len(self.model.tokenizer(text, truncation=False, verbose=False)["input_ids"]) > self.limit
