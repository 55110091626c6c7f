"""What a run records of a compressor: parameters, curves, scores, figures, tables, the model and a description."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from twinsqueeze import __version__
from twinsqueeze.data.sentence_pairs import PairDataset
from twinsqueeze.evaluation.baselines import BaselineScores, missing_baselines_note
from twinsqueeze.evaluation.evaluator import EvaluationResult
from twinsqueeze.evaluation.metrics import METRICS
from twinsqueeze.experiment import EvaluatedTraining, Evaluation, ExperimentData
from twinsqueeze.model.checkpoint import serialize_checkpoint
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry.model_loader import ResolvedModel
from twinsqueeze.reporting import figure_pool, formats, run_plots, search_table, terminal
from twinsqueeze.reporting.ablation_table import metric_name
from twinsqueeze.reporting.figure_pool import Draw, Drawing
from twinsqueeze.reporting.search_table import SearchRow, VectorFormat
from twinsqueeze.tracking import links
from twinsqueeze.tracking.model_files import log_compressor
from twinsqueeze.tracking.run_logger import LoggedData, RunLogger
from twinsqueeze.tracking.tags import DATASET, DATASET_DIGEST, NOTICE, RECIPE_DIGEST, TEST_DIGEST
from twinsqueeze.training.loop import EpochMetrics, TrainingResult
from twinsqueeze.types import FloatArray
from twinsqueeze.utils import console
from twinsqueeze.utils.text import escape_markdown

INPUT_EXAMPLE_ROWS = 3


def log_training_setup(run: RunLogger, recipe: Recipe, data: ExperimentData) -> dict[str, LoggedData]:
    """Logs what is known before a training: the recipe, the environment and the data.

    Returns:
        The logged dataset of each split.
    """
    run.log_params(recipe.model_dump() | environment_params(data))
    run.set_tags(data_tags(data) | {RECIPE_DIGEST: recipe.digest})
    return _log_inputs(run, data.pairs, list(data.encoded))


def log_epoch(run: RunLogger, metrics: EpochMetrics) -> None:
    """Logs the losses and dev scores of an epoch."""
    losses = float(metrics.loss[0]), float(metrics.clean_loss[0])
    dev = {name: float(values[0]) for name, values in metrics.dev._asdict().items()}
    _log_epoch(run, metrics.epoch, metrics.epochs, losses, dev)


def log_history(run: RunLogger, training: TrainingResult) -> None:
    """Logs every epoch of a finished training, as `log_epoch` does."""
    history = training.history
    for epoch, losses in enumerate(zip(history.loss, history.clean_loss, strict=True), 1):
        dev = {name: float(curve[epoch - 1]) for name, curve in history.dev.items()}
        _log_epoch(run, epoch, training.recipe.epochs, (float(losses[0]), float(losses[1])), dev)


def _log_epoch(run: RunLogger, epoch: int, epochs: int, losses: tuple[float, float], dev: Mapping[str, float]) -> None:
    # The last epoch's scores belong to the model and are logged with it. Spearman comes first: MLflow's comparison of
    # runs shows the metrics in the order of logging.
    scores = {f"dev/{name}": dev[name] for name in reversed(METRICS)} if epoch < epochs else {}
    run.log_metrics(scores | {"train/loss": losses[0], "train/clean_loss": losses[1]}, epoch)


def log_training(
    run: RunLogger,
    evaluated: EvaluatedTraining,
    data: ExperimentData,
    inputs: Mapping[str, LoggedData],
    draw: Draw = figure_pool.render,
) -> None:
    """Logs a trained compressor with its scores, figures, tables and description.

    Args:
        run: Its run.
        evaluated: The training and its evaluation.
        data: The data of the training.
        inputs: The result of `log_training_setup`.
        draw: Renders the figures.
    """
    training, evaluation = evaluated.training, evaluated.evaluation
    recipe, history, results = training.recipe, training.history, evaluation.results
    losses = {"train": evaluated.train_losses, "dev": results["dev"].losses}
    figures: dict[str, Drawing] = {
        "loss_curves": partial(run_plots.plot_loss_curves, history.loss, history.clean_loss, history.dev, recipe.loss),
        **_figures(evaluation, recipe.label_transform, losses),
    }
    example = data.encoded["dev"].embeddings[:INPUT_EXAMPLE_ROWS]
    with _log_figures(run, figures, draw):
        model = serialize_checkpoint(training.compressor, evaluated.metadata)
        model_id = log_compressor(run, model, example, recipe.dim, recipe.model_dump())
        for split, result in results.items():
            step = recipe.epochs if split == "dev" else 0  # dev has a curve; the UI shows single values as bars
            run.log_metrics(_pair_scores(split, result), step, model_id, inputs[split])
            run.log_metrics(_extra_metrics(split, result), 0, model_id, inputs[split])
        squared_errors = pd.DataFrame({"squared_error": evaluated.train_losses.astype(np.float32)})
        run.log_table("train_pair_losses.parquet", squared_errors)
        _log_tables(run, evaluation, data.pairs, _describe_training(training, len(evaluated.train_losses), data))


def log_evaluation(
    run: RunLogger, evaluation: Evaluation, data: ExperimentData, label_transform: str, model: ResolvedModel
) -> None:
    """Logs the evaluation of a model on one split."""
    ((split, result),) = evaluation.results.items()
    inputs = _log_inputs(run, data.pairs, [split])
    description = f"Model {evaluation.name} evaluated on the {split} pairs of {escape_markdown(data.pairs.name)}."
    with _log_figures(run, _figures(evaluation, label_transform, {split: result.losses}), figure_pool.render):
        metrics = _pair_scores(split, result) | _extra_metrics(split, result)
        run.log_metrics(metrics, model_id=model.model_id, data=inputs[split])
        _log_tables(run, evaluation, data.pairs, description)


@contextmanager
def _log_figures(run: RunLogger, figures: Mapping[str, Drawing], draw: Draw) -> Iterator[None]:
    """Renders figures while the context is open, and logs them as `figures/NAME.png` when it closes."""
    with TemporaryDirectory() as folder:
        with draw({Path(folder, f"{name}.png"): figure for name, figure in figures.items()}):
            yield
        run.log_artifacts(Path(folder), "figures")


def _figures(evaluation: Evaluation, label_transform: str, losses: Mapping[str, FloatArray]) -> dict[str, Drawing]:
    results = evaluation.results
    return {
        "predicted_against_label": partial(
            run_plots.plot_predictions,
            {f"{split}: {len(r.labels):,} pairs": {split: (r.labels, r.predicted)} for split, r in results.items()},
            f"label ({label_transform} of the human score)",
        ),
        "pair_losses": partial(run_plots.plot_pair_losses, {"": losses}),
        "quality_against_bytes": search_table.quality_figure(search_rows(evaluation)),
    }


def search_rows(evaluation: Evaluation) -> list[SearchRow]:
    """Returns the rows of the search table: the compressor and its baselines, by bytes per vector."""
    network = evaluation.compressor
    vectors = VectorFormat(evaluation.name, network.precision, network.dim, network.bytes_per_vector)
    return search_table.rows_from_run(vectors, evaluation.results, evaluation.baselines)


def _describe_training(training: TrainingResult, pairs: int, data: ExperimentData) -> str:
    recipe = training.recipe
    text = (
        f"A compressor ({recipe.architecture}, {training.compressor.input_dim} to {recipe.dim} dimensions, "
        f"quantizer {recipe.quantizer}) trained for {recipe.epochs} epochs on the {pairs:,} train pairs of "
        f"{escape_markdown(data.pairs.name)} with noise alpha = {recipe.alpha:g} and seed {recipe.seed}."
    )
    if training.resumed_from_epoch:
        text += f" The training was interrupted and resumed from epoch {training.resumed_from_epoch}."
    return text


def _log_tables(run: RunLogger, evaluation: Evaluation, pairs: PairDataset, description: str) -> None:
    """Logs predictions, baselines and the run's description."""
    results, baselines = evaluation.results, evaluation.baselines
    size = evaluation.compressor.bytes_per_vector
    run.log_table("predictions.json", _predictions(pairs, results))
    run.log_table("baselines.json", baseline_table(baselines))
    run.log_metrics({"search/bytes_per_vector": size})
    notice = [f"**{escape_markdown(pairs.notice)}**"] if pairs.notice else []
    sentences = [description, *(formats.scores_sentence(split, result) for split, result in results.items())]
    missing = missing_baselines_note(baselines)
    paragraphs = [
        *notice,
        " ".join(sentences),
        formats.markdown_table(*search_table.format_run(search_rows(evaluation), results)),
        "Search quality:",
        formats.markdown_table(*search_table.format_rows(search_rows(evaluation), results)),
        *([f"{missing}."] if missing else []),
    ]
    run.set_description("\n\n".join(paragraphs))


