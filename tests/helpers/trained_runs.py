"""Trained runs as tables read them from the tracking store."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.ablation_table import ComparisonKey, TrainedRun, metric_name
from twinsqueeze.task import SIMILARITY, Task

KEY = ComparisonKey("data", "test", "encoder", "tanh", "mse")
SCORE_BY_PRECISION = {"float32": 0.3, "int8": 0.2, "binary": 0.1, "asymmetric": 0.4}
START = datetime(2026, 1, 1, tzinfo=UTC)


def trained(spearman: float, *, key: ComparisonKey = KEY, hours: int = 0, on_test: bool = True, **recipe) -> TrainedRun:
    metrics = {"dev/spearman": spearman, "dev/mse": 0.1, "train/loss": 0.01}
    if on_test:
        metrics["test/spearman"] = spearman - 0.02
    parsed = Recipe(**recipe)
    name = f"{parsed.name}-{hours}"
    return TrainedRun(name, f"http://x/{name}", START + timedelta(hours=hours), parsed, key, "data", None, metrics)


def run_with_search_scores(spearman: float, **recipe):
    """A run whose search scores depend only on precision and seed."""
    run = trained(spearman, **recipe)
    scores = {
        metric_name(split, score, precision): value + run.recipe.seed / 100
        for precision, value in SCORE_BY_PRECISION.items()
        for split in ("dev", "test")
        for score in SIMILARITY.search_scores
    }
    return replace(run, metrics=scores | run.metrics)


def run_of_task(task: Task, score: float, **recipe) -> TrainedRun:
    """A run whose scores are all the same, in all precisions of tasks that search with float queries."""
    key = KEY._replace(label_transform="", loss="", task=task.name)
    metrics = {
        metric_name(split, name, precision): score
        for precision in ("float32", "int8", "binary")
        for split in ("dev", "test")
        for name in task.scores
    }
    run = trained(score, key=key, **recipe)
    return replace(run, metrics=metrics | {"train/loss": 0.01, "train/clean_loss": 0.005})
