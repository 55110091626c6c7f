"""Trained runs as tables read them from the tracking store."""

from datetime import UTC, datetime, timedelta

from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.ablation_table import ComparisonKey, TrainedRun

KEY = ComparisonKey("data", "test", "encoder", "tanh", "mse")
START = datetime(2026, 1, 1, tzinfo=UTC)


def trained(spearman: float, *, key: ComparisonKey = KEY, hours: int = 0, on_test: bool = True, **recipe) -> TrainedRun:
    metrics = {"dev/spearman": spearman, "dev/mse": 0.1, "train/loss": 0.01}
    if on_test:
        metrics["test/spearman"] = spearman - 0.02
    parsed = Recipe(**recipe)
    name = f"{parsed.name}-{hours}"
    return TrainedRun(name, f"http://x/{name}", START + timedelta(hours=hours), parsed, key, "data", None, metrics)
