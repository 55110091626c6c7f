"""Compresses blocks of vectors or texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import save

from twinsqueeze.data.embedding import cache_key, cached_vectors, encode_texts
from twinsqueeze.data.encoder import BatchEncoder
from twinsqueeze.errors import InputError
from twinsqueeze.model.checkpoint import CheckpointMetadata, read_checkpoint
from twinsqueeze.model.compressor import ALIGNMENT, CompressorNetwork
from twinsqueeze.model.faiss_index import FaissIndex
from twinsqueeze.model.precision import Int8Ranges, check_precision, quantize
from twinsqueeze.model.sentence_transformer import token_limit
from twinsqueeze.types import AnyArray, FloatArray
from twinsqueeze.utils.disk_cache import DiskCache

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class VectorCompressor:
    """A network on the CPU and the precision of its output; `metadata` calibrate int8 and scale inputs."""

    network: CompressorNetwork
    precision: str
    metadata: CheckpointMetadata | None

    @property
    def ranges(self) -> Int8Ranges | None:
        """The calibration for int8."""
        return self.metadata.int8_ranges if self.metadata else None

    def build_index(self, lists: str = "none") -> FaissIndex:
        """Return an empty FAISS index that takes what `compress` takes; `lists` as for `FaissIndex`."""
        normalizes = bool(self.metadata and self.metadata.normalizes_inputs)
        return FaissIndex(self.network, self.precision, self.ranges, lists, normalizes_inputs=normalizes)

    def quantize(self, compressed: FloatArray) -> AnyArray:
        """Return (n, dim) float32 vectors at the output's precision."""
        return quantize(compressed, self.precision, self.ranges, self.network.codebooks)

    def compress(self, vectors: AnyArray, name: str = "vectors", first_row: int = 0) -> AnyArray:
        """Compress (n, d) numbers of any type. The bits of a row do not depend on the rows beside it.

        An `InputError` names a row of the input `name` that is not finite or too long, counted from `first_row`.
        """
        num_rows = len(vectors)
        if num_rows % ALIGNMENT:  # matrix products of few rows use other kernels, which differ in the last bits
            vectors = np.pad(vectors, ((0, -num_rows % ALIGNMENT), (0, 0)))
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
            inputs = torch.from_numpy(np.require(vectors, np.float32, ("C", "W")))
        if self.metadata and self.metadata.normalizes_inputs:
            inputs = torch.nn.functional.normalize(inputs, dim=1)
        compressed = self.network.compress(inputs)
        for tensor, fault in ((inputs, "has NaN or infinite numbers"), (compressed, "is too long a vector")):
            # The sum is faster than a look at every number, and not finite if one of them is not.
            if not tensor.sum().isfinite() and not (finite := tensor.isfinite().all(1)).all():
                row = first_row + int(finite.int().argmin())
                raise InputError(f"row {row} of {name} {fault}: correct or remove it")
        return self.quantize(compressed.numpy()[:num_rows])


def load_compressor(checkpoint: Path, model: str, precision: str) -> tuple[VectorCompressor, CheckpointMetadata | None]:
    """Load a model's compressor and metadata; `precision` may be "auto" for that of the training."""
    network, metadata = read_checkpoint(checkpoint, model)
    ranges = metadata.int8_ranges if metadata else None
    precision = network.precision if precision == "auto" else precision
    check_precision(precision, ranges, network.codebooks, model)
    return VectorCompressor(network, precision, metadata), metadata


def encode_cached(model: "SentenceTransformer", fingerprint: str, texts: list[str], cache: DiskCache) -> FloatArray:
    """Return a model's vectors of texts, (n, dim) float32; `fingerprint` changes if the vectors would."""
    key = cache_key(fingerprint, texts)
    vectors = cached_vectors(cache, key)
    if vectors is None:
        vectors = encode_texts(BatchEncoder(model), texts)
        cache.put(key, save({"embeddings": vectors}))
    return vectors


def is_truncated(model: "SentenceTransformer", text: str) -> bool:
    """Return whether a text has more tokens than the model takes."""
    limit = token_limit(model)
    # Every token but those of begin and end has at least one character.
    if limit is None or len(text) <= limit - 2:
        return False
    return len(model.tokenizer(text, truncation=False, verbose=False)["input_ids"]) > limit
