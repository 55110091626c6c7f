"""The jobs that users start: each joins the rooms, from reading pairs to recording the run."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

import twinsqueeze
from twinsqueeze import console, figures, tracking
from twinsqueeze.baselines import FLOAT_BYTES, BaselineScores, cached_baselines
from twinsqueeze.cache import Cache
from twinsqueeze.compressor import Compressor
from twinsqueeze.embeddings import EncodedPairs, SentenceEncoder, embed_pairs, open_encoder
from twinsqueeze.errors import InputError, one_line
from twinsqueeze.evaluation import Assessment, assess, pair_losses
from twinsqueeze.interrupts import raise_if_stopped
from twinsqueeze.metrics import METRICS
from twinsqueeze.pairs import SPLITS, PairDataset, load_pairs
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking import LoggedData, RunWriter
from twinsqueeze.training import Fitted, Progress, fit, resolve_device

SAME_DATASET = "same"
PROVENANCE = "twinsqueeze"
INPUT_EXAMPLE_ROWS = 3


@dataclass(frozen=True)
class Material:
    """What a job works on: pairs, their sentences' vectors, and the encoder that made them."""

    data: PairDataset
    encoder: SentenceEncoder
    encoded: dict[str, EncodedPairs]
    cache: Cache


class Provenance(BaseModel):
    """What a model's file says of its training, so that it can be evaluated wherever it lies."""

    recipe: Recipe
    dataset: str
    dataset_digest: str
    score_max: float | None
    encoder_fingerprint: str
    version: str


@dataclass(frozen=True)
class Outcome:
    """What a job found, for every form in which it is told.

    Attributes:
        title: What the compressor is called, such as mlp32-alpha0.75-seed0.
        text: What was done, in a sentence or two.
        dim: Numbers of a compressed vector.
        assessments: The compressor on each split that was looked at.
        baselines: The same splits with what needs no labels.
    """

    title: str
    text: str
    dim: int
    assessments: dict[str, Assessment]
    baselines: list[BaselineScores]


def gather(
    dataset: str,
    encoder_name: str,
    device: str,
    splits: Sequence[str],
    *,
    score_max: float | None = None,
    check_dimension: Callable[[int], None],
) -> Material:
    """Reads pairs and encodes their sentences.

    Raises:
        InputError: If data, encoder or tracking server can't be had, or by `check_dimension`, which is called with the
            dimension of the encoder's vectors.
    """
    data = load_pairs(dataset, splits=splits, score_max=score_max)
    if data.notice:
        console.warn(data.notice)
    encoder = open_encoder(encoder_name, device)
    tracking.check_server()
    cache = Cache()
    with console.progress("encoding", "sentence") as advance:

        def on_progress(done: int, total: int) -> None:
            raise_if_stopped()
            advance(done, total, {})

        encoded = embed_pairs(data.splits, encoder, cache, check_dimension=check_dimension, on_progress=on_progress)
    for trouble in cache.trouble:
        console.warn(trouble)
    return Material(data, encoder, encoded, cache)


def train(recipe: Recipe, *, score_max: float | None = None, on_test: bool) -> None:
    """Trains a compressor and records the run.

    Args:
        recipe: What to train.
        score_max: The upper end of the data's scores; None for 5, or what is known of STS-B.
        on_test: Whether to evaluate on test as well; otherwise test is not even opened.

    Raises:
        InputError: If something that the user gave can't be used, or the training diverges.
    """
    device = resolve_device(recipe.device)
    splits = SPLITS if on_test else SPLITS[:2]

    def check_dimension(dimension: int) -> None:
        if recipe.dim > dimension:
            raise InputError(f"dim must be at most {dimension}, the numbers of the encoder's vectors, not {recipe.dim}")

    material = gather(
        recipe.dataset, recipe.encoder, recipe.device, splits, score_max=score_max, check_dimension=check_dimension
    )
    with tracking.open_run(recipe.name, "train") as run:
        run.params(recipe.model_dump() | _facts(material, device))
        run.tags(_tags(material.data) | {tracking.RECIPE_DIGEST: recipe.digest})
        inputs = _log_data(run, material.data, splits)
        fitted = _fit(recipe, material, run)
        model_id = run.model(
            fitted.compressor.to_bytes({PROVENANCE: _provenance(recipe, material, score_max)}),
            material.encoded["dev"].embeddings[:INPUT_EXAMPLE_ROWS],
            fitted.compressor.dim,
            recipe.model_dump(),
        )
        outcome, losses = _judge(fitted, material, device)
        for split, assessment in outcome.assessments.items():
            last = recipe.epochs if split == "dev" else 0  # dev has a curve, the rest is a bar in the UI's charts
            run.metrics(_scores(split, assessment), last, model_id, inputs[split])
            run.metrics(_particulars(split, assessment), 0, model_id, inputs[split])
        history = fitted.history
        pictures = {"loss_curves": figures.loss_curves(history.loss, history.clean_loss, history.dev)}
        _record(run, outcome, material.data, recipe.labels, pictures, losses)
    _conclude(run, outcome, material.data, run.run_id)


