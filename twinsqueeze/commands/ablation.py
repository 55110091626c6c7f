"""The command ablation: a grid of recipes trained in batches, one run each under a parent run."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twinsqueeze import experiment, experiment_data
from twinsqueeze.commands import run_recording
from twinsqueeze.commands.orphaned_runs import close_orphaned_runs
from twinsqueeze.commands.preparation import load_experiment_data
from twinsqueeze.commands.resume import open_checkpoint, open_checkpoints, plan_with_checkpoints
from twinsqueeze.commands.run_recording import RunRecorder
from twinsqueeze.data.dataset import Dataset
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.errors import InputError
from twinsqueeze.experiment import EvaluatedTraining
from twinsqueeze.experiment_data import DataByRecipe, ExperimentData
from twinsqueeze.grid import find_grid
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry.model_loader import load_base
from twinsqueeze.reporting import figure_pool, report, run_loader, terminal
from twinsqueeze.reporting.ablation_table import AblationTable, TrainedRun
from twinsqueeze.reporting.figure_pool import Draw
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET_DIGEST, GRID_DIGEST, RECIPE_DIGEST
from twinsqueeze.training.base import resolve_bases
from twinsqueeze.training.grid_trainer import GridBatch
from twinsqueeze.training.loop import DivergedError, TrainingResult
from twinsqueeze.utils import console
from twinsqueeze.utils.signals import check_interrupted

# Epochs between measurements of the loss without noise, each of which takes a fifth of the time of an epoch.
CLEAN_LOSS_EVERY = 10


@dataclass
class _LoggedGrid:
    """The children of a grid's run: the evaluated trainings with their runs, and a message for each diverged one."""

    evaluated: dict[Recipe, EvaluatedTraining] = field(default_factory=dict)
    runs: list[TrainedRun] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AblationOptions:
    """The options of the command; `load` loads a dataset by its name.

    Unless `force`, recipes that a finished run of the experiment has trained on the same data are not trained again.
    """

    load: Callable[[str], Dataset] = load_dataset
    force: bool = False
    resume: bool = True
    verbose: bool = False


def run_ablation(grid: str, recipes: Sequence[Recipe], options: AblationOptions) -> None:
    """Trains every recipe of a grid in a run of its own, under a parent run with the ablation table."""
    name = Path(grid).stem
    recipes, bases = resolve_bases(recipes, load_base)

    def load(recipe: Recipe) -> ExperimentData:
        dataset = options.load(recipe.dataset)
        recipe.check_task(dataset.task, dataset.name)
        run_name = f"{name}, {len(recipes)} trainings"
        return load_experiment_data(recipe, dataset, recipe.validate_dim, run_name, bases.get(recipe.base))

    data = experiment_data.load_data(recipes, load)
    recipes = list(data)
    with _start_grid(name, recipes, data, {"grid": grid}) as parent:
        parent.log_artifact(find_grid(grid))
        tables, notes = train_missing(parent, recipes, data, force=options.force, resume=options.resume)
        parent.log_metrics(report.best_scores(tables[0]))
        parent.set_description(report.summary(tables, notes))
    terminal.print_ablation(tables, verbose=options.verbose)
    for notice in dict.fromkeys(d.pairs.notice for d in data.values() if d.pairs.notice):
        console.warn(notice)
    comparison = links.next_command(parent, "compare", output="report")
    register = links.next_command(parent, "register")
    steps = [("figures and a report", comparison), ("register the best run", register), *links.ui_steps(parent)]
    terminal.print_next_steps(steps)


def train_missing(
    parent: RunLogger, recipes: Sequence[Recipe], data: DataByRecipe, *, force: bool | None, resume: bool
) -> tuple[list[AblationTable], list[str]]:
    """Trains recipes in a child of a grid's run each, and returns the tables of all recipes with notes on them.

    Unless `force`, recipes are left out that a finished run of the experiment has trained on the same data; None for a
    command without that option.
    """
    loaded, _ = run_loader.load_runs(parent.experiment_id)
    finished = {} if force else run_loader.finished_recipes(loaded)
    missing = [recipe for recipe in recipes if _fingerprint(recipe, data) not in finished]
    if len(missing) < len(recipes):
        console.info(
            f"{len(recipes) - len(missing)} of {len(recipes)} recipes are in the experiment already and are not "
            f"trained again{'' if force is None else ' (--force true trains them)'}"
        )
    logged = _train_and_log(missing, data, resume=resume)
    return _build_tables(loaded, logged, {_fingerprint(recipe, data) for recipe in recipes})


