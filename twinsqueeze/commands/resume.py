"""Resuming interrupted trainings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from twinsqueeze.commands.run_recording import environment_params
from twinsqueeze.experiment_data import ExperimentData
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.batching import plan_batches
from twinsqueeze.training.checkpointing import CheckpointStore, TrainingCheckpoint
from twinsqueeze.utils import console


def open_checkpoints(data: ExperimentData, clean_loss_every: int) -> CheckpointStore:
    """Returns the checkpoints of trainings on these data; `clean_loss_every` as for `train_replicas`."""
    environment = environment_params(data) | {"clean_loss_every": clean_loss_every}
    return CheckpointStore(data.encoded["train"], data.encoded["dev"], environment, console.warn)


@contextmanager
def open_checkpoint(store: CheckpointStore, recipes: Sequence[Recipe], *, resume: bool) -> Iterator[TrainingCheckpoint]:
    """Opens the checkpoint of a batch, and prints from which epoch it resumes, if it does."""
    with store.open(recipes, resume=resume) as checkpoint:
        if checkpoint.resume_state:
            what = f"{n} interrupted trainings resume" if (n := len(recipes)) > 1 else "an interrupted training resumes"
            console.info(f"{what} from epoch {checkpoint.epoch} of {recipes[0].epochs} (--resume false starts again)")
        yield checkpoint


def plan_with_checkpoints(
    recipes: Sequence[Recipe], checkpoints: CheckpointStore, *, resume: bool, at_once: int = 1
) -> list[list[Recipe]]:
    """Splits recipes on the same data into batches as `plan_batches` does, the interrupted batches first, as they were.

    An interrupted batch is resumed as a whole, even if some of its recipes are not among `recipes` any more.
    """
    wanted = {recipe.digest: recipe for recipe in recipes}
    resumed = []
    for interrupted in checkpoints.interrupted() if resume and recipes else []:
        update = {"dataset": recipes[0].dataset, "device": recipes[0].device}
        batch = [recipe.model_copy(update=update) for recipe in interrupted.recipes]
        if digests := wanted.keys() & {recipe.digest for recipe in batch}:
            resumed.append(batch)
            wanted = {digest: recipe for digest, recipe in wanted.items() if digest not in digests}
    return [*resumed, *plan_batches(list(wanted.values()), at_once=at_once)]
