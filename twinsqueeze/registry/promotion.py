"""Selects the best run of an experiment and decides whether it replaces the champion."""

from dataclasses import dataclass, field

import mlflow
import numpy as np
import pandas as pd

from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.bootstrap import Interval, PairBootstrap
from twinsqueeze.evaluation.query_bootstrap import mean_difference_interval
from twinsqueeze.registry import model_registry
from twinsqueeze.registry.model_card import ModelSelection, metric_sign
from twinsqueeze.registry.model_registry import Version
from twinsqueeze.reporting import run_loader
from twinsqueeze.reporting.ablation_table import COLUMN_NAMES, TrainedRun, selection_metric
from twinsqueeze.task import SIMILARITY, TASKS, Task
from twinsqueeze.tracking.tags import TRAINED_RUN

ANY_DATASET = "any"
# Stands for the selection score of the runs' task.
AUTO_METRIC = "auto"
METRICS = (AUTO_METRIC, *dict.fromkeys(f"dev/{score}" for task in TASKS.values() for score in task.interval_scores))


@dataclass(frozen=True)
class PromotionDecision:
    """Whether a candidate becomes the champion, the reason in words, and metrics of the comparison by name."""

    promoted: bool
    reason: str
    metrics: dict[str, float] = field(default_factory=dict)


def check_metric(metric: str) -> None:
    """Raise an `InputError` unless a metric can be used for selection of runs of some task."""
    if metric not in METRICS:
        reason = ": test is never used for selection" if metric.startswith("test/") else ""
        raise InputError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}{reason}")


def _resolve_metric(metric: str, task: Task) -> str:
    """The name of a metric that the runs of a task have; raise an `InputError` if they do not have it."""
    metrics = [f"dev/{score}" for score in task.interval_scores]
    if metric not in {AUTO_METRIC, *metrics}:
        raise InputError(
            f"metric must be one of {AUTO_METRIC}, {', '.join(metrics)} for {task.name} runs, not {metric!r}"
        )
    return selection_metric(task) if metric == AUTO_METRIC else metric


def select_best_run(experiment: str, metric: str, dataset: str) -> ModelSelection:
    """Select the recipe with the best mean over seeds, then its best seed."""
    runs = _load_comparable_runs(experiment, dataset)
    metric = _resolve_metric(metric, runs[0].task)
    by_labels = metric not in {selection_metric(task) for task in TASKS.values()}
    if by_labels and len({run.recipe.label_transform for run in runs}) > 1:
        raise InputError(f"runs with different label transforms can't be compared by {metric}: use dev/spearman")
    tables, _ = run_loader.load_tables(runs)
    sign = metric_sign(metric)
    candidates = [(table, row) for table in tables for row in table.rows]
    table, row = max(candidates, key=lambda pair: (sign * pair[1].scores[metric].mean, len(pair[1].runs)))
    best = max(row.runs, key=lambda run: sign * run.metrics[metric])
    inputs = mlflow.MlflowClient().get_run(best.run_id).inputs
    recorded = inputs.dataset_inputs if inputs else []
    dev_digest = next((item.dataset.digest for item in recorded if "dev" in {tag.value for tag in item.tags}), "")
    return ModelSelection(metric, row, best, dev_digest, len(candidates), table.baselines)


def _load_comparable_runs(experiment: str, dataset: str) -> list[TrainedRun]:
    _, finished, _ = run_loader.load_experiment(experiment)
    several = len({run.task for run in finished}) > 1
    names = ", ".join(sorted({run.dataset + f" ({run.task.name})" * several for run in finished}))
    runs = [run for run in finished if dataset in {ANY_DATASET, run.dataset}]
    if not runs:
        raise InputError(f"no finished run on dataset {dataset!r}: the experiment has runs on {names}")
    if len({(run.comparison_key.dataset_digest, run.task) for run in runs}) > 1:
        raise InputError(
            f"the experiment has runs on different data ({names}), which can't be compared: pass --dataset, or another "
            "experiment if the data have changed"
        )
    return runs


def compare_with_champion(selection: ModelSelection, champion: Version | None) -> PromotionDecision:
    """Promote a run if the 95% interval of its difference to the champion, a paired bootstrap on dev, shows a gain."""
    if champion is None:
        return PromotionDecision(promoted=True, reason="There was no champion to compare with.")
    score, task = selection.metric.removeprefix("dev/"), selection.run.task
    label_transform = selection.run.recipe.label_transform
    same_data = champion.tags.get(model_registry.DEV_DIGEST) == selection.dev_digest
    same_labels = (
        score == "spearman"
        or task != SIMILARITY
        or champion.tags.get(model_registry.LABEL_TRANSFORM) == label_transform
    )
    if not (same_data and same_labels):
        obstacle = "other labels" if same_data else f"other dev {task.unit}"
        reason = f"The champion, version {champion.number}, was selected on {obstacle}: no comparison is possible."
        return PromotionDecision(promoted=False, reason=reason)
    tables = [_read_dev_predictions(run_id) for run_id in (selection.run.run_id, champion.tags[TRAINED_RUN])]
    difference, interval = _difference(tables[0], tables[1], score, task)
    gain_low, gain_high = sorted(metric_sign(selection.metric) * end for end in (interval.low, interval.high))
    promoted = gain_low > 0
    outcome = "better" if promoted else f"{'worse' if gain_high < 0 else 'not significant'}, so the champion stays"
    reason = (
        f"{COLUMN_NAMES[score]} on dev, difference to the champion (version {champion.number}): {difference:+.4f}, 95% "
        f"interval {interval.low:+.4f} to {interval.high:+.4f} (paired bootstrap over {task.unit}): {outcome}."
    )
    metrics = {"gate/difference": difference, "gate/low": interval.low, "gate/high": interval.high}
    return PromotionDecision(promoted, reason, metrics)


def _difference(candidate: pd.DataFrame, champion: pd.DataFrame, score: str, task: Task) -> tuple[float, Interval]:
    """A score of the candidate's predictions minus that of the champion's, with its 95% interval."""
    if task == SIMILARITY:
        bootstrap = PairBootstrap(candidate["label"].to_numpy())
        return bootstrap.difference(candidate["predicted"].to_numpy(), champion["predicted"].to_numpy(), score)
    values, baseline = candidate[score].to_numpy(), champion[score].to_numpy()
    return float(np.mean(values) - np.mean(baseline)), mean_difference_interval(values, baseline)


def _read_dev_predictions(run_id: str) -> pd.DataFrame:
    predictions = run_loader.read_predictions(run_id)
    return predictions[predictions["split"] == "dev"]
