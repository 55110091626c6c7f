"""The command evaluate: a trained compressor evaluated on one split, in a run of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twinsqueeze import experiment
from twinsqueeze.commands.preparation import load_experiment_data
from twinsqueeze.commands.run_recording import RunRecorder
from twinsqueeze.data.dataset import SPLITS, Dataset
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.errors import InputError
from twinsqueeze.experiment import Evaluation
from twinsqueeze.experiment_data import ExperimentData
from twinsqueeze.model.checkpoint import CheckpointMetadata, read_checkpoint
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry.model_loader import resolve_model
from twinsqueeze.task import NO_ENCODER
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.tags import TRAINED_RUN
from twinsqueeze.utils import console

SAME_DATASET = "same"


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of the command; without an encoder, the encoder that the model was trained with.

    `data_of` is a training whose data are meant by the dataset "same"; by default the model's own.
    """

    model: str
    dataset: str = SAME_DATASET
    split: str = "test"
    encoder: str | None = None
    score_max: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    verbose: bool = False
    data_of: str | None = None


def evaluate(options: EvaluationOptions) -> None:
    """Evaluates a trained compressor, records a run and prints its scores."""
    recorder, evaluation = evaluate_and_log(options)
    recorder.print_summary(evaluation, links.ui_steps(recorder.run), verbose=options.verbose)


def evaluate_and_log(options: EvaluationOptions, *, nested: bool = False) -> tuple[RunRecorder, Evaluation]:
    """Evaluates a trained compressor in a run that is tagged with the id of the trained run."""
    model, split = options.model, options.split
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    resolved = resolve_model(model)
    compressor, metadata = read_checkpoint(resolved.checkpoint, model)
    recipe = metadata.recipe if metadata else Recipe()
    name = recipe.name if metadata else Path(model).name
    run_name = f"{name}-{split}"
    if options.dataset != SAME_DATASET:
        run_name += f"-{Path(options.dataset).name}"
    data = _load_data(options, recipe, metadata, compressor.input_dim, run_name)
    if not metadata or metadata.int8_ranges is None:
        console.info(f"model {model!r} has no calibration for int8: its int8 scores are left out")
    params = recipe.model_dump(exclude={"dataset", "device"}) if metadata else {}
    params |= {"model": model, "split": split, "encoder": data.encoder_name, "dim": compressor.dim}
    params |= {"label_transform": recipe.label_transform}
    tags = {TRAINED_RUN: resolved.run_id} if resolved.run_id else {}
    with start_run(run_name, "evaluation", nested=nested) as run:
        if resolved.run_id:
            run.set_parent(resolved.run_id)
        recorder = RunRecorder(run, data, [split], params, tags)
        evaluation = experiment.evaluate(name, compressor, metadata, data, [split])
        recorder.log_evaluation(evaluation, resolved.model_id)
    return recorder, evaluation


def _load_data(
    options: EvaluationOptions, recipe: Recipe, metadata: CheckpointMetadata | None, input_dim: int, run_name: str
) -> ExperimentData:
    dataset, score_max, columns = options.dataset, options.score_max, options.columns
    last_split, load = options.split, load_dataset
    encoder = options.encoder or recipe.encoder
    if dataset == SAME_DATASET:
        training = _read_metadata(options.data_of) if options.data_of else metadata
        if training is None:
            raise InputError(f"model {options.model!r} does not record its training data: pass --dataset")
        dataset = training.dataset if training.recipe.dataset == "auto" else training.recipe.dataset
        score_max, columns = score_max or training.score_max, columns or training.columns
        last_split = max(last_split, "dev", key=SPLITS.index)  # the digest is over train and dev
        load = partial(_load_same_pairs, options.data_of or options.model, training.dataset_digest)
        encoder = training.recipe.encoder if encoder == NO_ENCODER else encoder

    def validate_dim(encoder_dim: int) -> None:
        if encoder_dim != input_dim:
            raise InputError(
                f"model {options.model!r} compresses vectors of {input_dim} dimensions, and encoder {encoder!r} has "
                f"{encoder_dim}: pass the encoder that the model was trained with"
            )

    # Earlier splits are needed too: baselines are fitted on train, and a sentence is encoded with the first split that
    # contains it.
    splits = SPLITS[: SPLITS.index(last_split) + 1]
    source = Recipe.parse({"dataset": dataset, "encoder": encoder, "device": options.device})
    pairs = load(dataset, splits=splits, score_max=score_max, columns=columns, reporter=console.TERMINAL)
    data = load_experiment_data(source, pairs, validate_dim, run_name)
    fingerprints = {metadata.encoder_fingerprint if metadata else NO_ENCODER, data.encoder_fingerprint}
    if len(fingerprints - {NO_ENCODER}) > 1:
        console.warn(f"the files of encoder {encoder!r} are not those that the model was trained with")
    return data


def _read_metadata(model: str) -> CheckpointMetadata | None:
    return read_checkpoint(resolve_model(model).checkpoint, model)[1]


def _load_same_pairs(model: str, digest: str, dataset: str, **options: Any) -> Dataset:
    pairs = load_dataset(dataset, **options)
    if pairs.digest != digest:
        raise InputError(
            f"the train and dev pairs of {pairs.source} are not those that model {model!r} was trained on: restore "
            "them, or pass --dataset"
        )
    return pairs
