"""Splits recipes into batches that train together."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from typing import TypeVar

import torch

from twinsqueeze.recipe import Recipe
from twinsqueeze.utils.compute import resolve_device

T = TypeVar("T")
# Replicas per batch. On a CPU, more replicas exceed its caches and each takes longer.
MAX_BATCH_SIZE = {"cpu": 5, "cuda": 25}
# A worker process takes 0.5 GB, and threads wait for each other's Python code.
MAX_PARALLEL_BATCHES = 4


def num_parallel_batches(devices: Iterable[torch.device]) -> int:
    """Returns how many batches to train at once: one per core of a CPU, up to `MAX_PARALLEL_BATCHES`."""
    if any(device.type != "cpu" for device in devices):
        return 1
    return min(torch.get_num_threads(), MAX_PARALLEL_BATCHES)


def plan_batches(recipes: Sequence[Recipe], *, at_once: int = 1, max_size: int | None = None) -> list[list[Recipe]]:
    """Splits distinct recipes into batches for `train_replicas`, of every alpha with every seed.

    Alphas of one seed stay together, since they share its draws. The largest batches come first, so that few cores are
    idle at the end, and their number is a multiple of `at_once` if there are enough recipes.
    """
    shapes: dict[Recipe, dict[int, list[float]]] = {}
    for recipe in recipes:
        shape = recipe.model_copy(update={"alpha": 0.0, "seed": 0})
        shapes.setdefault(shape, {}).setdefault(recipe.seed, []).append(recipe.alpha)
    batches = []
    for shape, alphas_by_seed in shapes.items():
        limit = max_size or MAX_BATCH_SIZE[resolve_device(shape.device).type]
        seeds_by_alphas: dict[tuple[float, ...], list[int]] = {}
        for seed, seed_alphas in alphas_by_seed.items():
            seeds_by_alphas.setdefault(tuple(sorted(seed_alphas)), []).append(seed)
        for all_alphas, all_seeds in seeds_by_alphas.items():
            batches += [
                [shape.model_copy(update={"alpha": alpha, "seed": seed}) for alpha, seed in product(alphas, seeds)]
                for alphas in _split_evenly(all_alphas, limit)
                for seeds in _split_evenly(sorted(all_seeds), limit // len(alphas))
            ]
    batches.sort(key=len, reverse=True)
    while len(batches) % at_once and len(batches[0]) > 1:
        batches = sorted([*batches[1:], *_split_in_two(batches[0])], key=len, reverse=True)
    return batches


def _split_in_two(batch: Sequence[Recipe]) -> list[list[Recipe]]:
    """Splits a batch between its seeds, or between its alphas if it has one seed."""
    field = "seed" if len({recipe.seed for recipe in batch}) > 1 else "alpha"
    values = sorted({getattr(recipe, field) for recipe in batch})
    first = values[: len(values) // 2]
    return [[recipe for recipe in batch if (getattr(recipe, field) in first) == half] for half in (True, False)]


def _split_evenly(values: Sequence[T], max_size: int) -> Iterator[Sequence[T]]:
    """Yields the fewest slices of at most `max_size` values, of similar lengths."""
    count = math.ceil(len(values) / max_size)
    bounds = [len(values) * i // count for i in range(count + 1)]
    return (values[start:end] for start, end in pairwise(bounds))
