"""The command evaluate: a trained compressor evaluated on one split, in a run of its own."""

from dataclasses import dataclass
from pathlib import Path

from twinsqueeze import experiment
from twinsqueeze.commands import run_recording
from twinsqueeze.commands.context import load_experiment_data
from twinsqueeze.data.sentence_pairs import SPLITS
from twinsqueeze.errors import InputError
from twinsqueeze.experiment import ExperimentData
from twinsqueeze.model.checkpoint import CheckpointMetadata, read_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry.model_loader import ResolvedModel, resolve_model
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.tags import TRAINED_RUN
from twinsqueeze.utils import console
from twinsqueeze.utils.device import resolve_device

SAME_DATASET = "same"


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of the command.

    Attributes:
        dataset: As in a recipe, or "same" for the data that the model was trained on.
        split: train, dev or test.
        encoder: As in a recipe; None for the encoder that the model was trained with.
        score_max: Upper end of the scores; None for 5, or 1 for STS-B from the Hub.
        device: auto, cpu or cuda.
    """

    dataset: str = SAME_DATASET
    split: str = "test"
    encoder: str | None = None
    score_max: float | None = None
    device: str = "auto"


@dataclass(frozen=True)
class _LoadedModel:
    uri: str
    resolved: ResolvedModel
    compressor: CompressorNetwork
    metadata: CheckpointMetadata | None

    @property
    def recipe(self) -> Recipe:
        return self.metadata.recipe if self.metadata else Recipe()

    @property
    def name(self) -> str:
        return self.recipe.name if self.metadata else Path(self.uri).name


def evaluate(model: str, options: EvaluationOptions) -> None:
    """Evaluates a trained compressor and records a run that is tagged with the id of the trained run.

    Args:
        model: A run id, a model URI or a folder.
        options: What to evaluate on.

    Raises:
        InputError: If model, data, encoder, device or tracking server can't be used.
    """
    if options.split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, not {options.split!r}")
    resolve_device(options.device)
    resolved = resolve_model(model)
    loaded = _LoadedModel(model, resolved, *read_checkpoint(resolved.checkpoint, model))
    data = _load_data(loaded, options)
    int8_ranges = loaded.metadata.int8_ranges if loaded.metadata else None
    if int8_ranges is None:
        console.info(f"model {model!r} has no calibration for int8: its int8 scores are left out")
    recipe, split = loaded.recipe, options.split
    with start_run(f"{loaded.name}-{split}", "evaluation") as run:
        trained = recipe.model_dump(exclude={"dataset", "device"}) if loaded.metadata else {}
        given = {"model": model, "split": split, "encoder": data.encoder.name, "dim": loaded.compressor.dim}
        label_transform = recipe.label_transform
        run.log_params(trained | given | {"label_transform": label_transform} | run_recording.environment_params(data))
        run_tags = {TRAINED_RUN: resolved.run_id} if resolved.run_id else {}
        run.set_tags(run_recording.data_tags(data) | run_tags)
        evaluation = experiment.evaluate(loaded.name, loaded.compressor, data, [split], label_transform, int8_ranges)
        run_recording.log_evaluation(run, evaluation, data, label_transform, resolved)
    run_recording.print_summary(run, evaluation, data, None)


def _load_data(loaded: _LoadedModel, options: EvaluationOptions) -> ExperimentData:
    model, metadata = loaded.uri, loaded.metadata
    dataset, score_max = options.dataset, options.score_max
    if dataset == SAME_DATASET:
        if metadata is None:
            raise InputError(f"model {model!r} does not record its training data: pass --dataset")
        dataset = metadata.dataset if loaded.recipe.dataset == "auto" else loaded.recipe.dataset
        score_max = score_max or metadata.score_max
    encoder = options.encoder or loaded.recipe.encoder
    expected = loaded.compressor.input_dim

    def validate_dim(encoder_dim: int) -> None:
        if encoder_dim != expected:
            raise InputError(
                f"model {model!r} compresses vectors of {expected} dimensions, and encoder {encoder!r} has "
                f"{encoder_dim}: pass the encoder that the model was trained with"
            )

    # Earlier splits are needed too: baselines are fitted on train, and a sentence is encoded with the first split that
    # contains it.
    splits = SPLITS[: SPLITS.index(options.split) + 1]
    data = load_experiment_data(
        dataset, encoder, options.device, splits, score_max=score_max, validate_dim=validate_dim
    )
    if metadata and metadata.encoder_fingerprint != data.encoder.fingerprint:
        console.warn(f"the files of encoder {encoder!r} are not those that the model was trained with")
    return data
