"""Recipes of every architecture, quantizer, initialization and teacher, and pairs to train them on."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

from tests.helpers.pairs import random_pairs, random_queries
from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.recipe import Recipe

LINEAR = {"architecture": "linear", "loss": "pearson", "weight_decay": 0.01, "lr_schedule": "cosine"}
TEACHER = LINEAR | {"init": "teacher", "teacher": "projection", "neighbor_weight": 1}
PRODUCT = {"quantizer": "product"}
RESIDUAL = PRODUCT | {"codes_per_subvector": 2}
SIGN = {"quantizer": "sign"}
SEARCH = {
    "architecture": "linear", "neighbor_weight": 1, "num_neighbors": 2, "num_candidates": 30, "batch_size": 32,
    "codebook_lr": 1e-3, "lr_schedule": "linear",
}  # fmt: skip
# Vector registers hold 8 or 16 floats, so that 10, 20 and 33 dimensions do not fill all of them.
RECIPES: dict[str, dict[str, Any]] = {
    "mlp": {"dim": 10, "lr": 1e-3},
    "product-neighbors": TEACHER | PRODUCT | {"dim": 20, "num_neighbors": 3},
    "linear": LINEAR | {"dim": 33, "neighbor_weight": 0.1},
    "search": SEARCH | PRODUCT | {"dim": 24, "loss": "none", "init": "teacher", "teacher": "projection"},
    "mlp33": {"dim": 33},
    "mlp128": {"dim": 128},
    "linear-neighbors": TEACHER | {"dim": 32, "num_neighbors": 3},
    "sign": LINEAR | SIGN | {"dim": 256, "neighbor_weight": 0.1, "batch_size": 64},
    "product-pca": LINEAR | PRODUCT | {"dim": 12, "subvector_dim": 6, "neighbor_weight": 1, "init": "pca"},
    "product-encoder": LINEAR | PRODUCT | {"dim": 48, "subvector_dim": 8, "neighbor_weight": 1, "init": "teacher"},
    "infonce-sign": SEARCH | SIGN | {"dim": 16, "loss": "infonce", "neighbor_weight": 0.5},
    "residual": SEARCH
    | RESIDUAL
    | {"dim": 24, "loss": "none", "init": "pca", "teacher": "whitened", "teacher_whitening": 0.1},
}


def make_recipes(alphas: Iterable[float] = (0.75,), seeds: Iterable[int] = (3,), **fields: Any) -> list[Recipe]:
    """Returns the recipes of every alpha with every seed: short trainings to 8 dimensions unless `fields` say more."""
    shared = {"dim": 8, "epochs": 3, "device": "cpu"} | fields
    return [Recipe.parse(shared | {"alpha": alpha, "seed": seed}) for alpha, seed in product(alphas, seeds)]


def make_pairs(dimension: int, *, loss: str = "mse", **_: Any) -> tuple[EncodedSplit, EncodedSplit]:
    """Returns train and dev: scored pairs with 50 sentences in no pair, or what a loss without scores needs."""
    if loss in {"infonce", "none"}:
        return random_queries(150, dimension, seed=1), random_queries(40, dimension, seed=2)
    train = random_pairs(pairs=150, sentences=120, dimension=dimension, seed=1)
    unpaired = random_pairs(pairs=2, sentences=50, dimension=dimension, seed=3).embeddings
    return replace(train, unpaired=unpaired), random_pairs(pairs=60, sentences=70, dimension=dimension, seed=2)
