"""What a run records of a compressor: facts, curves, scores, figures, tables, the model and a description."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

import twinsqueeze
from twinsqueeze.commands.context import ExperimentContext
from twinsqueeze.evaluation.baselines import BaselineScores, missing_baselines_note
from twinsqueeze.evaluation.evaluator import EvaluationResult, pair_losses
from twinsqueeze.evaluation.metrics import METRICS
from twinsqueeze.model.checkpoint import Provenance, serialize_checkpoint
from twinsqueeze.model.precision import int8_calibration_ranges
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting import figure_pool, formats, run_plots, search_table, terminal
from twinsqueeze.reporting.ablation_table import metric_name
from twinsqueeze.reporting.figure_pool import Draw, Drawing
from twinsqueeze.reporting.search_table import SearchRow
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run_logger import LoggedData, RunLogger
from twinsqueeze.tracking.tags import DATASET, DATASET_DIGEST, NOTICE, RECIPE_DIGEST, TEST_DIGEST
from twinsqueeze.training.loop import TrainingResult
from twinsqueeze.types import FloatArray
from twinsqueeze.utils import console
from twinsqueeze.utils.text import escape_markdown

INPUT_EXAMPLE_ROWS = 3


@dataclass(frozen=True)
class RunResult:
    """What a job found, for every form in which it is told.

    Attributes:
        title: What the compressor is called, such as mlp32-alpha0.75-seed0.
        text: What was done, in a sentence or two.
        dim: Numbers in a compressed vector.
        precision: What it was trained as.
        bytes: Of a compressed vector as it was trained.
        assessments: The compressor on each split that was looked at.
        baselines: The same splits with what needs no labels.
    """

    title: str
    text: str
    dim: int
    precision: str
    bytes: int
    assessments: dict[str, EvaluationResult]
    baselines: list[BaselineScores]

    @property
    def search(self) -> list[SearchRow]:
        """The rows of the table of search."""
        return search_table.rows_from_run(
            self.title, self.precision, self.dim, self.bytes, self.assessments, self.baselines
        )


def log_training_setup(run: RunLogger, recipe: Recipe, material: ExperimentContext) -> dict[str, LoggedData]:
    """Records what is known before a training: the recipe, what else fixes the result, and the data.

    Returns:
        The data that were logged, by split.
    """
    run.log_params(recipe.model_dump() | environment_params(material))
    run.set_tags(data_tags(material) | {RECIPE_DIGEST: recipe.digest})
    return log_data(run, material, list(material.encoded))


def evaluate_and_log_training(
    run: RunLogger,
    fitted: TrainingResult,
    material: ExperimentContext,
    inputs: Mapping[str, LoggedData],
    draw: Draw = figure_pool.render_inline,
) -> RunResult:
    """Measures a trained compressor on the splits behind train, and records it with all that was found.

    Args:
        run: Where to.
        fitted: What was trained.
        material: What on.
        inputs: What `log_training_setup` returned.
        draw: Who draws the figures.
    """
    recipe, compressor = fitted.recipe, fitted.compressor
    placed = compressor.to(material.device)
    train = torch.from_numpy(material.encoded["train"].embeddings).to(material.device)
    provenance = Provenance(
        recipe=recipe,
        dataset=material.data.name,
        dataset_digest=material.data.digest,
        score_max=material.score_max,
        encoder_fingerprint=material.encoder.fingerprint,
        version=twinsqueeze.__version__,
        int8_ranges=int8_calibration_ranges(placed.compress(train).cpu().numpy()),
    )
    splits = [split for split in material.encoded if split != "train"]
    assessments = {
        split: material.evaluator(split, recipe.label_transform)(placed, provenance.int8_ranges) for split in splits
    }
    train_losses = pair_losses(placed, material.encoded["train"], recipe.label_transform)
    outcome = RunResult(
        title=recipe.name,
        text=(
            f"A compressor ({recipe.architecture}, {compressor.input_dimension} numbers to {recipe.dim} "
            f"{'signs' if recipe.precision == 'binary' else 'numbers'}) trained for "
            f"{recipe.epochs} epochs on the {len(train_losses):,} train pairs of {escape_markdown(material.data.name)} "
            f"with noise alpha = {recipe.alpha:g} and seed {recipe.seed}."
            + (
                f" It was interrupted, and gone on with from epoch {fitted.resumed_from_epoch}."
                if fitted.resumed_from_epoch
                else ""
            )
        ),
        dim=recipe.dim,
        precision=recipe.precision,
        bytes=recipe.bytes_per_vector,
        assessments=assessments,
        baselines=material.baselines(splits, recipe.label_transform, recipe.dim),
    )
    history = fitted.history
    drawings: dict[str, Drawing] = {
        "loss_curves": partial(run_plots.loss_curves, history.loss, history.clean_loss, history.dev, recipe.loss),
        **_drawings(outcome, recipe.label_transform, {"train": train_losses, "dev": assessments["dev"].losses}),
    }
    example = material.encoded["dev"].embeddings[:INPUT_EXAMPLE_ROWS]
    with _log_figures(run, drawings, draw):
        model_id = run.log_compressor(
            serialize_checkpoint(compressor, provenance), example, compressor.dim, recipe.model_dump()
        )
        for split, assessment in assessments.items():
            last = recipe.epochs if split == "dev" else 0  # dev has a curve, the rest is a bar in the UI's charts
            run.log_metrics(_scores(split, assessment), last, model_id, inputs[split])
            run.log_metrics(_extra_metrics(split, assessment), 0, model_id, inputs[split])
        run.log_parquet("train_pair_losses", pd.DataFrame({"squared_error": train_losses.astype(np.float32)}))
        _record(run, outcome, material)
    return outcome


def record_curves(run: RunLogger, fitted: TrainingResult) -> None:
    """Logs every epoch of a finished training, without the last epoch's scores on dev."""
    history = fitted.history
    for epoch, (loss, clean_loss) in enumerate(zip(history.loss, history.clean_loss, strict=True), 1):
        dev = {name: curve[epoch - 1] for name, curve in history.dev.items()}
        run.log_metrics(epoch_metrics(epoch, fitted.recipe.epochs, loss, clean_loss, dev), epoch)


