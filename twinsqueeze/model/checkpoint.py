"""A compressor's file: safetensors, with what it was trained on in its header."""

from pathlib import Path

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import Int8Ranges
from twinsqueeze.recipe import Recipe

HEADER = "twinsqueeze"


class Provenance(BaseModel):
    """What a compressor's file says of its training, so that it can be evaluated and used wherever it lies.

    Attributes:
        int8_ranges: What int8 is scaled by: least and greatest value of each compressed number over the distinct train
            sentences. None in files from before they were kept.
    """

    recipe: Recipe
    dataset: str
    dataset_digest: str
    score_max: float | None
    encoder_fingerprint: str
    version: str
    int8_ranges: Int8Ranges | None = None


def serialize_checkpoint(compressor: CompressorNetwork, provenance: Provenance) -> bytes:
    """The file's bytes."""
    return compressor.to_bytes({HEADER: provenance.model_dump_json()})


def read_checkpoint(file: Path, model: str) -> tuple[CompressorNetwork, Provenance | None]:
    """A compressor and its provenance, None where another program saved the weights.

    Args:
        file: Safetensors, a stack of linear layers of whatever names.
        model: What the user called it.

    Raises:
        InputError: If the file holds no compressor.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            text = (tensors.metadata() or {}).get(HEADER)
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - it is no mapping
        provenance = Provenance.model_validate_json(text) if text else None
        precision = provenance.recipe.precision if provenance else "float32"
        compressor = CompressorNetwork.from_state_dict(state, precision)
        if provenance and provenance.int8_ranges and any(len(e) != compressor.dim for e in provenance.int8_ranges):
            raise ValueError(f"its ranges for int8 are not those of {compressor.dim} numbers")
        return compressor, provenance
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, IndexError, OverflowError) as error:
        # PyTorch's own for types and shapes that it can't have
        raise InputError(f"model {model!r} holds no compressor: {one_line(error)}") from error
