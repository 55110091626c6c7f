"""The command evaluate."""

from pathlib import Path

from twinsqueeze.commands import run_recording
from twinsqueeze.commands.context import prepare_context
from twinsqueeze.commands.run_recording import RunResult
from twinsqueeze.data.sentence_pairs import SPLITS
from twinsqueeze.errors import InputError
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry import model_loader
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.tags import TRAINED_RUN
from twinsqueeze.utils import console
from twinsqueeze.utils.device import resolve_device

SAME_DATASET = "same"


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
    found = model_loader.resolve_model(model)
    compressor, origin = read_checkpoint(found.checkpoint, model)
    recipe = origin.recipe if origin else Recipe()
    if dataset == SAME_DATASET:
        if origin is None:
            raise InputError(f"model {model!r} does not say what it was trained on: name the dataset")
        dataset = origin.dataset if recipe.dataset == "auto" else recipe.dataset
        score_max = score_max or origin.score_max
    encoder = encoder or recipe.encoder

    def validate_dim(dimension: int) -> None:
        if dimension != compressor.input_dimension:
            raise InputError(
                f"model {model!r} compresses vectors of {compressor.input_dimension} numbers, and those of encoder "
                f"{encoder!r} have {dimension}: name the encoder that it was trained with"
            )

    # Earlier splits are read too: a sentence is encoded with the first that has it, and baselines are fitted on train.
    splits = SPLITS[: SPLITS.index(split) + 1]
    material = prepare_context(dataset, encoder, where, splits, score_max=score_max, validate_dim=validate_dim)
    if origin and origin.encoder_fingerprint != material.encoder.fingerprint:
        console.warn(f"the files of encoder {encoder!r} are not those that the model was trained with")

    title = recipe.name if origin else Path(model).name
    ranges = origin.int8_ranges if origin else None
    if ranges is None:
        console.info(f"model {model!r} has no ranges to scale int8 by: int8 is left out")
    with start_run(f"{title}-{split}", "evaluation") as run:
        given = {"model": model, "split": split, "encoder": encoder, "label_transform": recipe.label_transform}
        trained = recipe.model_dump(exclude={"dataset", "device"}) if origin else {}
        run.log_params(trained | {"dim": compressor.dim} | given | run_recording.environment_params(material))
        run.set_tags(run_recording.data_tags(material) | ({TRAINED_RUN: found.run_id} if found.run_id else {}))
        outcome = RunResult(
            title=title,
            text=f"Model {model} ({title}) evaluated on the {split} pairs of {material.data.name}.",
            dim=compressor.dim,
            precision=compressor.precision,
            bytes=compressor.bytes_per_vector,
            assessments={split: material.evaluator(split, recipe.label_transform)(compressor.to(where), ranges)},
            baselines=material.baselines([split], recipe.label_transform, compressor.dim),
        )
        run_recording.record_evaluation(run, outcome, material, recipe.label_transform, split, found.model_id)
    run_recording.print_summary(run, outcome, material, None)
