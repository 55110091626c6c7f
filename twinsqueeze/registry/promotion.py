"""Selects the best run of an experiment and decides whether it replaces the champion."""

from dataclasses import dataclass
from pathlib import Path

import torch

from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs, scores_to_labels
from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.bootstrap import PairBootstrap
from twinsqueeze.evaluation.metrics import METRICS
from twinsqueeze.experiment import ExperimentData, prepare_data
from twinsqueeze.model.checkpoint import CheckpointMetadata, read_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork, predict_pair_cosines
from twinsqueeze.registry import model_registry
from twinsqueeze.registry.model_card import ModelSelection, metric_sign
from twinsqueeze.registry.model_loader import resolve_model
from twinsqueeze.registry.model_registry import Version
from twinsqueeze.reporting import run_loader
from twinsqueeze.reporting.ablation_table import COLUMN_NAMES, TrainedRun
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.device import resolve_device
from twinsqueeze.utils.reporter import Reporter

SPLIT = "dev"
ANY_DATASET = "any"


@dataclass(frozen=True)
class Candidate:
    """A selected run: its compressor's checkpoint file, the compressor, its metadata and its encoded data."""

    selection: ModelSelection
    checkpoint: Path
    compressor: CompressorNetwork
    metadata: CheckpointMetadata
    data: ExperimentData


@dataclass(frozen=True)
class PromotionDecision:
    """Whether a candidate becomes the champion, the reason in words, and metrics of the comparison by name."""

    promoted: bool
    reason: str
    metrics: dict[str, float]


def check_metric(metric: str) -> None:
    """Raise an `InputError` unless a metric can be used for selection."""
    metrics = [f"{SPLIT}/{name}" for name in METRICS]
    if metric not in metrics:
        reason = ": test is never used for selection" if metric.startswith("test/") else ""
        raise InputError(f"metric must be one of {', '.join(metrics)}, not {metric!r}{reason}")


def select_best_run(experiment_id: str, metric: str, dataset: str) -> ModelSelection:
    """Select the recipe with the best mean over seeds, then its best seed.

    Args:
        experiment_id: MLflow's id.
        metric: dev/spearman, dev/pearson, dev/mse or dev/mae.
        dataset: Name of the dataset whose runs are compared, or "any" if there is only one.

    Raises:
        InputError: If there is no finished run, or the runs can't be compared by the metric.
    """
    runs = _load_comparable_runs(experiment_id, metric, dataset)
    tables, _ = run_loader.load_tables(runs)
    sign = metric_sign(metric)
    candidates = [(table, row) for table in tables for row in table.rows]
    table, row = max(candidates, key=lambda pair: (sign * pair[1].scores[metric].mean, len(pair[1].runs)))
    best = max(row.runs, key=lambda run: sign * run.metrics[metric])
    return ModelSelection(metric, row, best, len(candidates), table.baselines)


def _load_comparable_runs(experiment_id: str, metric: str, dataset: str) -> list[TrainedRun]:
    finished, notes = run_loader.load_runs(experiment_id)
    if not finished:
        solution = "Train with `main` or `ablation`, or pass another experiment"
        raise InputError(" ".join(["the experiment has no finished run.", *notes, solution]))
    names = ", ".join(sorted({run.dataset for run in finished}))
    runs = [run for run in finished if dataset in {ANY_DATASET, run.dataset}]
    if not runs:
        raise InputError(f"no finished run on dataset {dataset!r}: the experiment has runs on {names}")
    if len({run.comparison_key.dataset_digest for run in runs}) > 1:
        raise InputError(
            f"the experiment has runs on different data ({names}), which can't be compared: pass --dataset, or another "
            "experiment if the data have changed"
        )
    if metric != f"{SPLIT}/spearman" and len({run.recipe.label_transform for run in runs}) > 1:
        raise InputError(f"runs with different label transforms can't be compared by {metric}: use {SPLIT}/spearman")
    return runs


