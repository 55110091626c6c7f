"""The file of a compressor: safetensors with metadata about its training."""

import hashlib
from pathlib import Path

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import Int8Ranges
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import NO_ENCODER, SIMILARITY

HEADER = "twinsqueeze"


class CheckpointMetadata(BaseModel):
    """What a compressor was trained on, so that its file alone is enough to evaluate and use it."""

    recipe: Recipe
    dataset: str
    dataset_digest: str
    score_max: float | None
    columns: dict[str, str] = {}
    encoder_fingerprint: str
    version: str
    task: str = SIMILARITY.name
    int8_ranges: Int8Ranges | None = None
    base: str | None = None  # the compressor that the training started from, in words

    @property
    def normalizes_inputs(self) -> bool:
        """Whether inputs are scaled to unit length first: if it was trained on vectors, not on an encoder's output."""
        return self.recipe.encoder == NO_ENCODER


def serialize_checkpoint(compressor: CompressorNetwork, metadata: CheckpointMetadata | None) -> bytes:
    """Returns the bytes of the file; None for weights of another program."""
    return save(compressor.state_dict(), {HEADER: metadata.model_dump_json()} if metadata else {})


def weights_digest(compressor: CompressorNetwork) -> str:
    """Returns 16 hex digits of a SHA-256 over the weights and codebooks."""
    return hashlib.sha256(serialize_checkpoint(compressor, None)).hexdigest()[:16]


def read_checkpoint(file: Path, model: str) -> tuple[CompressorNetwork, CheckpointMetadata | None]:
    """Reads a compressor and its metadata, None if another program saved the weights; `model` is named in messages."""
    try:
        with safe_open(file, framework="pt") as tensors:
            text = (tensors.metadata() or {}).get(HEADER)
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
        metadata = CheckpointMetadata.model_validate_json(text) if text else None
        compressor = CompressorNetwork.from_state_dict(state, metadata.recipe.precision if metadata else "float32")
        if metadata and metadata.int8_ranges and any(len(ends) != compressor.dim for ends in metadata.int8_ranges):
            raise ValueError(f"its int8 ranges are not of {compressor.dim} dimensions")
        return compressor, metadata
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, IndexError, OverflowError) as error:
        # PyTorch raises the last four for invalid dtypes and shapes
        raise InputError(f"model {model!r} contains no compressor: {one_line(error)}") from error
