"""The jobs train and evaluate: each joins the rooms, from reading pairs to recording the run."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path

import numpy as np

from twinsqueeze import records, resuming
from twinsqueeze.data.sentence_pairs import SPLITS
from twinsqueeze.errors import InputError
from twinsqueeze.material import Material, gather
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.model.compressor import Compressor
from twinsqueeze.model.precision import Int8Ranges
from twinsqueeze.recipe import Recipe
from twinsqueeze.records import Outcome
from twinsqueeze.registry import model_loader
from twinsqueeze.search_cost import IndexCost, check_searched, check_train, measure
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET_DIGEST, RECIPE_DIGEST, TRAINED_RUN
from twinsqueeze.training.batching import resolve_device
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import EpochMetrics, TrainingResult, train_replicas
from twinsqueeze.utils import console
from twinsqueeze.utils.signals import check_interrupted

SAME_DATASET = "same"
# Epochs between measurements of the clean loss.
CLEAN_EVERY = 1


def train(recipe: Recipe, *, score_max: float | None = None, on_test: bool, resume: bool = True) -> None:
    """Trains a compressor and records the run.

    Args:
        recipe: What to train.
        score_max: The upper end of the data's scores; None for 5, or what is known of STS-B.
        on_test: Whether to evaluate on test as well; otherwise test is not even opened.
        resume: Whether to go on where the same training was interrupted.

    Raises:
        InputError: If something that the user gave can't be used, or the training diverges.
    """
    material = gather(
        recipe.dataset,
        recipe.encoder,
        resolve_device(recipe.device),
        SPLITS if on_test else SPLITS[:2],
        score_max=score_max,
        validate_dim=recipe.validate_dim,
    )
    with resuming.open_snapshots(material, CLEAN_EVERY).open([recipe], resume=resume) as snapshot:
        with start_run(recipe.name, "train") as run:
            inputs = records.begin_training(run, recipe, material)
            _take_up(run, recipe, material, snapshot)
            fitted = _fit(recipe, material, run, snapshot)
            outcome = records.end_training(run, fitted, material, inputs)
        snapshot.discard()
    records.conclude(run, outcome, material, run.run_id)


def _take_up(run: RunLogger, recipe: Recipe, material: Material, snapshot: TrainingCheckpoint) -> None:
    """Says from where the training goes on, and ends the runs of processes that were killed."""
    same = {RECIPE_DIGEST: recipe.digest, DATASET_DIGEST: material.data.digest}
    story = "trains the same from the beginning"
    if snapshot.left:
        done = snapshot.left.epoch
        resuming.say_taken_up(snapshot, [recipe])
        resuming.note_taken_up(run, done, recipe.epochs)
        story = f"goes on from its epoch {done}"
    resuming.end_left_runs(run, lambda tags: same.items() <= tags.items(), story)


def _fit(recipe: Recipe, material: Material, run: RunLogger, snapshot: TrainingCheckpoint) -> TrainingResult:
    train_pairs = material.training_pairs(recipe)
    with console.progress("training", "epoch") as advance:

        def on_epoch(progress: EpochMetrics) -> None:
            check_interrupted()
            dev = {name: value[0] for name, value in asdict(progress.dev).items()}
            loss, clean_loss = progress.loss[0], progress.clean_loss[0]
            run.metrics(records.epoch_metrics(progress.epoch, progress.epochs, loss, clean_loss, dev), progress.epoch)
            figures = {"loss": f"{loss:.4f}", "dev Spearman": f"{dev['spearman']:.4f}"}
            advance(progress.epoch, progress.epochs, figures)

        def on_teacher_epoch(done: int, total: int) -> None:
            check_interrupted()
            advance(0, recipe.epochs, {"heads": f"{done} of {total} epochs"})

        (fitted,) = train_replicas(
            [recipe],
            train_pairs,
            material.encoded["dev"],
            clean_loss_every=CLEAN_EVERY,
            on_epoch=on_epoch,
            on_teacher_epoch=on_teacher_epoch,
            snapshot=snapshot,
        )
    if fitted.diverged_at:
        snapshot.discard()
    fitted.check()
    return fitted


def evaluate(
    model: str,
    *,
    dataset: str = SAME_DATASET,
    split: str = "test",
    encoder: str | None = None,
    score_max: float | None = None,
    device: str = "auto",
    search_vectors: int = 0,
) -> None:
    """Evaluates a trained compressor and records a run of its own, tagged with the trained run's id.

    Args:
        model: A run's id, a model's URI or a folder.
        dataset: As for training, or "same" for the data that the model was trained on.
        split: train, dev or test.
        encoder: As for training; None for the one that the model was trained with.
        score_max: As for training.
        device: auto, cpu or cuda.
        search_vectors: How many vectors to time a search in; 0 times none.

    Raises:
        InputError: If something that the user gave can't be used.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if search_vectors:
        check_searched(search_vectors)
    where = resolve_device(device)
    found = model_loader.resolve_model(model)
    compressor, origin = read_checkpoint(found.file, model)
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
    material = gather(dataset, encoder, where, splits, score_max=score_max, validate_dim=validate_dim)
    if origin and origin.encoder_fingerprint != material.encoder.fingerprint:
        console.warn(f"the files of encoder {encoder!r} are not those that the model was trained with")

    title = recipe.name if origin else Path(model).name
    ranges = origin.int8_ranges if origin else None
    if ranges is None:
        console.info(f"model {model!r} has no ranges to scale int8 by: int8 is left out")
    if search_vectors:
        check_train(len(material.encoded["train"].embeddings))
    with start_run(f"{title}-{split}", "evaluation") as run:
        given = {"model": model, "split": split, "encoder": encoder, "labels": recipe.labels}
        trained = recipe.model_dump(exclude={"dataset", "device"}) if origin else {}
        run.params(
            trained | {"dim": compressor.dim, "search_vectors": search_vectors} | given | records.facts(material)
        )
        run.tags(records.data_tags(material) | ({TRAINED_RUN: found.run_id} if found.run_id else {}))
        outcome = Outcome(
            title=title,
            text=f"Model {model} ({title}) evaluated on the {split} pairs of {material.data.name}.",
            dim=compressor.dim,
            precision=compressor.precision,
            bytes=compressor.vector_bytes,
            assessments={split: material.evaluator(split, recipe.labels)(compressor.to(where), ranges)},
            baselines=material.baselines([split], recipe.labels, compressor.dim),
            costs=_time_search(compressor, ranges, material, search_vectors) if search_vectors else (),
        )
        records.record_evaluation(run, outcome, material, recipe.labels, split, found.model_id)
    records.conclude(run, outcome, material, None)


def _time_search(
    compressor: Compressor, ranges: Int8Ranges | None, material: Material, vectors: int
) -> Sequence[IndexCost]:
    sentences = np.concatenate([split.embeddings for split in material.encoded.values()])
    with console.progress("timing searches", "step") as advance:
        steps = count(1)

        def on_progress(what: str) -> None:
            check_interrupted()
            advance(next(steps), None, {"done": what})

        train = material.encoded["train"].embeddings
        return measure(train, sentences, compressor, ranges, vectors=vectors, on_progress=on_progress)
