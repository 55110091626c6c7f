"""Folders of compressors that were not trained."""

from pathlib import Path

import numpy as np
import torch

from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.model.checkpoint import CheckpointMetadata, serialize_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.model.quantizers import ProductQuantizer
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.base import Base
from twinsqueeze.training.loop import TrainingResult


def make_metadata(recipe: Recipe, **fields: object) -> CheckpointMetadata:
    defaults = {"dataset": "x", "dataset_digest": "0", "score_max": None, "encoder_fingerprint": "none", "version": "0"}
    return CheckpointMetadata(recipe=recipe, **defaults | fields)


def metadata_for(encoder: Path, int8_ranges: object = None, **recipe: object) -> CheckpointMetadata:
    """Metadata of a model that was trained with an encoder."""
    fingerprint = resolve_encoder(str(encoder)).fingerprint
    recipe = Recipe(encoder=str(encoder), **recipe)
    return make_metadata(recipe, dataset="demo", encoder_fingerprint=fingerprint, int8_ranges=int8_ranges)


def base_of(result: TrainingResult, encoder: str = "none", fingerprint: str = "none") -> Base:
    """What a training can start from: the result of one with an encoder, or on vectors."""
    recipe = result.recipe.model_copy(update={"encoder": encoder})
    return Base("base", result.compressor, make_metadata(recipe, encoder_fingerprint=fingerprint))


def write_model(folder: Path, network: CompressorNetwork, metadata: CheckpointMetadata | None) -> Path:
    """Writes the folder of a model; without metadata, as another program writes it."""
    folder.mkdir(parents=True)
    (folder / "compressor.safetensors").write_bytes(serialize_checkpoint(network, metadata))
    return folder


def product_network(input_dim: int) -> CompressorNetwork:
    """A linear network whose 32 outputs are quantized to 8 product codes."""
    codebooks = torch.randn(8, 256, 4, generator=torch.Generator().manual_seed(0)) / 6
    layers = kaiming_uniform_layers((input_dim, 32), np.random.default_rng(1))
    return CompressorNetwork(layers, ProductQuantizer(codebooks[None]))