def train_grid_and_log(recipes: Sequence[Recipe], data: DataByRecipe) -> dict[Recipe, EvaluatedTraining]:
    """Trains distinct recipes in a run each, under a parent run; raises `DivergedError` if a training diverges."""
    with _start_grid(f"comparison-of-{len(recipes)}", recipes, data, {}):
        logged = _train_and_log(recipes, data, resume=True)
        if logged.failures:
            raise DivergedError(logged.failures[0])
        return logged.evaluated


def _fingerprint(recipe: Recipe, data: DataByRecipe) -> run_loader.Fingerprint:
    return recipe.digest, data[recipe].pairs.digest, run_recording.short_fingerprint(data[recipe])


@contextmanager
def _start_grid(
    name: str, recipes: Sequence[Recipe], data: DataByRecipe, params: Mapping[str, Any]
) -> Iterator[RunLogger]:
    """Starts the run of a grid, and ends the runs of killed processes."""
    fingerprints = {_fingerprint(recipe, data)[:2] for recipe in recipes}
    grid_digest = hashlib.sha256(repr(sorted(fingerprints)).encode()).hexdigest()[:16]
    distinct = {each.pairs.digest: each for each in data.values()}
    tags = run_recording.data_tags(*distinct.values()) if len(distinct) == 1 else {}

    def is_same(tags: Mapping[str, str]) -> bool:
        trained = tags.get(RECIPE_DIGEST, ""), tags.get(DATASET_DIGEST, "")
        return tags.get(GRID_DIGEST) == grid_digest or trained in fingerprints

    with start_run(name, "ablation", tags={GRID_DIGEST: grid_digest, **tags}) as parent:
        parent.log_params({**params, "replicas": len(recipes)})
        close_orphaned_runs(parent, is_same, "resumes the grid")
        yield parent


def _train_and_log(recipes: Sequence[Recipe], data: DataByRecipe, *, resume: bool) -> _LoggedGrid:
    logged = _LoggedGrid()
    results = experiment.train_grid(
        recipes, data, clean_loss_every=CLEAN_LOSS_EVERY, plan=partial(_plan_batches, resume=resume)
    )
    with figure_pool.render_pool(len(recipes)) as draw, closing(results):
        for result in results:
            check_interrupted()
            _log_result(result, data[result.recipe], logged, draw)
    return logged


def _plan_batches(
    recipes: Sequence[Recipe], data: ExperimentData, num_parallel: int, *, resume: bool
) -> list[GridBatch]:
    store = open_checkpoints(data, CLEAN_LOSS_EVERY)
    batches = []
    for batch in plan_with_checkpoints(recipes, store, resume=resume, at_once=num_parallel):
        checkpoint = partial(open_checkpoint, store, batch, resume=resume)
        batches.append(
            GridBatch(batch, data.training_pairs(batch[0]), data.encoded["dev"], checkpoint, base=data.base_network)
        )
    return batches


def _log_result(result: TrainingResult, data: ExperimentData, logged: _LoggedGrid, draw: Draw) -> None:
    """Evaluates and logs one training; a diverged one gets a failed run."""
    recipe = result.recipe
    try:
        tags = {RECIPE_DIGEST: recipe.digest, DATASET_DIGEST: data.pairs.digest}
        with start_run(recipe.name, "train", nested=True, tags=tags) as run:
            recorder = RunRecorder.of_training(run, recipe, data, result.resumed_from_epoch)
            recorder.log_history(result)
            logged.evaluated[recipe] = experiment.evaluate_training(result, data)
            recorder.log_training(logged.evaluated[recipe], draw)
    except DivergedError as error:
        logged.failures.append(str(error))
        console.warn(f"{recipe.name}: {error}")
    else:
        logged.runs.append(run_loader.parse_run(run.as_run()))


def _build_tables(
    loaded: Sequence[TrainedRun], logged: _LoggedGrid, fingerprints: set[run_loader.Fingerprint]
) -> tuple[list[AblationTable], list[str]]:
    """Returns the tables of the grid's runs, and notes on them."""
    # The tracking server may not have received all of the runs that were just logged, so those come from memory.
    runs = [run for run in (*loaded, *logged.runs) if run_loader.fingerprint(run) in fingerprints]
    if not runs:
        raise InputError(f"every training of the grid failed; the first error: {logged.failures[0]}")
    recorded = zip(logged.runs, logged.evaluated.values(), strict=True)
    own_baselines = {run.run_id: run_recording.baseline_table(evaluated.baselines) for run, evaluated in recorded}
    tables, missing = run_loader.load_tables(runs, own_baselines)
    notes = [f"{len(logged.failures)} of {len(fingerprints)} trainings diverged."] if logged.failures else []
    return tables, [*notes, *missing]
