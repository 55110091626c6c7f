"""The public `Compressor`: compresses vectors and texts, is saved and loaded."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from twinsqueeze.data.embedding import encode_texts
from twinsqueeze.data.encoder import BatchEncoder, resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.inference.compression import VectorCompressor
from twinsqueeze.model.checkpoint import CheckpointMetadata, read_checkpoint, serialize_checkpoint, weights_digest
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import check_precision
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.base import Base
from twinsqueeze.types import AnyArray
from twinsqueeze.utils.files import CHECKPOINT_FILE, expand_user


class Compressor:
    """Compresses vectors, or texts with the encoder that it was trained with.

    Made by `train` or `Compressor.load`.

    Examples:
        >>> import numpy as np, twinsqueeze as ts
        >>> recipe = ts.Recipe(dim=8, epochs=1)
        >>> compressor = ts.train(recipe, ts.load_dataset("demo")).compressor
        >>> compressor.compress(np.ones((3, 384))).shape
        (3, 8)
        >>> compressor.encode(["A man plays the guitar."]).shape
        (1, 8)
    """

    def __init__(self, network: CompressorNetwork, metadata: CheckpointMetadata | None = None) -> None:
        self._network = network
        self._metadata = metadata

    def __repr__(self) -> str:
        name = self.recipe.name if self.recipe else "of unknown training"
        return f"<Compressor {name}: {self.input_dim} to {self.dim} dimensions>"

    @property
    def dim(self) -> int:
        """Dimension of a compressed vector."""
        return self._network.dim

    @property
    def input_dim(self) -> int:
        """Dimension of the encoder's vectors."""
        return self._network.input_dim

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that it was trained with; None for weights of another program."""
        return self._metadata.recipe if self._metadata else None

    def compress(self, vectors: AnyArray, precision: str = "float32") -> AnyArray:
        """Compresses finite vectors, (n, input_dim) of any real dtype.

        Args:
            vectors: The vectors of the encoder.
            precision: float32; int8, binary or ubinary, as `sentence_transformers.quantize_embeddings` packs them; or
                product for the codes of a compressor with a product quantizer.

        Returns:
            (n, dim) float32 of unit length, or the codes: int8 (n, dim), uint8 (n, bytes).
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.input_dim:
            raise InputError(f"vectors must have the shape (n, {self.input_dim}), not {vectors.shape}")
        int8_ranges = self._metadata.int8_ranges if self._metadata else None
        check_precision(precision, int8_ranges, self._network.codebooks, repr(self))
        return VectorCompressor(self._network, precision, self._metadata).compress(vectors)

    def encode(self, texts: Sequence[str], precision: str = "float32") -> AnyArray:
        """Encodes texts with the encoder of the training, and compresses their vectors as `compress` does."""
        if not len(texts):
            return self.compress(np.empty((0, self.input_dim), np.float32), precision)
        return self.compress(encode_texts(self._batch_encoder, texts), precision)

    @cached_property
    def _batch_encoder(self) -> BatchEncoder:
        if self._metadata is None:
            raise InputError("this compressor does not record its encoder: encode the texts, then call compress")
        encoder = resolve_encoder(self._metadata.recipe.encoder)
        if encoder.fingerprint != self._metadata.encoder_fingerprint:
            raise InputError(f"the files of encoder {encoder.name!r} are not those of the training: restore them")
        return encoder.load()

    def save(self, folder: str | Path) -> None:
        """Writes the compressor to a folder, as one safetensors file that also records its training."""
        path = expand_user(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / CHECKPOINT_FILE).write_bytes(serialize_checkpoint(self._network, self._metadata))

    @cached_property
    def digest(self) -> str:
        """16 hex digits of a SHA-256 over the weights, as trainings that start from it record it."""
        return weights_digest(self._network)

    def as_base(self, name: str) -> Base:
        """Returns it as what a training starts from; messages call it `name`."""
        return Base.load(name, self._network, self._metadata)

    @classmethod
    def load(cls, model: str | Path) -> Self:
        """Loads a compressor from a folder or a safetensors file, or an `InputError` says why not.

        With MLflow, `model` may also be a run id or a URI: `models:/twinsqueeze@champion`, `models:/MODEL_ID`.
        """
        path = expand_user(model)
        file = path / CHECKPOINT_FILE if path.is_dir() else path
        if not file.is_file():
            from twinsqueeze.registry.model_loader import resolve_model  # noqa: PLC0415 - imports MLflow, which is slow

            file = resolve_model(str(model)).checkpoint
        return cls(*read_checkpoint(file, str(model)))