def epoch_metrics(
    epoch: int, epochs: int, loss: float, clean_loss: float, dev: Mapping[str, float]
) -> dict[str, float]:
    """An epoch's metrics by their names in MLflow; the last epoch's scores on dev are the model's, logged with it."""
    # Spearman first: what is logged first is what MLflow's comparison of runs shows unasked.
    followed = {f"dev/{name}": float(dev[name]) for name in reversed(METRICS)} if epoch < epochs else {}
    return followed | {"train/loss": float(loss), "train/clean_loss": float(clean_loss)}


def record_evaluation(
    run: RunLogger, outcome: RunResult, material: ExperimentContext, label_kind: str, split: str, model_id: str | None
) -> None:
    """Records the outcome of an evaluation on one split."""
    inputs = log_data(run, material, [split])
    assessment = outcome.assessments[split]
    metrics = _scores(split, assessment) | _extra_metrics(split, assessment)
    with _log_figures(run, _drawings(outcome, label_kind, {split: assessment.losses}), figure_pool.render_inline):
        run.log_metrics(metrics, model_id=model_id, data=inputs[split])
        _record(run, outcome, material)


@contextmanager
def _log_figures(run: RunLogger, drawings: Mapping[str, Drawing], draw: Draw) -> Iterator[None]:
    """Logs figures as `figures/NAME.png` at the end of the context, during which they are drawn."""
    with TemporaryDirectory() as folder:
        with draw({Path(folder, f"{name}.png"): drawing for name, drawing in drawings.items()}):
            yield
        run.log_artifacts(Path(folder), "figures")


def _drawings(outcome: RunResult, label_kind: str, losses: Mapping[str, FloatArray]) -> dict[str, Drawing]:
    """The figures that every outcome has.

    Args:
        outcome: What was found.
        label_kind: "tanh" or "linear".
        losses: Squared errors of each split's pairs.
    """
    assessments = outcome.assessments
    return {
        "predicted_against_label": partial(
            run_plots.predicted_against_label,
            {split: a.labels for split, a in assessments.items()},
            {split: a.predicted for split, a in assessments.items()},
            label_kind,
        ),
        "pair_losses": partial(run_plots.pair_loss_distribution, losses),
        "quality_against_bytes": search_table.picture(outcome.search),
    }


def _record(run: RunLogger, outcome: RunResult, material: ExperimentContext) -> None:
    """Records the tables and the description."""
    assessments = outcome.assessments
    run.log_table("predictions", _predictions(material, assessments))
    run.log_table("baselines", baseline_table(outcome.baselines))
    run.log_metrics({"search/bytes_per_vector": outcome.bytes})
    notice = [f"**{escape_markdown(material.data.notice)}**"] if material.data.notice else []
    sentences = " ".join([outcome.text, *(terminal.scores_sentence(s, a) for s, a in assessments.items())])
    tables = [
        formats.markdown_table(*terminal.rows(outcome.title, outcome.bytes, assessments, outcome.baselines)),
        "What search keeps:",
        formats.markdown_table(*search_table.as_text(outcome.search, assessments)),
    ]
    missing = missing_baselines_note(outcome.baselines)
    run.set_description("\n\n".join([*notice, sentences, *tables, *([f"{missing}."] if missing else [])]))


