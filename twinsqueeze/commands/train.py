"""The commands main, train and best: one training, recorded in MLflow."""

from twinsqueeze import experiment
from twinsqueeze.commands import run_recording
from twinsqueeze.commands.context import load_experiment_data
from twinsqueeze.commands.resume import announce_resume, close_orphaned_runs, open_checkpoints, tag_resumed
from twinsqueeze.data.sentence_pairs import SPLITS
from twinsqueeze.experiment import EvaluatedTraining, ExperimentData
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET_DIGEST, RECIPE_DIGEST
from twinsqueeze.training.checkpointing import TrainingCheckpoint

# Epochs between measurements of the loss without noise.
CLEAN_LOSS_EVERY = 1


def train(recipe: Recipe, *, score_max: float | None = None, on_test: bool, resume: bool = True) -> None:
    """Trains a compressor, records the run and prints its scores.

    Args:
        recipe: What to train.
        score_max: Upper end of the scores; None for 5, or 1 for STS-B from the Hub.
        on_test: Whether to evaluate on test as well; otherwise test is not read.
        resume: Whether to resume an interrupted training of the same recipe.

    Raises:
        InputError: If data, encoder, device or tracking server can't be used, or the training diverges.
    """
    data = load_experiment_data(
        recipe.dataset,
        recipe.encoder,
        recipe.device,
        SPLITS if on_test else SPLITS[:2],
        score_max=score_max,
        validate_dim=recipe.validate_dim,
    )
    run, evaluated = train_and_log(recipe, data, resume=resume)
    run_recording.print_summary(run, evaluated.evaluation, data, run.run_id)


def train_and_log(
    recipe: Recipe, data: ExperimentData, *, resume: bool = True, nested: bool = False
) -> tuple[RunLogger, EvaluatedTraining]:
    """Trains a compressor in a run of its own.

    Args:
        recipe: What to train.
        data: What to train and evaluate on.
        resume: Whether to resume an interrupted training of the same recipe.
        nested: Whether the run is a child of the open run.

    Raises:
        InputError: If the run can't be recorded, or the training diverges.
    """
    with open_checkpoints(data, CLEAN_LOSS_EVERY).open([recipe], resume=resume) as checkpoint:
        with start_run(recipe.name, "train", nested=nested) as run:
            inputs = run_recording.log_training_setup(run, recipe, data)
            _close_orphaned_runs(run, recipe, data, checkpoint)
            result = experiment.train(
                recipe,
                data,
                clean_loss_every=CLEAN_LOSS_EVERY,
                on_epoch=lambda metrics: run_recording.log_epoch(run, metrics),
                checkpoint=checkpoint,
            )
            evaluated = experiment.evaluate_training(result, data)
            run_recording.log_training(run, evaluated, data, inputs)
        checkpoint.discard()
    return run, evaluated


def _close_orphaned_runs(run: RunLogger, recipe: Recipe, data: ExperimentData, checkpoint: TrainingCheckpoint) -> None:
    """Reports where the training resumes, and ends runs whose processes were killed."""
    same = {RECIPE_DIGEST: recipe.digest, DATASET_DIGEST: data.pairs.digest}
    successor = "trains the same from the start"
    if checkpoint.resume_state:
        epoch = checkpoint.resume_state.epoch
        announce_resume(checkpoint, [recipe])
        tag_resumed(run, epoch, recipe.epochs)
        successor = f"resumes from epoch {epoch}"
    close_orphaned_runs(run, lambda tags: same.items() <= tags.items(), successor)
