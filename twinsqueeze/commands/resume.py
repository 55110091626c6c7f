"""Going on with what was interrupted: the file of a training, and the run that a dead process left."""

from collections.abc import Callable, Mapping, Sequence

from twinsqueeze.commands import run_recording
from twinsqueeze.experiment import ExperimentData
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking import links, orphaned_runs, tags
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.spool.pending import pending_runs, upload_pending
from twinsqueeze.tracking.spool.timeouts import STOP_SECONDS
from twinsqueeze.training.batching import plan_batches
from twinsqueeze.training.checkpointing import CheckpointStore, TrainingCheckpoint
from twinsqueeze.utils import console
from twinsqueeze.utils.text import describe_error


def open_snapshots(material: ExperimentData, clean_loss_every: int) -> CheckpointStore:
    """The files of trainings on this material, with `clean_loss_every` as for `fit`."""
    encoded = material.encoded
    facts = run_recording.environment_params(material) | {"clean_every": clean_loss_every}
    return CheckpointStore(encoded["train"], encoded["dev"], facts, console.warn)


def close_orphaned_runs(run: RunLogger, is_same: Callable[[Mapping[str, str]], bool], story: str) -> None:
    """Gives the runs of the experiment whose processes on this host are gone their end, and says which they are.

    A run that was recorded to its end is sent and keeps that end, so that it counts as done from here on; the others
    are marked as KILLED.

    Args:
        run: That is open; it is tagged with those that were at the same.
        is_same: Whether a run of these tags was at the same.
        story: What becomes of those, for their descriptions: "goes on from epoch 7 of 200".
    """
    try:
        _send_whole(run.experiment_id)
        found = orphaned_runs.mark_orphans_killed(run.experiment_id, is_same, f"Run {run.run_id} {story}.")
        if found.same:
            run.set_tags({tags.RESUMES_RUN: ", ".join(found.same)})
    except Exception as error:  # a training is not given up because another one's record can't be mended
        console.warn(f"runs that dead processes left can't be looked after: {describe_error(error)}")
        return
    kept = {record.run_id for record in pending_runs()}
    for run_id in (*found.same, *found.others):
        rest = "; `python -m twinsqueeze sync` sends what else was recorded of it" if run_id in kept else ""
        console.info(f"run {run_id} was RUNNING and its process is gone: it is KILLED now{rest}")
    for run_id, host in found.elsewhere.items():
        console.info(f"run {run_id} is at the same on {host}, as far as is known: it is left alone")


def _send_whole(experiment_id: str) -> None:
    """Sends the records of the experiment that are whole, and whose processes were killed before all was sent."""
    for record in pending_runs():
        here = (record.uri, record.experiment_id) == (links.store_uri(), experiment_id)
        if not here or not record.ended or record.used or record.damage:
            continue
        sent = upload_pending(record, STOP_SECONDS)
        if sent.why is None:
            console.info(f"{record} had ended, and its process was gone before all of it was sent: it is there now")
        else:
            console.warn(f"{record} is kept, and `python -m twinsqueeze sync` sends it later: {sent.why}")
        if sent.fails:
            return


def announce_resume(snapshot: TrainingCheckpoint, recipes: Sequence[Recipe]) -> None:
    """Says from where interrupted trainings go on, if any were."""
    if snapshot.left:
        what = "an interrupted training goes" if len(recipes) == 1 else f"{len(recipes)} interrupted trainings go"
        console.info(f"{what} on from epoch {snapshot.left.epoch} of {recipes[0].epochs} (--resume false begins anew)")


def tag_resumed(run: RunLogger, epoch: int, epochs: int) -> None:
    """Tags a run whose training an interrupted process began; nothing for one that began itself."""
    if epoch:
        run.set_tags({tags.RESUMED_FROM: f"epoch {epoch} of {epochs}"})


def plan_with_checkpoints(
    recipes: Sequence[Recipe], snapshots: CheckpointStore, *, resume: bool, at_once: int = 1
) -> list[list[Recipe]]:
    """Cuts recipes into batches for `fit`, those that were interrupted first and as they were.

    A batch of which some recipes are recorded already is gone on with as a whole where that is less work than to begin
    the others anew; a replica's bits do not depend on its company.

    Args:
        recipes: On one material.
        snapshots: Of that material.
        resume: Whether to look for interrupted ones.
        at_once: As for `plan_batches`.
    """
    wanted = {recipe.digest: recipe for recipe in recipes}
    interrupted = []
    for left in snapshots.left() if resume and recipes else []:
        names = {"dataset": recipes[0].dataset, "device": recipes[0].device}
        batch = [recipe.model_copy(update=names) for recipe in left.recipes]
        still = [recipe.digest for recipe in batch if recipe.digest in wanted]
        epochs = batch[0].epochs
        if not still:
            continue
        if len(batch) * (epochs - left.state.epoch) > len(still) * epochs:
            with snapshots.open(batch, resume=False):
                continue  # it is removed
        interrupted.append(batch)
        for digest in still:
            del wanted[digest]
    return [*interrupted, *plan_batches(list(wanted.values()), at_once=at_once)]