def print_summary(run: RunLogger, outcome: RunResult, material: ExperimentContext, trained_run: str | None) -> None:
    """Prints the result and what to type next."""
    terminal.print_results(outcome.title, outcome.bytes, outcome.assessments, outcome.baselines, outcome.search)
    if missing := missing_baselines_note(outcome.baselines):
        console.info(missing)
    if material.data.notice:
        console.warn(material.data.notice)
    steps = []
    if trained_run:
        steps.append(("evaluate it again", links.mlflow_run_command(run, "evaluate", model=trained_run)))
        steps.append(("put the best in use", links.mlflow_run_command(run, "register")))
    terminal.print_next_steps([*steps, *links.ui_steps(run)])


def environment_params(material: ExperimentContext) -> dict[str, Any]:
    """What fixes a result besides the recipe: data, encoder, versions, machine."""
    packages = ("torch", "numpy", "mlflow", "sentence-transformers")
    return {
        "dataset_digest": material.data.digest,
        "encoder_fingerprint": encoder_fingerprint(material),
        "used_device": material.device.type,
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "twinsqueeze_version": twinsqueeze.__version__,
        "python_version": platform.python_version(),
    } | {f"{package}_version": version(package) for package in packages}


def encoder_fingerprint(material: ExperimentContext) -> str:
    """What runs are told apart by that have another encoder."""
    return material.encoder.fingerprint[:16]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def data_tags(material: ExperimentContext) -> dict[str, str]:
    """What a run's data are called and known by."""
    data = material.data
    tags = {DATASET: data.name, DATASET_DIGEST: data.digest}
    if "test" in data.splits:
        tags[TEST_DIGEST] = data.splits["test"].digest
    if data.notice:
        tags[NOTICE] = data.notice
    return tags


def log_data(run: RunLogger, material: ExperimentContext, splits: Sequence[str]) -> dict[str, LoggedData]:
    """Records splits as the run's inputs."""
    data = material.data
    return {split: run.log_input(split, data.name, data.splits[split].digest, data.source) for split in splits}


def _scores(split: str, assessment: EvaluationResult) -> dict[str, float]:
    """What is followed over the epochs as well."""
    return {f"{split}/{name}": assessment.scores[name] for name in METRICS}


def _extra_metrics(split: str, assessment: EvaluationResult) -> dict[str, float]:
    """What is measured once. Intervals have a section of their own, which the UI's charts show last."""
    values = {metric_name(split, name): value for name, value in assessment.scores.items() if name not in METRICS}
    for compared, scores in assessment.by_precision.items():
        values |= {metric_name(split, name, compared): value for name, value in scores.items()}
    for name, interval in assessment.intervals.items():
        values[f"uncertainty/{split}_{name}_low"] = interval.low
        values[f"uncertainty/{split}_{name}_high"] = interval.high
    return values


_BASELINE_COLUMNS = {"model": "name", "dim": "dim", "bytes": "bytes", "search_only": "search_only", "draws": "draws"}


def baseline_table(baselines: Sequence[BaselineScores]) -> pd.DataFrame:
    """A row a baseline, numbers as numbers: `compare` reads them."""
    return pd.DataFrame(
        [
            {name: getattr(baseline, field) for name, field in _BASELINE_COLUMNS.items()}
            | {f"{split}/{name}": value for split, scores in baseline.scores.items() for name, value in scores.items()}
            | {
                f"{split}/{name}_sd": value
                for split, deviations in baseline.deviations.items()
                for name, value in deviations.items()
                if baseline.draws > 1
            }
            for baseline in baselines
        ]
    )


def _predictions(material: ExperimentContext, assessments: Mapping[str, EvaluationResult]) -> pd.DataFrame:
    frames = []
    for split, assessment in assessments.items():
        pairs = material.data.splits[split]
        frames.append(
            pd.DataFrame(
                {
                    "split": split,
                    "sentence1": pairs.sentence1,
                    "sentence2": pairs.sentence2,
                    "score": pairs.scores,
                    "label": assessment.labels,
                    "predicted": assessment.predicted,
                    "squared_error": assessment.losses,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