def evaluate(
    model: str,
    *,
    dataset: str = SAME_DATASET,
    split: str = "test",
    encoder: str | None = None,
    score_max: float | None = None,
    device: str = "auto",
) -> None:
    """Evaluates a trained compressor and records a run of its own, tagged with the trained run's id.

    Args:
        model: A run's id, a model's URI or a folder.
        dataset: As for training, or "same" for the data that the model was trained on.
        split: train, dev or test.
        encoder: As for training; None for the one that the model was trained with.
        score_max: As for training.
        device: auto, cpu or cuda.

    Raises:
        InputError: If something that the user gave can't be used.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    where = resolve_device(device)
    found = tracking.find_model(model)
    compressor, origin = read_compressor(found.file, model)
    recipe = origin.recipe if origin else Recipe()
    if dataset == SAME_DATASET:
        if origin is None:
            raise InputError(f"model {model!r} does not say what it was trained on: name the dataset")
        dataset = origin.dataset if recipe.dataset == "auto" else recipe.dataset
        score_max = score_max or origin.score_max
    encoder = encoder or recipe.encoder
    # Earlier splits are read too: a sentence is encoded with the first that has it, and baselines are fitted on train.
    splits = SPLITS[: SPLITS.index(split) + 1]

    def check_dimension(dimension: int) -> None:
        if dimension != compressor.input_dimension:
            raise InputError(
                f"model {model!r} compresses vectors of {compressor.input_dimension} numbers, and those of encoder "
                f"{encoder!r} have {dimension}: name the encoder that it was trained with"
            )

    material = gather(dataset, encoder, device, splits, score_max=score_max, check_dimension=check_dimension)
    if origin and origin.encoder_fingerprint != material.encoder.fingerprint:
        console.warn(f"the files of encoder {encoder!r} are not those that the model was trained with")

    title = recipe.name if origin else Path(model).name
    with tracking.open_run(f"{title}-{split}", "evaluation") as run:
        given = {"model": model, "split": split, "encoder": encoder, "labels": recipe.labels}
        trained = recipe.model_dump(exclude={"dataset", "device"}) if origin else {}
        run.params(trained | {"dim": compressor.dim} | given | _facts(material, where))
        run.tags(_tags(material.data) | ({tracking.TRAINED_RUN: found.run_id} if found.run_id else {}))
        inputs = _log_data(run, material.data, [split])
        assessment = assess(compressor.to(where), material.encoded[split], recipe.labels)
        outcome = Outcome(
            title=title,
            text=f"Model {model} ({title}) evaluated on the {split} pairs of {material.data.name}.",
            dim=compressor.dim,
            assessments={split: assessment},
            baselines=_baselines(material, {split: assessment}, compressor.dim),
        )
        metrics = _scores(split, assessment) | _particulars(split, assessment)
        run.metrics(metrics, model_id=found.model_id, data=inputs[split])
        _record(run, outcome, material.data, recipe.labels, {}, {split: assessment.losses})
    _conclude(run, outcome, material.data, None)


def read_compressor(file: Path, model: str) -> tuple[Compressor, Provenance | None]:
    """A compressor and what its file says of its training: None where another program saved the weights.

    Raises:
        InputError: If the file holds no compressor.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            text = (tensors.metadata() or {}).get(PROVENANCE)
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - it is no mapping
        origin = Provenance.model_validate_json(text) if text else None
        return Compressor.from_state_dict(state), origin
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"model {model!r} holds no compressor: {one_line(error)}") from error


def _fit(recipe: Recipe, material: Material, run: RunWriter) -> Fitted:
    with console.progress("training", "epoch") as advance:

        def on_epoch(progress: Progress) -> None:
            raise_if_stopped()
            # Spearman first: what is logged first is what MLflow's comparison of runs shows unasked.
            curves = {f"dev/{name}": float(getattr(progress.dev, name)[0]) for name in reversed(METRICS)}
            if progress.epoch == progress.epochs:
                curves = {}  # the last epoch's scores are the model's, and logged with it
            curves |= {"train/loss": progress.loss[0], "train/clean_loss": progress.clean_loss[0]}
            run.metrics(curves, progress.epoch)
            figures = {"loss": f"{progress.loss[0]:.4f}", "dev Spearman": f"{progress.dev.spearman[0]:.4f}"}
            advance(progress.epoch, progress.epochs, figures)

        (fitted,) = fit([recipe], material.encoded["train"], material.encoded["dev"], on_epoch=on_epoch)
    if fitted.diverged_at:
        raise InputError(
            f"the training diverged: the loss of epoch {fitted.diverged_at} is not finite; lower lr, now {recipe.lr:g}"
        )
    return fitted


