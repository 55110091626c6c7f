"""Scores every baseline on STS-B and writes experiments/results/baselines/table.csv, with columns of `compare`.

    python -m scripts.make_baselines [--dataset stsb]

The table does not depend on any training. Rows that depend on a dimension are there for every size in DIMENSIONS.
"""

import argparse

import pandas as pd

from scripts.docs_macros import RESULTS
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.experiment_data import prepare_data
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.ablation_table import metric_name
from twinsqueeze.utils.console import TERMINAL

SPLITS = ("dev", "test")
DIMENSIONS = (32, 64, 128, 256)


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="stsb", help="the Hub's, or a folder with STS-B (default: %(default)s)")
    dataset = load_dataset(parser.parse_args().dataset)
    recipe = Recipe.preset("best")
    data = prepare_data(dataset, resolve_encoder(recipe.encoder), "cpu", reporter=TERMINAL)
    rows = {}
    for dim in DIMENSIONS:
        for baseline in data.baselines(SPLITS, recipe, dim):
            row = {"model": baseline.name, "bytes": baseline.bytes, "dim": baseline.dim, "draws": baseline.draws}
            for split, scores in baseline.scores.items():
                row |= {metric_name(split, name): round(value, 6) for name, value in scores.items()}
            rows[baseline.name] = row
    path = RESULTS / "baselines" / "table.csv"
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows.values()).to_csv(path, index=False, lineterminator="\n")
    print(path)


if __name__ == "__main__":
    main()
