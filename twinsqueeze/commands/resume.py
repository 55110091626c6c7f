"""Resuming interrupted trainings, and closing the runs that killed processes left open."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from twinsqueeze.commands import run_recording
from twinsqueeze.experiment import ExperimentData
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking import links, orphaned_runs, tags
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.spool.journal import RunSpool, pending_runs
from twinsqueeze.tracking.spool.uploader import EXIT_TIMEOUT, upload_pending
from twinsqueeze.training.batching import plan_batches
from twinsqueeze.training.checkpointing import CheckpointStore, TrainingCheckpoint
from twinsqueeze.utils import console
from twinsqueeze.utils.text import describe_error


def close_orphaned_runs(run: RunLogger, is_same: Callable[[Mapping[str, str]], bool], note: str) -> None:
    """Ends the experiment's runs whose processes on this host are gone: as recorded if complete, else as KILLED.

    The current run is tagged with those that, by their tags, were doing the same. Their descriptions get the note, such
    as "resumes from epoch 7".
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


def open_checkpoints(data: ExperimentData, clean_loss_every: int) -> CheckpointStore:
    """Returns the checkpoints of trainings on these data; `clean_loss_every` as for `train_replicas`."""
    environment = run_recording.environment_params(data) | {"clean_loss_every": clean_loss_every}
    return CheckpointStore(data.encoded["train"], data.encoded["dev"], environment, console.warn)


@contextmanager
def open_checkpoint(
    checkpoints: CheckpointStore, recipes: Sequence[Recipe], *, resume: bool
) -> Iterator[TrainingCheckpoint]:
    """Opens the checkpoint of a batch, and prints from which epoch it resumes, if it does."""
    with checkpoints.open(recipes, resume=resume) as checkpoint:
        if state := checkpoint.resume_state:
            many = len(recipes) > 1
            what = f"{len(recipes)} interrupted trainings resume" if many else "an interrupted training resumes"
            console.info(f"{what} from epoch {state.epoch} of {recipes[0].epochs} (--resume false starts again)")
        yield checkpoint


def plan_with_checkpoints(
    recipes: Sequence[Recipe], checkpoints: CheckpointStore, *, resume: bool, at_once: int = 1
) -> list[list[Recipe]]:
    """Splits recipes on the same data into batches as `plan_batches` does, the interrupted batches first, as they were.

    If some recipes of an interrupted batch are not wanted any more, the whole batch is resumed if that takes fewer
    epochs than training the others again. Otherwise its checkpoint is removed.
    """
    wanted = {recipe.digest: recipe for recipe in recipes}
    resumed = []
    for interrupted in checkpoints.interrupted() if resume and recipes else []:
        update = {"dataset": recipes[0].dataset, "device": recipes[0].device}
        batch = [recipe.model_copy(update=update) for recipe in interrupted.recipes]
        digests = wanted.keys() & {recipe.digest for recipe in batch}
        epochs = batch[0].epochs
        if digests and len(batch) * (epochs - interrupted.state.epoch) > len(digests) * epochs:
            with checkpoints.open(batch, resume=False):
                pass  # the file is removed
        elif digests:
            resumed.append(batch)
            wanted = {digest: recipe for digest, recipe in wanted.items() if digest not in digests}
    return [*resumed, *plan_batches(list(wanted.values()), at_once=at_once)]
