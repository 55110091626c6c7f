"""Compares training with fitting as a collection grows, and writes results/growth.csv.

    python -m scripts.make_growth DATASET [--sizes 1000,3000,10000] [--seeds 3]

DATASET has queries with the passages that answer them. Of each size, so many train queries are drawn at random. They
and their passages are all that is known: compressors and baselines are fitted on the same vectors. The queries of dev
then search all passages. The best baseline of each size is the one with the highest nDCG@10 on dev.
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from scripts.docs_macros import RESULTS
from twinsqueeze.api import compare_recipes
from twinsqueeze.data.dataset import Dataset, RowSplit
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.recipe import Recipe

METRIC = "dev/ndcg_at_10"
PRESETS = {32: ("pairs", "vectors"), 16: ("pairs-16", "vectors-16")}
TITLES = ("train queries", "vectors", "bytes", "with pairs", "vectors alone", "best baseline", "its name")


def draw_queries(split: RowSplit, number: int) -> RowSplit:
    """Returns some queries of a split with their passages, which are all that is searched."""
    queries = np.random.default_rng(0).permutation(np.unique(split.first))[:number]
    of_queries = np.isin(split.first, queries)
    known, rows = np.unique(np.concatenate([split.first[of_queries], split.second[of_queries]]), return_inverse=True)
    first, second = np.split(rows.astype(np.int64), 2)
    texts = split.rows[known] if isinstance(split.rows, np.ndarray) else [split.rows[i] for i in known]
    return RowSplit(texts, first, second, split.relevance[of_queries])


def measure(data: Dataset, seeds: int) -> Iterator[list[str]]:
    """Yields a row of the table for each number of bytes."""
    train = data.splits["train"]
    assert isinstance(train, RowSplit)
    for size, presets in PRESETS.items():
        recipes = [Recipe.preset(name, seed=seed, device="cpu") for name in presets for seed in range(seeds)]
        table = compare_recipes(recipes, data, progress=True)
        trained = table[table["kind"] == "compressor"]
        scores = [trained[METRIC].iloc[i * seeds : (i + 1) * seeds] for i in range(len(presets))]
        baselines = table[table["kind"] == "baseline"].set_index("name")[["bytes", METRIC]]
        fitted = baselines[METRIC][baselines["bytes"] == size]
        yield [
            f"{len(np.unique(train.first)):,}",
            f"{len(train.rows):,}",
            str(size),
            *(format_scores(each) for each in scores),
            f"{fitted.max():.4f}",
            str(fitted.idxmax()).partition(",")[0],
        ]


def format_scores(scores: pd.Series) -> str:
    """Returns mean and standard deviation over seeds."""
    return f"{scores.mean():.4f} ± {scores.std():.4f}"


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="queries with passages, as for the command main")
    parser.add_argument("--sizes", default="1000,3000,10000", help="train queries, before all (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each recipe (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(2)
    data = load_dataset(options.dataset, splits=("train", "dev"))
    train = data.splits["train"]
    assert isinstance(train, RowSplit)
    sizes = [*map(int, options.sizes.split(",")), len(np.unique(train.first))]
    with (RESULTS / "growth.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TITLES)
        for size in sizes:
            part = replace(data, splits={**data.splits, "train": draw_queries(train, size)})
            for row in measure(part, options.seeds):
                writer.writerow(row)
                file.flush()


if __name__ == "__main__":
    main()
