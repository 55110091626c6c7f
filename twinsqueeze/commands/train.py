"""The commands main and train."""

from dataclasses import asdict

from twinsqueeze.commands import run_recording
from twinsqueeze.commands.context import ExperimentContext, prepare_context
from twinsqueeze.commands.resume import announce_resume, close_orphaned_runs, open_snapshots, tag_resumed
from twinsqueeze.data.sentence_pairs import SPLITS
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET_DIGEST, RECIPE_DIGEST
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import EpochMetrics, TrainingResult, train_replicas
from twinsqueeze.utils import console
from twinsqueeze.utils.device import resolve_device
from twinsqueeze.utils.signals import check_interrupted

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
    material = prepare_context(
        recipe.dataset,
        recipe.encoder,
        resolve_device(recipe.device),
        SPLITS if on_test else SPLITS[:2],
        score_max=score_max,
        validate_dim=recipe.validate_dim,
    )
    with open_snapshots(material, CLEAN_EVERY).open([recipe], resume=resume) as snapshot:
        with start_run(recipe.name, "train") as run:
            inputs = run_recording.log_training_setup(run, recipe, material)
            _resume_or_start(run, recipe, material, snapshot)
            fitted = _run_training(recipe, material, run, snapshot)
            outcome = run_recording.evaluate_and_log_training(run, fitted, material, inputs)
        snapshot.discard()
    run_recording.print_summary(run, outcome, material, run.run_id)


def _resume_or_start(run: RunLogger, recipe: Recipe, material: ExperimentContext, snapshot: TrainingCheckpoint) -> None:
    """Says from where the training goes on, and ends the runs of processes that were killed."""
    same = {RECIPE_DIGEST: recipe.digest, DATASET_DIGEST: material.data.digest}
    story = "trains the same from the beginning"
    if snapshot.left:
        done = snapshot.left.epoch
        announce_resume(snapshot, [recipe])
        tag_resumed(run, done, recipe.epochs)
        story = f"goes on from its epoch {done}"
    close_orphaned_runs(run, lambda tags: same.items() <= tags.items(), story)


def _run_training(
    recipe: Recipe, material: ExperimentContext, run: RunLogger, snapshot: TrainingCheckpoint
) -> TrainingResult:
    train_pairs = material.training_pairs(recipe)
    with console.progress("training", "epoch") as advance:

        def on_epoch(progress: EpochMetrics) -> None:
            check_interrupted()
            dev = {name: value[0] for name, value in asdict(progress.dev).items()}
            loss, clean_loss = progress.loss[0], progress.clean_loss[0]
            run.log_metrics(
                run_recording.epoch_metrics(progress.epoch, progress.epochs, loss, clean_loss, dev), progress.epoch
            )
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