def print_summary(run: RunLogger, evaluation: Evaluation, data: ExperimentData, trained_run: str | None) -> None:
    """Prints the scores and the next steps.

    Args:
        run: The run.
        evaluation: The scores.
        data: The evaluated data.
        trained_run: Id of the run if it has trained the compressor.
    """
    terminal.print_results(evaluation.results, search_rows(evaluation))
    if missing := missing_baselines_note(evaluation.baselines):
        console.info(missing)
    if data.pairs.notice:
        console.warn(data.pairs.notice)
    steps = []
    if trained_run:
        steps.append(("evaluate it again", links.mlflow_run_command(run, "evaluate", model=trained_run)))
        steps.append(("register the best run", links.mlflow_run_command(run, "register")))
    terminal.print_next_steps([*steps, *links.ui_steps(run)])


def environment_params(data: ExperimentData) -> dict[str, Any]:
    """Returns what determines a result besides the recipe: data, encoder, versions and machine."""
    packages = ("torch", "numpy", "mlflow", "sentence-transformers")
    return {
        "dataset_digest": data.pairs.digest,
        "encoder_fingerprint": short_fingerprint(data),
        "used_device": data.device.type,
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "twinsqueeze_version": __version__,
        "python_version": platform.python_version(),
    } | {f"{package}_version": version(package) for package in packages}


