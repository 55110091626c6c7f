"""What a batch of replicas is trained on, and the models that it starts with."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.model.compressor import CompressorBatch, CompressorNetwork, Layer
from twinsqueeze.model.initialization import initial_layers
from twinsqueeze.model.quantizers import ProductQuantizer, Quantizer, SignQuantizer, fit_codebooks
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.seed_streams import SeedStreams
from twinsqueeze.utils.compute import BLAS_LOCK


@dataclass(frozen=True)
class TrainingSetup:
    """R = A * S replicas: each of A strengths of noise with each of S seeds, seeds varying fastest."""

    recipe: Recipe  # of every replica, but for alpha and seed
    alphas: Sequence[float]
    seeds: Sequence[int]
    train: EncodedSplit
    device: torch.device
    base: CompressorNetwork | None = None  # whose layers all replicas start with, if the recipe has one

    def replica(self, recipe: Recipe) -> int:
        """Returns the place of a recipe in the batch."""
        return self.alphas.index(recipe.alpha) * len(self.seeds) + self.seeds.index(recipe.seed)


def initial_model(setup: TrainingSetup, teacher_layers: Sequence[Layer] | None = None) -> CompressorBatch:
    """Returns the replicas before the first epoch, with codebooks that fit their outputs on the train vectors."""
    recipe, vectors = setup.recipe, setup.train.sentences
    starts = teacher_layers if teacher_layers and recipe.init == "teacher" else [None] * len(setup.seeds)
    with BLAS_LOCK:
        if setup.base:
            layers = [setup.base.to("cpu").layers] * len(setup.seeds)
        else:
            layers = [
                initial_layers(recipe, vectors, SeedStreams.from_seed(seed).weights, start)
                for seed, start in zip(setup.seeds, starts, strict=True)
            ]
        codebooks = fit_initial_codebooks(setup, layers) if recipe.quantizer == "product" else None
    return build_model(setup, layers, codebooks)


def build_model(
    setup: TrainingSetup, layers: Sequence[Sequence[Layer]], codebooks: torch.Tensor | None
) -> CompressorBatch:
    """Returns the replicas, given the layers of each seed and the (R, M * T, K, P) codebooks of a product quantizer."""
    recipe = setup.recipe
    quantizer: Quantizer | None = SignQuantizer() if recipe.quantizer == "sign" else None
    if codebooks is not None:
        quantizer = ProductQuantizer(codebooks.clone().to(setup.device), recipe.codes_per_subvector)
    return CompressorBatch(list(layers) * len(setup.alphas), setup.device, quantizer)


def fit_initial_codebooks(setup: TrainingSetup, layers: Sequence[Sequence[Layer]]) -> torch.Tensor:
    """Fits (R, M * T, K, P) codebooks to the initial outputs of each seed."""
    recipe, vectors = setup.recipe, torch.from_numpy(setup.train.stored_vectors).to(setup.device)
    codebooks = []
    for seed_layers, seed in zip(layers, setup.seeds, strict=True):
        outputs = CompressorNetwork(seed_layers).to(setup.device).compress(vectors).cpu().numpy()
        codebooks.append(fit_codebooks(outputs, recipe.subvector_dim, seed, recipe.codes_per_subvector))
    return torch.stack(codebooks * len(setup.alphas))


def empty_layers(sizes: Sequence[int]) -> list[Layer]:
    """Returns layers of zeros between consecutive sizes."""
    return [(torch.zeros(outputs, inputs), torch.zeros(outputs)) for inputs, outputs in pairwise(sizes)]
