"""Selects the best run of an experiment and decides whether it replaces the champion."""

from collections.abc import Callable
from dataclasses import dataclass, field

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run

from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.bootstrap import Interval, PairBootstrap
from twinsqueeze.evaluation.metrics import score as score_pairs
from twinsqueeze.evaluation.query_bootstrap import mean_difference_interval
from twinsqueeze.registry import model_registry
from twinsqueeze.registry.model_card import ModelSelection, metric_sign
from twinsqueeze.registry.model_registry import Version
from twinsqueeze.reporting import run_loader
from twinsqueeze.reporting.ablation_table import TrainedRun, capitalized_name, selection_metric
from twinsqueeze.task import NO_ENCODER, SIMILARITY, TASKS, Task
from twinsqueeze.tracking.tags import BASE_RUN, TASK, TRAINED_RUN
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.text import describe_error

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
    dev_digest = run_loader.find_input_digest(best.run_id, "dev")
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


def compare_with_champion(
    selection: ModelSelection, champion: Version | None, evaluate_champion: Callable[[Version], pd.DataFrame]
) -> PromotionDecision:
    """Promote a run if the 95% interval of its difference to the champion, a paired bootstrap on dev, shows a gain.

    `evaluate_champion` returns the champion's predictions on the run's dev data. It is called if the champion was
    selected on other data and no evaluation on these is recorded.
    """
    if champion is None:
        return PromotionDecision(promoted=True, reason="There was no champion to compare with.")
    task, unit = selection.run.task, selection.run.task.unit
    same_labels = champion.tags.get(model_registry.LABEL_TRANSFORM) == selection.run.recipe.label_transform
    obstacle = None
    if task == SIMILARITY and selection.metric != "dev/spearman" and not same_labels:
        obstacle = "was selected on other labels: no comparison is possible."
    elif champion.tags.get(model_registry.DEV_DIGEST) == selection.dev_digest:
        champion_predictions = _read_dev_predictions(champion.tags[TRAINED_RUN])
    else:
        try:
            champion_predictions = _predictions_on_other_data(selection, champion, evaluate_champion)
        except InputError as error:
            obstacle = f"was selected on other dev {unit}, and no comparison is possible: {error}."
    if obstacle:
        return PromotionDecision(promoted=False, reason=f"The champion, version {champion.number}, {obstacle}")
    return _decide(selection, champion, _read_dev_predictions(selection.run.run_id), champion_predictions)


def _predictions_on_other_data(
    selection: ModelSelection, champion: Version, evaluate_champion: Callable[[Version], pd.DataFrame]
) -> pd.DataFrame:
    """The champion's predictions on the dev data of a run: the recorded ones, or those of a new evaluation.

    Raises an `InputError` if they would not be a fair comparison: for data of another kind than the champion's, unless
    the run started from the champion.
    """
    candidate, trained = (_get_run(run_id) for run_id in (selection.run.run_id, champion.tags[TRAINED_RUN]))
    champion_task = TASKS[trained.data.tags.get(TASK, SIMILARITY.name)]
    if selection.run.task != champion_task and candidate.data.params.get(BASE_RUN) != trained.info.run_id:
        raise InputError(f"it was trained on {champion_task.data}")
    own, theirs = (run.data.params["encoder_fingerprint"] for run in (candidate, trained))
    fingerprint = own if NO_ENCODER in (own, theirs) else theirs  # as `evaluate` encodes
    recorded = run_loader.find_evaluation(trained.info.run_id, selection.dev_digest, fingerprint)
    return _read_dev_predictions(recorded) if recorded else evaluate_champion(champion)


def _get_run(run_id: str) -> Run:
    try:
        return mlflow.MlflowClient().get_run(run_id)
    except mlflow.MlflowException as error:
        raise InputError(f"run {run_id} can't be read: {describe_error(error)}") from error


def _decide(
    selection: ModelSelection, champion: Version, predictions: pd.DataFrame, champion_predictions: pd.DataFrame
) -> PromotionDecision:
    score, task = selection.metric.removeprefix("dev/"), selection.run.task
    (own, other), interval = _compare_scores(predictions, champion_predictions, score, task)
    difference = own - other
    gain_low, gain_high = sorted(metric_sign(selection.metric) * end for end in (interval.low, interval.high))
    promoted = gain_low > 0
    outcome = "better" if promoted else f"{'worse' if gain_high < 0 else 'not significant'}, so the champion stays"
    reason = (
        f"{capitalized_name(score)} on dev: {own:.4f}; champion (version {champion.number}): {other:.4f}; difference "
        f"{difference:+.4f}, 95% interval {interval.low:+.4f} to {interval.high:+.4f} (paired bootstrap over "
        f"{task.unit}): {outcome}."
    )
    metrics = {"gate/difference": difference, "gate/low": interval.low, "gate/high": interval.high}
    return PromotionDecision(promoted, reason, metrics | {"gate/score": own, "gate/champion_score": other})


def _compare_scores(
    candidate: pd.DataFrame, champion: pd.DataFrame, score: str, task: Task
) -> tuple[tuple[float, float], Interval]:
    """A score of the candidate's and of the champion's predictions, and the 95% interval of their difference."""
    if task == SIMILARITY:
        labels, *predicted = candidate["label"].to_numpy(), candidate["predicted"], champion["predicted"]
        own, other = (each.to_numpy() for each in predicted)
        _, interval = PairBootstrap(labels).difference(own, other, score)
        return (_score(own, labels, score), _score(other, labels, score)), interval
    own, other = candidate[score].to_numpy(), champion[score].to_numpy()
    return (float(np.mean(own)), float(np.mean(other))), mean_difference_interval(own, other)


def _score(predicted: FloatArray, labels: FloatArray, name: str) -> float:
    return float(getattr(score_pairs(predicted, labels), name))


def _read_dev_predictions(run_id: str) -> pd.DataFrame:
    predictions = run_loader.read_predictions(run_id)
    return predictions[predictions["split"] == "dev"]