def short_fingerprint(data: ExperimentData) -> str:
    """Returns the encoder's fingerprint as runs record it, 16 hex digits."""
    return data.encoder.fingerprint[:16]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def data_tags(data: ExperimentData) -> dict[str, str]:
    """Returns the tags that identify a run's data."""
    pairs = data.pairs
    tags = {DATASET: pairs.name, DATASET_DIGEST: pairs.digest}
    if "test" in pairs.splits:
        tags[TEST_DIGEST] = pairs.splits["test"].digest
    if pairs.notice:
        tags[NOTICE] = pairs.notice
    return tags


def _log_inputs(run: RunLogger, pairs: PairDataset, splits: Sequence[str]) -> dict[str, LoggedData]:
    return {split: run.log_input(split, pairs.name, pairs.splits[split].digest, pairs.source) for split in splits}


def _pair_scores(split: str, result: EvaluationResult) -> dict[str, float]:
    """The scores that are also logged after every epoch."""
    return {f"{split}/{name}": result.scores[name] for name in METRICS}


def _extra_metrics(split: str, result: EvaluationResult) -> dict[str, float]:
    """The scores that are logged once. MLflow shows the intervals in a section of their own."""
    values = {metric_name(split, name): value for name, value in result.scores.items() if name not in METRICS}
    for precision, scores in result.by_precision.items():
        values |= {metric_name(split, name, precision): value for name, value in scores.items()}
    for name, interval in result.intervals.items():
        values[f"uncertainty/{split}_{name}_low"] = interval.low
        values[f"uncertainty/{split}_{name}_high"] = interval.high
    return values


def baseline_table(baselines: Sequence[BaselineScores]) -> pd.DataFrame:
    """Returns one row per baseline, as `compare` reads it."""
    rows = []
    for baseline in baselines:
        row: dict[str, Any] = {"model": baseline.name}
        row |= {name: getattr(baseline, name) for name in ("dim", "bytes", "search_only", "draws")}
        for split, scores in baseline.scores.items():
            row |= {f"{split}/{name}": value for name, value in scores.items()}
        if baseline.draws > 1:
            for split, deviations in baseline.deviations.items():
                row |= {f"{split}/{name}_sd": value for name, value in deviations.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _predictions(pairs: PairDataset, results: Mapping[str, EvaluationResult]) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "split": split,
                "sentence1": pairs.splits[split].sentence1,
                "sentence2": pairs.splits[split].sentence2,
                "score": pairs.splits[split].scores,
                "label": result.labels,
                "predicted": result.predicted,
                "squared_error": result.losses,
            }
        )
        for split, result in results.items()
    ]
    return pd.concat(frames, ignore_index=True)
