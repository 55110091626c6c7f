"""Compares trained models with the strongest baseline of their size and writes results/strongest_baselines.csv.

    python -m scripts.make_strongest_baselines MODEL... [--dataset stsb]

The strongest baseline has the highest Spearman on dev with float queries. The difference on test is a mean over the
models of a size, which may be seeds, and over the rotations of the baseline. Its 95% interval is from a paired
bootstrap over pairs. Each sentence of a pair is the query once.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from scripts.docs_macros import RESULTS
from twinsqueeze.data.encoder import DEFAULT_ENCODER, resolve_encoder
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.evaluation.baselines import Baseline, BaselineTask, full_dim_encodings, quantized_encodings
from twinsqueeze.evaluation.bootstrap import PairBootstrap
from twinsqueeze.evaluation.metrics import score
from twinsqueeze.experiment_data import ExperimentData, prepare_data
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.recipe import FLOAT_QUERIES, Recipe
from twinsqueeze.registry.model_loader import resolve_model
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.console import TERMINAL
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.similarity import pair_cosines

SPLITS = ("dev", "test")
TITLES = (
    "model",
    "bytes",
    "seeds",
    "strongest baseline",
    "test Spearman",
    "of the baseline",
    "difference",
    "95% interval",
)


def find_strongest(data: ExperimentData, recipe: Recipe) -> Baseline:
    """Returns the baseline of a recipe's size with the highest Spearman on dev."""
    train = data.training_pairs(recipe)
    task = BaselineTask(train, {split: data.evaluator(split, recipe.label_transform) for split in SPLITS})
    scores = {row.name: row.scores["dev"]["spearman"] for row in data.baselines(SPLITS, recipe, recipe.dim)}
    encodings = chain(
        full_dim_encodings(task, DiskCache(), TERMINAL.progress),
        quantized_encodings(task.unlabeled_quantizers, task, DiskCache(), TERMINAL.progress),
    )
    same_size = [each for each in encodings if each.bytes == recipe.bytes_per_vector]
    return max((each for each in same_size if FLOAT_QUERIES in each.name), key=lambda each: scores[each.name])


def pair_cosines_both_ways(data: ExperimentData, stored: FloatArray, queries: FloatArray) -> list[FloatArray]:
    """Returns the cosines of the test pairs, (P,), with the first and with the second sentence as the query."""
    split = data.encoded["test"]
    return [
        pair_cosines(stored, *order, queries) for order in ((split.first, split.second), (split.second, split.first))
    ]


def compare(data: ExperimentData, networks: Sequence[CompressorNetwork], recipe: Recipe) -> list[str]:
    """Returns a row of the table for networks of a recipe."""
    baseline, vectors = find_strongest(data, recipe), data.encoded["test"].embeddings
    transforms = zip(baseline.transforms, baseline.query_transforms, strict=True)
    theirs = [pair_cosines_both_ways(data, stored(vectors), query(vectors)) for stored, query in transforms]
    ours = []
    for network in networks:
        tensors = (compress(torch.from_numpy(vectors)) for compress in (network.compress_as_stored, network.compress))
        ours.append(pair_cosines_both_ways(data, *(each.numpy() for each in tensors)))
    labels = data.encoded["test"].scores
    cosines, baseline_cosines = np.concatenate(ours), np.concatenate(theirs)
    difference, interval = PairBootstrap(labels).difference(cosines, baseline_cosines, "spearman")
    means = [f"{np.mean(score(each, labels).spearman):.4f}" for each in (cosines, baseline_cosines)]
    name = baseline.name.partition(f", {FLOAT_QUERIES}")[0]
    model = f"`{recipe.name.partition('-a')[0]}`"
    shown = f"{difference:+.4f}", f"{interval.low:+.4f} to {interval.high:+.4f}"
    return [model, str(baseline.bytes), str(len(networks)), name, *means, *shown]


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a run id, a model URI or a folder, of any seed")
    parser.add_argument("--dataset", default="stsb", help="the Hub's, or a folder with STS-B (default: %(default)s)")
    options = parser.parse_args()
    data = prepare_data(load_dataset(options.dataset), resolve_encoder(DEFAULT_ENCODER), "cpu", reporter=TERMINAL)
    networks: dict[Recipe, list[CompressorNetwork]] = defaultdict(list)
    for model in options.models:
        network, metadata = read_checkpoint(resolve_model(model).checkpoint, model)
        assert metadata, f"{model} does not record its recipe"
        networks[metadata.recipe.model_copy(update={"seed": 0})].append(network)
    rows = [TITLES, *(compare(data, group, recipe) for recipe, group in networks.items())]
    with (RESULTS / "strongest_baselines.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