def load_candidate(selection: ModelSelection, reporter: Reporter) -> Candidate:
    """Load the compressor and the data of a selected run.

    Raises:
        InputError: If the model, the data or the encoder can't be loaded or have changed since the training.
    """
    run_id = selection.run.run_id
    checkpoint = resolve_model(run_id).checkpoint
    compressor, metadata = read_checkpoint(checkpoint, run_id)
    if metadata is None:
        raise InputError(f"the checkpoint of run {run_id} has no metadata: register a run that `main` trained")
    return Candidate(selection, checkpoint, compressor, metadata, _prepare_data(metadata, metadata, reporter))


def _prepare_data(trained: CheckpointMetadata, other: CheckpointMetadata, reporter: Reporter) -> ExperimentData:
    """Load the data of one compressor, encode them by the encoder of another, and verify that both are unchanged."""
    dataset = trained.dataset if trained.recipe.dataset == "auto" else trained.recipe.dataset
    pairs = load_pairs(dataset, splits=("train", SPLIT), score_max=trained.score_max)
    if pairs.digest != trained.dataset_digest:
        raise InputError(
            f"dataset {dataset!r} has changed since {trained.recipe.name} was trained (digest {pairs.digest}, then "
            f"{trained.dataset_digest}): restore it, or train again"
        )
    device = resolve_device("auto")
    encoder = resolve_encoder(other.recipe.encoder, device.type)
    if encoder.fingerprint != other.encoder_fingerprint:
        raise InputError(
            f"the files of encoder {encoder.name!r} have changed since {other.recipe.name} was trained: restore them, "
            "or train again"
        )
    return prepare_data(pairs, encoder, device, score_max=trained.score_max, reporter=reporter)


def compare_with_champion(candidate: Candidate, champion: Version | None) -> PromotionDecision:
    """Compare a candidate with the champion on the same dev pairs by a paired bootstrap over pairs.

    The candidate is promoted if the 95% interval of the difference lies on the better side of zero.
    """
    if champion is None:
        return PromotionDecision(promoted=True, reason="There was no champion to compare with.", metrics={})
    data, metric = candidate.data, candidate.selection.metric
    score = metric.removeprefix(f"{SPLIT}/")
    label_transform = candidate.metadata.recipe.label_transform
    same_pairs = champion.tags.get(model_registry.DEV_DIGEST) == data.pairs.splits[SPLIT].digest
    same_labels = score == "spearman" or champion.tags.get(model_registry.LABEL_TRANSFORM) == label_transform
    if not (same_pairs and same_labels):
        obstacle = "other labels" if same_pairs else "other dev pairs"
        reason = f"The champion, version {champion.number}, was selected on {obstacle}: no comparison is possible."
        return PromotionDecision(promoted=False, reason=reason, metrics={})
    bootstrap = PairBootstrap(scores_to_labels(data.encoded[SPLIT].scores, label_transform))
    predicted = _predict(candidate.compressor, data)
    difference, interval = bootstrap.difference(predicted, _predict_by_champion(champion, candidate), score)
    gain_low, gain_high = sorted(metric_sign(metric) * end for end in (interval.low, interval.high))
    promoted = gain_low > 0
    outcome = "better" if promoted else f"{'worse' if gain_high < 0 else 'not significant'}, so the champion stays"
    reason = (
        f"{COLUMN_NAMES[score]} on dev, difference to the champion (version {champion.number}): {difference:+.4f}, 95% "
        f"interval {interval.low:+.4f} to {interval.high:+.4f} (paired bootstrap over pairs): {outcome}."
    )
    metrics = {"gate/difference": difference, "gate/low": interval.low, "gate/high": interval.high}
    return PromotionDecision(promoted, reason, metrics)


def _predict_by_champion(champion: Version, candidate: Candidate) -> FloatArray:
    compressor, metadata = read_checkpoint(resolve_model(champion.uri).checkpoint, champion.uri)
    assert metadata, "only checkpoints with metadata are registered"
    if metadata.encoder_fingerprint == candidate.metadata.encoder_fingerprint:
        return _predict(compressor, candidate.data)
    return _predict(compressor, _prepare_data(candidate.metadata, metadata, candidate.data.reporter))


def _predict(compressor: CompressorNetwork, data: ExperimentData) -> FloatArray:
    """Return the cosines of the dev pairs, (P,)."""
    split = data.encoded[SPLIT]
    vectors = torch.from_numpy(split.embeddings).to(data.device)
    return predict_pair_cosines(compressor.to(data.device), vectors, split)