def _judge(fitted: Fitted, material: Material, device: torch.device) -> tuple[Outcome, dict[str, np.ndarray[Any, Any]]]:
    """The trained compressor on the splits behind train, and each pair's loss on train and dev."""
    recipe = fitted.recipe
    compressor = fitted.compressor.to(device)
    assessments = {
        split: assess(compressor, encoded, recipe.labels)
        for split, encoded in material.encoded.items()
        if split != "train"
    }
    losses = {
        "train": pair_losses(compressor, material.encoded["train"], recipe.labels),
        "dev": assessments["dev"].losses,
    }
    outcome = Outcome(
        title=recipe.name,
        text=(
            f"A compressor ({recipe.architecture}, {compressor.input_dimension} to {recipe.dim} numbers) trained for "
            f"{recipe.epochs} epochs on the {len(losses['train']):,} train pairs of {material.data.name} with noise "
            f"alpha = {recipe.alpha:g} and seed {recipe.seed}."
        ),
        dim=recipe.dim,
        assessments=assessments,
        baselines=_baselines(material, assessments, recipe.dim),
    )
    return outcome, losses


def _baselines(material: Material, assessments: Mapping[str, Assessment], dim: int) -> list[BaselineScores]:
    return cached_baselines(
        material.encoded["train"].embeddings,
        {split: material.encoded[split] for split in assessments},
        {split: assessment.labels for split, assessment in assessments.items()},
        dim,
        material.cache,
    )


def _facts(material: Material, device: torch.device) -> dict[str, Any]:
    """What fixes a result besides the recipe: data, encoder, versions, machine."""
    packages = ("torch", "numpy", "mlflow", "sentence-transformers")
    return {
        "dataset_digest": material.data.digest,
        "encoder_fingerprint": material.encoder.fingerprint[:16],
        "used_device": device.type,
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "twinsqueeze_version": twinsqueeze.__version__,
        "python_version": platform.python_version(),
    } | {f"{package}_version": version(package) for package in packages}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _tags(data: PairDataset) -> dict[str, str]:
    tags = {tracking.DATASET: data.name, tracking.DATASET_DIGEST: data.digest}
    if "test" in data.splits:
        tags[tracking.TEST_DIGEST] = data.splits["test"].digest
    return tags


def _provenance(recipe: Recipe, material: Material, score_max: float | None) -> str:
    return Provenance(
        recipe=recipe,
        dataset=material.data.name,
        dataset_digest=material.data.digest,
        score_max=score_max,
        encoder_fingerprint=material.encoder.fingerprint,
        version=twinsqueeze.__version__,
    ).model_dump_json()


def _log_data(run: RunWriter, data: PairDataset, splits: Sequence[str]) -> dict[str, LoggedData]:
    return {split: run.data(split, data.name, data.splits[split].digest, data.source) for split in splits}


def _scores(split: str, assessment: Assessment) -> dict[str, float]:
    """What is followed over the epochs as well."""
    return {f"{split}/{name}": assessment.scores[name] for name in METRICS}


def _particulars(split: str, assessment: Assessment) -> dict[str, float]:
    """What is measured once. Intervals have a section of their own, which the UI's charts show last."""
    values = {f"{split}/neighbours_kept": assessment.scores["neighbours_kept"]}
    for name, interval in assessment.intervals.items():
        values[f"uncertainty/{split}_{name}_low"] = interval.low
        values[f"uncertainty/{split}_{name}_high"] = interval.high
    return values


def _record(
    run: RunWriter,
    outcome: Outcome,
    data: PairDataset,
    label_kind: str,
    pictures: Mapping[str, Any],
    losses: Mapping[str, np.ndarray[Any, Any]],
) -> None:
    """Writes figures, tables and the description."""
    assessments = outcome.assessments
    run.figures(
        {
            **pictures,
            "predicted_against_label": figures.predicted_against_label(
                {split: a.labels for split, a in assessments.items()},
                {split: a.predicted for split, a in assessments.items()},
                label_kind,
            ),
            "pair_losses": figures.pair_loss_distribution(losses),
        }
    )
    header, table = console.rows(outcome.title, outcome.dim * FLOAT_BYTES, assessments, outcome.baselines)
    run.table("predictions", _predictions(data, assessments))
    run.table("baselines", pd.DataFrame(table, columns=header))
    notice = [f"**{data.notice}**"] if data.notice else []
    sentences = " ".join([outcome.text, *(console.sentence(s, a) for s, a in assessments.items())])
    run.describe("\n\n".join([*notice, sentences, console.markdown(header, table)]))


def _predictions(data: PairDataset, assessments: Mapping[str, Assessment]) -> pd.DataFrame:
    frames = []
    for split, assessment in assessments.items():
        pairs = data.splits[split]
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


def _conclude(run: RunWriter, outcome: Outcome, data: PairDataset, trained_run: str | None) -> None:
    """Prints the result and what to type next."""
    console.print_results(outcome.title, outcome.dim * FLOAT_BYTES, outcome.assessments, outcome.baselines)
    if data.notice:
        console.warn(data.notice)
    steps = []
    if trained_run:
        steps.append(("evaluate it again", f"mlflow run . --env-manager local -e evaluate -P model={trained_run}"))
    if command := tracking.ui_command():
        steps.append(("start MLflow's UI", command))
    steps.append(("look at the run", tracking.run_address(run)))
    steps.append(("compare it with others", tracking.experiment_address(run)))
    console.print_next(steps)
