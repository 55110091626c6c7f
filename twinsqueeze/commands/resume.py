"""Resuming interrupted trainings, and closing the runs that killed processes left open."""

from collections.abc import Callable, Mapping, Sequence

from twinsqueeze.commands import run_recording
from twinsqueeze.experiment import ExperimentData
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking import links, orphaned_runs, tags
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.spool import EXIT_TIMEOUT, RunSpool, pending_runs, upload_pending
from twinsqueeze.training.batching import plan_batches
from twinsqueeze.training.checkpointing import CheckpointStore, TrainingCheckpoint
from twinsqueeze.utils import console
from twinsqueeze.utils.text import describe_error


def open_checkpoints(data: ExperimentData, clean_loss_every: int) -> CheckpointStore:
    """Returns the checkpoints of trainings on these data; `clean_loss_every` as for `train_replicas`."""
    environment = run_recording.environment_params(data) | {"clean_loss_every": clean_loss_every}
    return CheckpointStore(data.encoded["train"], data.encoded["dev"], environment, console.warn)


def close_orphaned_runs(run: RunLogger, is_same: Callable[[Mapping[str, str]], bool], note: str) -> None:
    """Ends the experiment's runs whose processes on this host are gone: as recorded if complete, else as KILLED.

    Args:
        run: The current run. It is tagged with the orphaned runs that it resumes or repeats.
        is_same: Whether a run with these tags was doing the same.
        note: What the current run does, for the description of those: "resumes from epoch 7".
    """
    try:
        _upload_complete_runs(run.experiment_id)
        orphans = orphaned_runs.mark_orphans_killed(run.experiment_id, is_same, f"Run {run.run_id} {note}.")
        if same := [run_id for run_id, is_same_recipe in orphans.items() if is_same_recipe]:
            run.set_tags({tags.RESUMES_RUN: ", ".join(same)})
    except Exception as error:  # the records of other runs must not stop this training
        console.warn(f"runs of killed processes cannot be closed: {describe_error(error)}")
        return
    pending = {record.run_id for record in pending_runs()}
    for run_id in orphans:
        hint = "; `python -m twinsqueeze sync` uploads the rest of its records" if run_id in pending else ""
        console.info(f"run {run_id} was RUNNING but its process is gone: marked as KILLED{hint}")


def _upload_complete_runs(experiment_id: str) -> None:
    """Upload the runs that ended before their process was killed, but were not fully uploaded."""

    def is_orphan(run: RunSpool) -> bool:
        is_here = (run.uri, run.experiment_id) == (links.store_uri(), experiment_id)
        return is_here and run.is_complete and not run.is_locked

    for run, reason in upload_pending(filter(is_orphan, pending_runs()), EXIT_TIMEOUT):
        if reason:
            console.warn(f"{run} is not fully uploaded, `python -m twinsqueeze sync` retries: {reason}")
        else:
            console.info(f"{run} had ended before its process was killed: its records are uploaded")


def announce_resume(checkpoint: TrainingCheckpoint, recipes: Sequence[Recipe]) -> None:
    """Prints from which epoch interrupted trainings resume, if they do."""
    if state := checkpoint.resume_state:
        what = (
            "an interrupted training resumes" if len(recipes) == 1 else f"{len(recipes)} interrupted trainings resume"
        )
        console.info(f"{what} from epoch {state.epoch} of {recipes[0].epochs} (--resume false starts again)")


def tag_resumed(run: RunLogger, epoch: int, epochs: int) -> None:
    """Tags a run whose training was resumed from an epoch; does nothing for epoch 0."""
    if epoch:
        run.set_tags({tags.RESUMED_FROM: f"epoch {epoch} of {epochs}"})


def plan_with_checkpoints(
    recipes: Sequence[Recipe], checkpoints: CheckpointStore, *, resume: bool, at_once: int = 1
) -> list[list[Recipe]]:
    """Splits recipes into batches for `train_replicas`; interrupted batches come first, as they were.

    If some recipes of an interrupted batch are not wanted any more, the whole batch is resumed if that takes fewer
    epochs than training the others again. Otherwise its checkpoint is removed.

    Args:
        recipes: Recipes on the same data.
        checkpoints: The checkpoints of these data.
        resume: Whether to look for interrupted batches.
        at_once: As for `plan_batches`.
    """
    wanted = {recipe.digest: recipe for recipe in recipes}
    resumed = []
    for interrupted in checkpoints.interrupted() if resume and recipes else []:
        update = {"dataset": recipes[0].dataset, "device": recipes[0].device}
        batch = [recipe.model_copy(update=update) for recipe in interrupted.recipes]
        digests = [recipe.digest for recipe in batch if recipe.digest in wanted]
        epochs = batch[0].epochs
        if not digests:
            continue
        if len(batch) * (epochs - interrupted.state.epoch) > len(digests) * epochs:
            with checkpoints.open(batch, resume=False):
                continue
        resumed.append(batch)
        for digest in digests:
            del wanted[digest]
    return [*resumed, *plan_batches(list(wanted.values()), at_once=at_once)]
