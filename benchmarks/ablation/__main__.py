"""Speed of a grid relative to one run after the other: `python -m benchmarks.ablation --dataset stsb`.

The grid is `twinsqueeze ablation` from an empty cache to the table, in this process so that its parts can be timed. It
then runs again with cached baselines, which the plain script does not compute. The training itself is timed separately,
on one core. The plain script encodes the sentences, trains with a DataLoader and `torch.optim.Adam`, measures dev after
every epoch with SciPy, plots the figures, and logs to MLflow. One run of it is timed with a few epochs, before and
after the grid, and scaled to the grid's runs and epochs, without imports. This is a package's main module because
spawned workers import any other main module.
"""

import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, chdir, closing, contextmanager
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import mlflow
import numpy as np
import torch
from scipy import stats
from sentence_transformers import SentenceTransformer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.ablation.lanes import Lanes, load_demo_pairs, make_trainer
from benchmarks.results import report
from twinsqueeze import experiment, experiment_data
from twinsqueeze.commands import ablation, run_recording
from twinsqueeze.data.dataset import NO_ROWS
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs, scores_to_labels
from twinsqueeze.evaluation import baselines, faiss_baselines
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.grid import load_grid
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting import figure_pool, run_plots
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.training import batching, grid_trainer, loop
from twinsqueeze.training.batching import num_parallel_batches, plan_batches
from twinsqueeze.training.optimizer import FlatAdam
from twinsqueeze.training.trainer import BatchedTrainer
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.compute import map_threaded
from twinsqueeze.utils.disk_cache import DiskCache

ONCE = "baselines, once for the data"
WAITING = "waiting for trainings"
Parts = list[tuple[str, Any, tuple[str, ...]]]
OF_A_GRID: Parts = [
    ("encoding", experiment_data, ("embed_splits",)),
    (ONCE, faiss_baselines, ("_fit_all",)),
    (ONCE, baselines, ("score_baselines",)),
    ("models", run_recording, ("log_compressor",)),
    ("figures: waiting for them", figure_pool, ("_wait_for_png",)),
    ("scores and intervals", Evaluator, ("__call__",)),
    ("scores and intervals", experiment, ("pair_losses",)),
    (
        "MLflow: the rest",
        RunLogger,
        ("log_params", "set_tags", "log_input", "log_table", "log_artifacts"),
    ),
]
OF_A_TRAINING: Parts = [
    ("drawing and gathering", BatchedTrainer, ("_noisy_vectors",)),
    ("Adam", FlatAdam, ("step",)),
    ("the rest of the steps", BatchedTrainer, ("_step",)),
    ("orders, curves", loop, ("train_replicas",)),
    ("dev metrics and clean loss", loop._Run, ("train_epoch",)),
]


