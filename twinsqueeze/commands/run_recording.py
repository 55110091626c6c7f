"""What a run records of a compressor: parameters, curves, scores, figures, tables, the model and a description."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from twinsqueeze import __version__
from twinsqueeze.data.dataset import Dataset
from twinsqueeze.evaluation.baselines import BaselineScores, missing_baselines_note
from twinsqueeze.evaluation.evaluator import EvaluationResult
from twinsqueeze.experiment import EvaluatedTraining, Evaluation
from twinsqueeze.experiment_data import ExperimentData
from twinsqueeze.model.checkpoint import serialize_checkpoint
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting import figure_pool, formats, run_plots, search_table, terminal
from twinsqueeze.reporting.ablation_table import metric_name
from twinsqueeze.reporting.figure_pool import Draw, Drawing
from twinsqueeze.reporting.search_table import SearchRow, VectorFormat
from twinsqueeze.task import SIMILARITY, Task
from twinsqueeze.tracking.model_files import log_compressor
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import (
    ADAPTED_FIELDS,
    BASE_RUN,
    DATASET,
    DATASET_DIGEST,
    NOTICE,
    RECIPE_DIGEST,
    RESUMED_FROM,
    TASK,
    TEST_DIGEST,
)
from twinsqueeze.training.loop import EpochMetrics, TrainingResult
from twinsqueeze.types import FloatArray
from twinsqueeze.utils import console
from twinsqueeze.utils.compute import describe_cpu
from twinsqueeze.utils.text import escape_markdown

INPUT_EXAMPLE_ROWS = 3


class RunRecorder:
    """Records a compressor in a run, which gets `params` and `tags` besides those of the data and the environment."""

    def __init__(
        self,
        run: RunLogger,
        data: ExperimentData,
        splits: Sequence[str],
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        self.run = run
        self._data = data
        typed_otherwise = run.log_params({**params, **environment_params(data)})
        adapted = {name: value for name, value in typed_otherwise.items() if name in Recipe.model_fields}
        run.set_tags({**data_tags(data), **({ADAPTED_FIELDS: json.dumps(adapted)} if adapted else {}), **tags})
        pairs = data.pairs
        self._inputs = {
            split: run.log_input(split, pairs.name, pairs.splits[split].digest, pairs.source) for split in splits
        }

    @classmethod
    def of_training(cls, run: RunLogger, recipe: Recipe, data: ExperimentData, resumed_from_epoch: int) -> Self:
        """Returns the recorder of a training, and logs what is known before it."""
        tags = {RECIPE_DIGEST: recipe.digest}
        if resumed_from_epoch:
            tags[RESUMED_FROM] = f"epoch {resumed_from_epoch} of {recipe.epochs}"
        lineage = {BASE_RUN: data.base.run_id} if data.base and data.base.run_id else {}
        return cls(run, data, list(data.encoded), recipe.model_dump() | lineage, tags)

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Logs the losses and dev scores of an epoch; the last epoch's scores are logged with the model."""
        # Spearman comes first: MLflow's comparison of runs shows the metrics in the order of logging.
        is_last = metrics.epoch == metrics.epochs
        scores = {} if is_last else {f"dev/{name}": metrics.dev[name][0] for name in reversed(metrics.dev)}
        losses = {"train/loss": metrics.loss[0], "train/clean_loss": metrics.clean_loss[0]}
        self.run.log_metrics(scores | losses, metrics.epoch)

    def log_history(self, training: TrainingResult) -> None:
        """Logs every epoch of a finished training."""
        history, epochs = training.history, training.recipe.epochs
        for i in range(len(history.loss)):
            one = slice(i, i + 1)
            dev = {name: curve[one] for name, curve in history.dev.items()}
            self.log_epoch(EpochMetrics(i + 1, epochs, history.loss[one], history.clean_loss[one], dev))

    def log_training(self, evaluated: EvaluatedTraining, draw: Draw = figure_pool.render) -> None:
        """Logs a trained compressor with its scores, figures, tables and description; `draw` renders the figures."""
        recipe, history, train_losses = evaluated.recipe, evaluated.training.history, evaluated.train_losses
        figures = _figures(evaluated, train_losses)
        if recipe.epochs:
            curves = partial(run_plots.plot_loss_curves, history.loss, history.clean_loss, history.dev, recipe.loss)
            figures = {"loss_curves": curves, **figures}
        with self._log_figures(figures, draw):
            model = serialize_checkpoint(evaluated.compressor, evaluated.metadata)
            example = self._data.encoded["dev"].embeddings[:INPUT_EXAMPLE_ROWS]
            model_id = log_compressor(self.run, model, example, recipe.model_dump())
            if train_losses is not None:
                squared_errors = pd.DataFrame({"squared_error": train_losses.astype(np.float32)})
                self.run.log_table("train_pair_losses.parquet", squared_errors)
            self._log_scores(evaluated, model_id, recipe.epochs)
            self._log_times(evaluated.training)
            self._log_tables(evaluated, _describe_training(evaluated, self._data))

    def log_evaluation(self, evaluation: Evaluation, model_id: str | None) -> None:
        """Logs the evaluation of a model on one split."""
        (split,) = evaluation.results
        dataset = escape_markdown(self._data.pairs.name)
        unit = self._data.task.unit
        with self._log_figures(_figures(evaluation, None), figure_pool.render):
            self._log_scores(evaluation, model_id)
            self._log_tables(evaluation, f"Model {evaluation.name} evaluated on the {split} {unit} of {dataset}.")

    @contextmanager
    def _log_figures(self, figures: Mapping[str, Drawing], draw: Draw) -> Iterator[None]:
        """Renders figures while the context is open, and logs them as `figures/NAME.png` when it closes."""
        with TemporaryDirectory() as folder:
            with draw({Path(folder, f"{name}.png"): figure for name, figure in figures.items()}):
                yield
            self.run.log_artifacts(Path(folder), "figures")

    def _log_scores(self, evaluation: Evaluation, model_id: str | None, epochs: int = 0) -> None:
        for split, result in evaluation.results.items():
            data = self._inputs[split]
            step = epochs if split == "dev" else 0  # dev has a curve; the UI shows single values as bars
            curve_scores = {f"{split}/{name}": result.scores[name] for name in evaluation.task.curve_scores}
            self.run.log_metrics(curve_scores, step, model_id, data)
            self.run.log_metrics(_extra_metrics(split, result, evaluation.task), 0, model_id, data)
        self.run.log_metrics({"search/bytes_per_vector": evaluation.compressor.bytes_per_vector})

    def _log_times(self, training: TrainingResult) -> None:
        trained_epochs = training.recipe.epochs - training.resumed_from_epoch
        times = {"time/training_seconds": training.seconds}
        if trained_epochs:
            times["time/seconds_per_epoch"] = training.seconds / trained_epochs
        self.run.log_metrics(times)

    def predictions(self, evaluation: Evaluation) -> pd.DataFrame:
        """Returns a row per pair or query of each split, with its prediction or scores."""
        return _predictions(self._data.pairs, evaluation.results)

    def _log_tables(self, evaluation: Evaluation, description: str) -> None:
        """Logs predictions, baselines and the run's description."""
        results, baselines, pairs = evaluation.results, evaluation.baselines, self._data.pairs
        self.run.log_table("predictions.json", self.predictions(evaluation))
        self.run.log_table("baselines.json", baseline_table(baselines))
        rows = search_table.with_strongest_baselines(_search_rows(evaluation))
        scores = search_table.format_run(rows, results)
        missing = missing_baselines_note(baselines)
        paragraphs = [
            *([f"**{escape_markdown(pairs.notice)}**"] if pairs.notice else []),
            " ".join(
                [description, *(formats.scores_sentence(s, result, evaluation.task) for s, result in results.items())]
            ),
            formats.markdown_table(*scores),
            "Search quality:",
            formats.markdown_table(*search_table.format_rows(rows, results)),
            *([f"{missing}."] if missing else []),
        ]
        self.run.set_description("\n\n".join(paragraphs))

    def print_summary(self, evaluation: Evaluation, next_steps: Sequence[tuple[str, str]], *, verbose: bool) -> None:
        """Prints the scores, all of them if `verbose`, and the next steps."""
        terminal.print_run(_vector_format(evaluation), evaluation.results, _search_rows(evaluation), verbose=verbose)
        if missing := missing_baselines_note(evaluation.baselines):
            console.info(missing)
        if self._data.pairs.notice:
            console.warn(self._data.pairs.notice)
        terminal.print_next_steps(next_steps)


