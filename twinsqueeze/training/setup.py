"""What a batch of replicas is trained on, and the models that it starts with."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.model.compressor import CompressorBatch, CompressorNetwork, Layer
from twinsqueeze.model.quantizers import ProductQuantizer, Quantizer, SignQuantizer, fit_codebooks
from twinsqueeze.recipe import Recipe


@dataclass(frozen=True)
class TrainingSetup:
    """R = A * S replicas: each of A strengths of noise with each of S seeds, seeds varying fastest."""

    recipe: Recipe  # of every replica, but for alpha and seed
    alphas: Sequence[float]
    seeds: Sequence[int]
    train: EncodedSplit
    device: torch.device


def build_model(
    setup: TrainingSetup, layers: Sequence[Sequence[Layer]], codebooks: torch.Tensor | None
) -> CompressorBatch:
    """Returns the replicas, given the layers of each seed and the (R, M, K, P) codebooks of a product quantizer."""
    recipe = setup.recipe
    quantizer: Quantizer | None = SignQuantizer() if recipe.quantizer == "sign" else None
    if codebooks is not None:
        quantizer = ProductQuantizer(codebooks.clone().to(setup.device))
    skip_dims = recipe.dim if recipe.architecture == "residual" else 0
    return CompressorBatch(list(layers) * len(setup.alphas), setup.device, quantizer, skip_dims)


def fit_initial_codebooks(setup: TrainingSetup, layers: Sequence[Sequence[Layer]]) -> torch.Tensor:
    """Fits (R, M, K, P) codebooks to the initial outputs of each seed."""
    vectors = torch.from_numpy(setup.train.stored_vectors).to(setup.device)
    codebooks = []
    for seed_layers, seed in zip(layers, setup.seeds, strict=True):
        outputs = CompressorNetwork(seed_layers).to(setup.device).compress(vectors).cpu().numpy()
        codebooks.append(fit_codebooks(outputs, setup.recipe.subvector_dim, seed))
    return torch.stack(codebooks * len(setup.alphas))


def empty_layers(sizes: Sequence[int]) -> list[Layer]:
    """Returns layers of zeros between consecutive sizes."""
    return [(torch.zeros(outputs, inputs), torch.zeros(outputs)) for inputs, outputs in pairwise(sizes)]