@contextmanager
def timed(parts: Parts) -> Iterator[dict[str, float]]:
    """Yields the seconds of each part, without those of other parts inside it."""
    seconds: dict[str, float] = defaultdict(float)
    inner = [0.0]

    def timer(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - start
                seconds[part] += took - inner.pop()
                inner[-1] += took

        return run

    def time_waiting(results: Callable[..., Generator[Any]]) -> Callable[..., Generator[Any]]:
        """Wraps a generator to time the waiting for its results."""

        @wraps(results)
        def run(*arguments: Any) -> Generator[Any]:
            with closing(results(*arguments)) as found:
                while True:
                    try:
                        result = timer(WAITING, next)(found)
                    except StopIteration:
                        return
                    yield result

        return run

    with ExitStack() as patches:
        for part, owner, names in parts:
            for name in names:
                patches.enter_context(patch.object(owner, name, timer(part, getattr(owner, name))))
        patches.enter_context(patch.object(grid_trainer, "map_threaded", time_waiting(map_threaded)))
        yield seconds


def plain_run(recipe: Recipe, epochs: int) -> tuple[float, float]:
    """Returns the seconds of an epoch, and of everything else, of the plain script."""
    start = time.perf_counter()
    data = {split: pairs.columns(NO_ROWS) for split, pairs in load_pairs(recipe.dataset).splits.items()}
    encoder = SentenceTransformer(str(resolve_encoder(recipe.encoder).folder), device="cpu")
    vectors = {
        split: [torch.from_numpy(encoder.encode(columns[name])) for name in ("sentence1", "sentence2")]
        for split, columns in data.items()
    }
    transform = recipe.label_transform
    labels = {split: scores_to_labels(np.asarray(columns["score"]), transform) for split, columns in data.items()}
    torch.manual_seed(recipe.seed)
    dimension = vectors["train"][0].shape[1]
    model = nn.Sequential(
        nn.Linear(dimension, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, recipe.dim)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    pairs = TensorDataset(*vectors["train"], torch.from_numpy(labels["train"].astype(np.float32)))
    loader = DataLoader(pairs, batch_size=recipe.batch_size, shuffle=True)
    scale = recipe.alpha / math.sqrt(dimension)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + (torch.rand_like(x) * 2 - 1) * scale

    def predict(split: str) -> FloatArray:
        with torch.no_grad():
            return functional.cosine_similarity(*(model(x) for x in vectors[split])).numpy()

    took = []
    history: dict[str, list[float]] = defaultdict(list)
    with mlflow.start_run():
        mlflow.log_params(recipe.model_dump())
        for epoch in range(epochs):
            begin = time.perf_counter()
            losses = []
            for first, second, label in loader:
                loss = functional.mse_loss(
                    functional.cosine_similarity(model(noisy(first)), model(noisy(second))), label
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            dev_cosines = predict("dev")
            error = dev_cosines - labels["dev"]
            history["loss"].append(float(np.mean(losses)))
            history["mse"].append(float(np.square(error).mean()))
            history["mae"].append(float(np.abs(error).mean()))
            history["pearson"].append(stats.pearsonr(dev_cosines, labels["dev"])[0])
            history["spearman"].append(stats.spearmanr(dev_cosines, labels["dev"])[0])
            mlflow.log_metrics({name: values[-1] for name, values in history.items()}, step=epoch)
            took.append(time.perf_counter() - begin)
        predicted = {split: predict(split) for split in ("train", "dev", "test")}
        for split in ("dev", "test"):
            mlflow.log_metric(f"final/{split}", stats.spearmanr(predicted[split], labels[split])[0])
        curves = {name: np.array(values) for name, values in history.items()}
        mlflow.log_figure(run_plots.plot_loss_curves(curves["loss"], curves["loss"], curves), "loss.png")
        later = ("dev", "test")
        scatter = run_plots.plot_run_predictions({split: (labels[split], predicted[split]) for split in later}, "tanh")
        mlflow.log_figure(scatter, "scatter.png")
        errors = {split: np.square(predicted[split] - labels[split]) for split in ("train", "dev")}
        mlflow.log_figure(run_plots.plot_run_losses(errors), "losses.png")
        mlflow.pytorch.log_state_dict(model.state_dict(), "model")
    epoch_seconds = statistics.median(took)
    return epoch_seconds, time.perf_counter() - start - sum(took)


@click.command()
@click.option("--dataset", default="stsb", show_default=True, help="As for `twinsqueeze ablation`.")
@click.option("--grid", default="experiments/published.yaml", show_default=True, help="A grid of recipes.")
@click.option("--epochs", default=5, show_default=True, help="Epochs of the plain script that are timed.")
def main(dataset: str, grid: str, epochs: int) -> None:
    """Prints the seconds of both, their ratio, and the parts of the grid."""
    recipes = load_grid(grid, dataset=str(Path(dataset).resolve()) if Path(dataset).is_dir() else dataset)
    file = str(Path(grid).resolve())
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        os.environ |= {"TWINSQUEEZE_CACHE": str(Path(folder, "cache")), "TWINSQUEEZE_STATE": str(Path(folder, "state"))}
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.search_runs()  # creates the store, which is not timed
        # Before and after the grid, since the machine's speed changes within minutes.
        plain_runs = [plain_run(recipes[len(recipes) // 2], epochs)]
        with timed(OF_A_GRID) as seconds:
            start = time.perf_counter()
            ablation.run_ablation(file, recipes, ablation.AblationOptions())
            ours = time.perf_counter() - start
        same_work = _again_with_baselines(file, recipes[0].dataset)
        together = batching.MAX_BATCH_SIZE["cpu"]
        parts = _training_parts(recipes[0], together)
        seconds["everything else"] = ours - sum(seconds.values())
        plain_runs.append(plain_run(recipes[len(recipes) // 2], epochs))
    an_epoch, else_ = np.mean(plain_runs, axis=0)
    plain = sum(recipe.epochs * an_epoch + else_ for recipe in recipes)
    replicas = len(recipes)
    besides = ours - sum(seconds[part] for part in ("encoding", ONCE, WAITING))
    print(f"{replicas} trainings of {recipes[0].epochs} epochs, {torch.get_num_threads()} threads")
    print(
        f"one after the other  {plain:8.1f} s  (scaled from {epochs} epochs before and {epochs} after the grid: "
        f"{' and '.join(f'{epoch:.2f} s an epoch, {rest:.1f} s else' for epoch, rest in plain_runs)})"
    )
    print(f"together             {ours:8.1f} s")
    report("`published.yaml`, cold, against one run after the other", [plain / ours], "times as fast")
    print(f"with baselines there {same_work:8.1f} s  (which the plain script does not compute)")
    report("the same with cached baselines, which those runs lack", [plain / same_work], "times as fast")
    for part, took in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"  {part:<38} {took:7.1f} s  {took / ours:4.0%}")
    print(f"besides encoding, baselines and waiting for trainings: {besides / replicas:.2f} s a replica")
    print(f"an epoch of one of {together} replicas that train on one core: {1e3 * sum(parts.values()):.0f} ms")
    for part, took in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"  {part:<38} {1e3 * took:7.1f} ms {took / sum(parts.values()):4.0%}")
    _step_ratio()


def _again_with_baselines(grid: str, dataset: str) -> float:
    """Returns the seconds of the same grid with no cache but the baselines."""
    for file in DiskCache().folder.glob("embeddings-*"):
        file.unlink()
    start = time.perf_counter()
    ablation.run_ablation(grid, load_grid(grid, dataset=dataset), ablation.AblationOptions(force=True))
    return time.perf_counter() - start


def _training_parts(recipe: Recipe, replicas: int, epochs: int = 20) -> dict[str, float]:
    """Returns the seconds of an epoch per replica in a batch on one core, by part."""
    pairs = load_pairs(recipe.dataset, splits=("train", "dev"))
    encoded = experiment_data.prepare_data(pairs, resolve_encoder(recipe.encoder, "cpu"), "cpu").encoded
    recipes = [recipe.model_copy(update={"alpha": i / 4, "epochs": epochs}) for i in range(replicas)]
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    with timed(OF_A_TRAINING) as seconds:
        loop.train_replicas(recipes, encoded["train"], encoded["dev"], clean_loss_every=ablation.CLEAN_LOSS_EVERY)
    torch.set_num_threads(cores)
    return {part: took / replicas / epochs for part, took in seconds.items()}


def _step_ratio(alphas: int = 5, seeds: int = 5, rounds: int = 8, steps: int = 180) -> None:
    """Prints the time of a training step of all replicas relative to its matrix products alone.

    In one batch, and as a grid trains them, in parallel batches.
    """
    recipe = Recipe(dataset="demo", device="cpu")
    train = load_demo_pairs(recipe.encoder)
    replicas = alphas * seeds
    products = _products(replicas, 2 * recipe.batch_size, (train.dimension, 128, 64, recipe.dim))
    in_epoch = -(-len(train) // recipe.batch_size)
    epochs = steps // in_epoch
    recipes = [recipe.model_copy(update={"alpha": i / 4, "seed": s}) for i in range(alphas) for s in range(seeds)]
    at_once = num_parallel_batches([torch.device("cpu")])
    whole = make_trainer(recipes, train)
    seconds: dict[str, list[float]] = defaultdict(list)

    def train_whole() -> None:
        for _ in range(epochs):
            whole.train_epoch()

    def measure(name: str, work: Callable[[], object], share: float) -> None:
        begin = time.perf_counter()
        work()
        seconds[name].append((time.perf_counter() - begin) / share)

    # Every core trains every batch, so that none is idle.
    with Lanes(at_once, plan_batches(recipes, at_once=at_once)) as lanes:
        train_whole()
        lanes.train(1)
        for _ in range(rounds):
            measure("whole", train_whole, epochs * in_epoch)
            measure("split", lambda: lanes.train(epochs), at_once * epochs * in_epoch)
            measure("products", lambda: [products() for _ in range(steps)], steps)
    for name, what in (("whole", "in one batch"), ("split", f"in batches, {at_once} at once")):
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], seconds["products"], strict=True)]
        report(f"a step of {replicas} replicas {what}", ratios, "times the time of its matrix products alone")


def _products(replicas: int, rows: int, sizes: tuple[int, ...]) -> Callable[[], None]:
    """Returns a function that computes a step's matrix products, forward and backward, on random numbers."""
    layers = list(pairwise(sizes))
    weights = [torch.randn(replicas, out, into) for into, out in layers]
    inputs = [torch.randn(replicas, rows, into) for into, _ in layers]
    gradients = [torch.randn(replicas, rows, out) for _, out in layers]

    def step() -> None:
        for weight, values in zip(weights, inputs, strict=True):
            torch.bmm(values, weight.transpose(1, 2))
        for i, (weight, values, gradient) in enumerate(zip(weights, inputs, gradients, strict=True)):
            torch.bmm(gradient.transpose(1, 2), values)
            if i:
                torch.bmm(gradient, weight)

    return step


if __name__ == "__main__":
    main()
