"""Cuts recipes into batches that train together."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from typing import TypeVar

import torch

from twinsqueeze.recipe import Recipe
from twinsqueeze.utils.device import resolve_device

T = TypeVar("T")
# Replicas that train together at most: on a CPU more of them leave its caches and cost more each.
MAX_BATCH = {"cpu": 5, "cuda": 25}
# Batches that train at once on a CPU, at most: threads take turns at Python, processes take 0.5 GB each.
MAX_PARALLEL_BATCHES = 4


def num_parallel_batches(devices: Iterable[torch.device]) -> int:
    """How many batches are to train at once: on a CPU one for each core, up to `MAX_PARALLEL_BATCHES`."""
    if any(device.type != "cpu" for device in devices):
        return 1
    return min(torch.get_num_threads(), MAX_PARALLEL_BATCHES)


def plan_batches(recipes: Sequence[Recipe], *, at_once: int = 1, largest: int | None = None) -> list[list[Recipe]]:
    """Cuts recipes into sets that `train_replicas` can train: of one shape, every alpha of a set with every seed of it.

    Seeds that want the same alphas stay together as far as they fit, and the alphas of a seed, which share its draws.
    The largest sets come first, so that what trains last, and may leave cores with nothing to do, is short.

    Args:
        recipes: Any, each once.
        at_once: How many sets train at once: the number of sets is a multiple of it where there are recipes enough.
        largest: Replicas in a set at most; None for what suits the device.
    """
    shapes: dict[Recipe, dict[int, list[float]]] = {}
    for recipe in recipes:
        shape = recipe.model_copy(update={"alpha": 0.0, "seed": 0})
        shapes.setdefault(shape, {}).setdefault(recipe.seed, []).append(recipe.alpha)
    cut = []
    for shape, alphas_of in shapes.items():
        most = largest or MAX_BATCH[resolve_device(shape.device).type]
        seeds_of: dict[tuple[float, ...], list[int]] = {}
        for seed, alphas in alphas_of.items():
            seeds_of.setdefault(tuple(sorted(alphas)), []).append(seed)
        for wanted, seeds in seeds_of.items():
            cut += [
                [shape.model_copy(update={"alpha": alpha, "seed": seed}) for alpha, seed in product(some_alphas, some)]
                for some_alphas in _even_parts(wanted, most)
                for some in _even_parts(sorted(seeds), most // len(some_alphas))
            ]
    cut.sort(key=len, reverse=True)
    while len(cut) % at_once and len(cut[0]) > 1:
        cut = sorted([*cut[1:], *_split_in_two(cut[0])], key=len, reverse=True)
    return cut


def _split_in_two(batch: Sequence[Recipe]) -> list[list[Recipe]]:
    """A set cut between its seeds, or between its alphas where it has one seed."""
    seeds = sorted({recipe.seed for recipe in batch})
    alphas = sorted({recipe.alpha for recipe in batch})
    if len(seeds) > 1:
        first = set(seeds[: len(seeds) // 2])
        return [[r for r in batch if (r.seed in first) == wanted] for wanted in (True, False)]
    middle = alphas[len(alphas) // 2]
    return [[r for r in batch if (r.alpha < middle) == wanted] for wanted in (True, False)]


def _even_parts(values: Sequence[T], largest: int) -> Iterator[Sequence[T]]:
    """`values` in as few parts of at most `largest` as will do, all of about the same length."""
    count = math.ceil(len(values) / largest)
    bounds = [len(values) * i // count for i in range(count + 1)]
    return (values[start:end] for start, end in pairwise(bounds))
