from itertools import product

import numpy as np
import pytest
import torch

from tests.helpers.recipes import make_recipes
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.batching import num_parallel_batches, plan_batches


@pytest.mark.parametrize(
    ("device", "cores", "expected"), [("cpu", 2, 2), ("cpu", 1, 1), ("cpu", 64, 4), ("cuda", 8, 1)]
)
def test_number_of_parallel_batches(monkeypatch, device, cores, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert num_parallel_batches(map(torch.device, ["cpu", device])) == expected


@pytest.mark.parametrize(("max_size", "at_once"), [(1, 2), (4, 3), (25, 1), (25, 8), (60, 64)])
def test_any_grid_is_split_into_products_of_alphas_and_seeds_that_fit(max_size, at_once):
    """400 recipes of two shapes, some of them missing as after an interruption."""
    grid = [Recipe(alpha=a / 10, seed=s, dim=d) for a, s, d in product(range(10), range(20), (8, 16))]
    missing = np.random.default_rng(0).choice(len(grid), 37, replace=False)
    wanted = [recipe for i, recipe in enumerate(grid) if i not in missing]
    batches = plan_batches(wanted, at_once=at_once, max_size=max_size)
    assert max_size == 1 or len(batches) % at_once == 0
    assert sorted(r.digest for batch in batches for r in batch) == sorted(r.digest for r in wanted)
    sizes = [len(batch) for batch in batches]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= max_size
    for batch in batches:
        assert len({r.dim for r in batch}) == 1
        assert {(r.alpha, r.seed) for r in batch} == set(product({r.alpha for r in batch}, {r.seed for r in batch}))


@pytest.mark.parametrize(
    ("alphas", "seeds", "options", "sizes"),
    [
        (9, 10, {}, [5] * 10 + [4] * 10),  # 5 is the CPU's maximum; alphas of a seed stay together
        (9, 10, {"max_size": 25}, [18] * 5),
        (5, 5, {"max_size": 24}, [15, 10]),
        (5, 5, {"at_once": 4}, [5, 5, 3, 3, 3, 2, 2, 2]),
        (1, 5, {"at_once": 2}, [3, 2]),
    ],
)
def test_a_full_grid_is_split_evenly(alphas, seeds, options, sizes):
    batches = plan_batches(make_recipes(range(alphas), range(seeds)), **options)
    assert [len(batch) for batch in batches] == sizes