def _figures(evaluation: Evaluation, train_losses: FloatArray | None) -> dict[str, Drawing]:
    rows = search_table.with_strongest_baselines(_search_rows(evaluation))
    quality: dict[str, Drawing] = {"quality_against_bytes": search_table.quality_figure(rows)}
    if evaluation.task != SIMILARITY:
        return quality
    predictions = {split: (result.labels, result.predicted) for split, result in evaluation.results.items()}
    losses = {split: result.losses for split, result in evaluation.results.items()}
    if train_losses is not None:
        losses = {"train": train_losses, **losses}
    label_transform = evaluation.recipe.label_transform
    return quality | {
        "predicted_against_label": partial(run_plots.plot_run_predictions, predictions, label_transform),
        "pair_losses": partial(run_plots.plot_run_losses, losses),
    }


def _search_rows(evaluation: Evaluation) -> list[SearchRow]:
    return search_table.rows_from_run(
        _vector_format(evaluation), evaluation.results, evaluation.baselines, evaluation.task
    )


def _vector_format(evaluation: Evaluation) -> VectorFormat:
    network = evaluation.compressor
    return VectorFormat(evaluation.name, network.precision, network.dim, network.bytes_per_vector)


def _describe_training(evaluated: EvaluatedTraining, data: ExperimentData) -> str:
    recipe, resumed_from_epoch = evaluated.recipe, evaluated.training.resumed_from_epoch
    train = f"{len(data.pairs.splits['train']):,} train {data.task.examples} of {escape_markdown(data.pairs.name)}"
    text = (
        f"A compressor ({recipe.architecture}, {evaluated.compressor.input_dim} to {recipe.dim} dimensions, "
        f"quantizer {recipe.quantizer}) "
    )
    if recipe.epochs:
        text += f"trained for {recipe.epochs} epochs on the {train} with noise alpha = {recipe.alpha:g} and seed "
    else:
        text += f"with the layers of its base; what quantizes their outputs was fitted to the {train} with seed "
    text += f"{recipe.seed}."
    if data.base:
        text += f" The base: {escape_markdown(data.base.description)}."
    if resumed_from_epoch:
        text += f" The training was interrupted and resumed from epoch {resumed_from_epoch}."
    return text


