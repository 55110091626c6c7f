"""The commands main, train and best: one training, recorded in MLflow."""

from collections.abc import Callable

from twinsqueeze import experiment
from twinsqueeze.commands.orphaned_runs import close_orphaned_runs
from twinsqueeze.commands.preparation import load_experiment_data
from twinsqueeze.commands.resume import open_checkpoint, open_checkpoints
from twinsqueeze.commands.run_recording import RunRecorder
from twinsqueeze.data.dataset import SPLITS, Dataset
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.experiment import EvaluatedTraining
from twinsqueeze.experiment_data import ExperimentData, adapt_recipe
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry.model_loader import load_base
from twinsqueeze.task import SIMILARITY, Task
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.tags import DATASET_DIGEST, RECIPE_DIGEST


def train(
    choose_recipe: Callable[[Task], Recipe],
    *,
    load: Callable[..., Dataset] = load_dataset,
    on_test: bool,
    resume: bool,
    verbose: bool,
) -> None:
    """Trains a compressor, records the run and prints its scores. Unless `on_test`, test is not read.

    The recipe is chosen by the task of the data; its dataset and base are the same for all tasks.
    """
    first = choose_recipe(SIMILARITY)
    base = load_base(first.base) if first.has_base else None
    if base:
        base.adapt_recipe(first)  # raises before the data are read
    dataset = load(first.dataset, splits=SPLITS if on_test else SPLITS[:2])
    recipe = choose_recipe(dataset.task)
    recipe = base.adapt_recipe(recipe) if base else recipe
    recipe.check_task(dataset.task, dataset.name)
    data = load_experiment_data(recipe, dataset, recipe.validate_dim, recipe.name, base)
    recipe = adapt_recipe(recipe, data)
    with data.fitting_baselines(recipe):
        recorder, evaluated = train_and_log(recipe, data, resume=resume)
    run = recorder.run
    if on_test:
        step = "register the best run", links.next_command(run, "register")
    else:
        step = "evaluate it on test", links.next_command(run, "evaluate", model=run.run_id)
    recorder.print_summary(evaluated, [step, *links.ui_steps(run)], verbose=verbose)


def train_and_log(
    recipe: Recipe, data: ExperimentData, *, resume: bool = True
) -> tuple[RunRecorder, EvaluatedTraining]:
    """Trains a compressor in a run of its own, as `train` does."""
    same = {RECIPE_DIGEST: recipe.digest, DATASET_DIGEST: data.pairs.digest}
    store = open_checkpoints(data, clean_loss_every=1)
    with open_checkpoint(store, [recipe], resume=resume) as checkpoint:
        epoch = checkpoint.epoch
        with start_run(recipe.name, "train", tags=same) as run:
            recorder = RunRecorder.of_training(run, recipe, data, epoch)
            note = f"resumes from epoch {epoch}" if epoch else "trains the same from the start"
            close_orphaned_runs(run, lambda tags: same.items() <= tags.items(), note)
            result = experiment.train(recipe, data, recorder.log_epoch, checkpoint)
            evaluated = experiment.evaluate_training(result, data)
            recorder.log_training(evaluated)
        checkpoint.discard()
    return recorder, evaluated