def environment_params(data: ExperimentData) -> dict[str, Any]:
    """Returns what determines a result besides the recipe: data, encoder, versions and machine."""
    packages = ("torch", "numpy", "mlflow", "sentence-transformers")
    columns = ",".join(f"{ours}={theirs}" for ours, theirs in data.pairs.columns.items())
    return {
        **({"columns": columns} if columns else {}),
        "dataset_digest": data.pairs.digest,
        "encoder_fingerprint": short_fingerprint(data),
        "used_device": data.device.type,
        "cpu": describe_cpu(),
        "threads": torch.get_num_threads(),
        "twinsqueeze_version": __version__,
        "python_version": platform.python_version(),
    } | {f"{package}_version": version(package) for package in packages}


def short_fingerprint(data: ExperimentData) -> str:
    """Returns the encoder's fingerprint as runs record it, 16 hex digits."""
    return data.encoder_fingerprint[:16]


def data_tags(data: ExperimentData) -> dict[str, str]:
    """Returns the tags that identify a run's data."""
    pairs, test = data.pairs, data.pairs.splits.get("test")
    tags = {DATASET: pairs.name, DATASET_DIGEST: pairs.digest, TEST_DIGEST: test and test.digest, NOTICE: pairs.notice}
    tags[TASK] = pairs.task.name
    return {name: value for name, value in tags.items() if value}


def _extra_metrics(split: str, result: EvaluationResult, task: Task) -> dict[str, float]:
    """The scores that are logged once. MLflow shows the intervals in a section of their own."""
    values = {metric_name(split, name): value for name, value in result.scores.items() if name not in task.curve_scores}
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
            deviations = baseline.deviations[split] if baseline.draws > 1 else {}
            row[split] = scores | {f"{name}_sd": value for name, value in deviations.items()}
        rows.append(row)
    return pd.json_normalize(rows, sep="/")


def _predictions(pairs: Dataset, results: Mapping[str, EvaluationResult]) -> pd.DataFrame:
    tables = []
    for name, result in results.items():
        columns: dict[str, Any] = {"split": name, **pairs.splits[name].columns(result.query_rows)}
        if len(result.labels):
            columns |= {"label": result.labels, "predicted": result.predicted, "squared_error": result.losses}
        columns |= result.query_scores
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
