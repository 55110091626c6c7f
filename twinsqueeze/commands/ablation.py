"""The command ablation: a grid of recipes trained in batches, one run each under a parent run."""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd

from twinsqueeze import experiment
from twinsqueeze.commands import run_recording
from twinsqueeze.commands.context import load_experiment_data
from twinsqueeze.commands.resume import (
    announce_resume,
    close_orphaned_runs,
    open_checkpoints,
    plan_with_checkpoints,
    tag_resumed,
)
from twinsqueeze.data.sentence_pairs import SPLITS
from twinsqueeze.errors import InputError
from twinsqueeze.experiment import DataByKey, EvaluatedTraining, ExperimentData, data_key
from twinsqueeze.grid import load_grid
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting import figure_pool, formats, run_loader, terminal
from twinsqueeze.reporting.ablation_table import AblationTable, TrainedRun
from twinsqueeze.reporting.figure_pool import Draw
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET_DIGEST, GRID_DIGEST, RECIPE_DIGEST
from twinsqueeze.training.batching import num_parallel_batches
from twinsqueeze.training.checkpointing import CheckpointStore, TrainingCheckpoint
from twinsqueeze.training.grid_trainer import GridBatch, train_batches
from twinsqueeze.training.loop import DivergedError, TrainingResult
from twinsqueeze.utils import console
from twinsqueeze.utils.device import resolve_device
from twinsqueeze.utils.signals import check_interrupted

FROM_GRID = "grid"
# Epochs between measurements of the loss without noise, each of which takes a fifth of the time of an epoch.
CLEAN_LOSS_EVERY = 10


@dataclass(frozen=True)
class AblationOptions:
    """The options of the command.

    Attributes:
        dataset: As in a recipe, or "grid" for the file's.
        device: As in a recipe, or "grid" for the file's.
        score_max: Upper end of the scores; None for 5, or 1 for STS-B from the Hub.
        force: Whether to train recipes again that the experiment has already.
        resume: Whether to resume interrupted trainings.
    """

    dataset: str = FROM_GRID
    device: str = FROM_GRID
    score_max: float | None = None
    force: bool = False
    resume: bool = True

    def load_recipes(self, grid: str) -> list[Recipe]:
        """Returns the recipes of a grid; raises an `InputError` if the file can't be used."""
        given = {"dataset": self.dataset, "device": self.device}
        return load_grid(grid, **{name: value for name, value in given.items() if value != FROM_GRID})


@dataclass
class _LoggedGrid:
    """The children of a grid's run.

    Attributes:
        runs: Each trained run with the table of its baselines.
        evaluated: The evaluated trainings, by recipe.
        failures: A message for each diverged training.
    """

    runs: list[tuple[TrainedRun, pd.DataFrame]] = field(default_factory=list)
    evaluated: dict[Recipe, EvaluatedTraining] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def run_ablation(grid: str, options: AblationOptions) -> None:
    """Trains every recipe of a grid in a run of its own, under a parent run with the ablation table.

    Recipes that a finished run of the experiment has trained on the same data are not trained again.

    Args:
        grid: A YAML file, see `load_grid`.
        options: How to train it.

    Raises:
        InputError: If grid, data, encoder, device or tracking server can't be used, or every training diverges.
    """
    recipes = options.load_recipes(grid)
    data = _load_data(recipes, options.score_max)
    with start_run(Path(grid).stem, "ablation") as parent:
        parent.log_params({"grid": grid, "replicas": len(recipes)})
        parent.log_artifact(Path(grid))
        _close_orphaned_runs(parent, recipes, data)
        loaded, _ = run_loader.load_runs(parent.experiment_id)
        finished = {} if options.force else run_loader.finished_recipes(loaded)
        missing = [recipe for recipe in recipes if _fingerprint(recipe, data) not in finished]
        if len(missing) < len(recipes):
            console.info(
                f"{len(recipes) - len(missing)} of {len(recipes)} recipes are in the experiment already and are not "
                "trained again (--force true trains them)"
            )
        logged = _train_and_log(missing, data, resume=options.resume)
        fingerprints = {_fingerprint(recipe, data) for recipe in recipes}
        tables = _build_tables(loaded, logged, fingerprints, len(recipes))
        parent.set_description(formats.summary(*tables))
    _print_summary(parent, tables[0], data)


def train_grid_and_log(recipes: Sequence[Recipe], data: DataByKey) -> dict[Recipe, EvaluatedTraining]:
    """Trains recipes in a run each, under a parent run.

    Args:
        recipes: Distinct recipes.
        data: Their data, by `data_key`.

    Raises:
        InputError: If a run can't be recorded, or a training diverges.
    """
    with start_run(f"comparison-of-{len(recipes)}", "ablation") as parent:
        parent.log_params({"replicas": len(recipes)})
        _close_orphaned_runs(parent, recipes, data)
        logged = _train_and_log(recipes, data, resume=True)
        if logged.failures:
            raise DivergedError(logged.failures[0])
        return logged.evaluated


def _load_data(recipes: Sequence[Recipe], score_max: float | None) -> DataByKey:
    """Loads the data of all recipes first, so that a grid does not stop halfway because of a missing file."""
    widest: dict[experiment.DataKey, Recipe] = {}
    for recipe in recipes:
        known = widest.setdefault(data_key(recipe), recipe)
        if recipe.dim > known.dim:
            widest[data_key(recipe)] = recipe
    return {
        key: load_experiment_data(*key, SPLITS, score_max=score_max, validate_dim=recipe.validate_dim)
        for key, recipe in widest.items()
    }


def _fingerprint(recipe: Recipe, data: DataByKey) -> run_loader.Fingerprint:
    of_recipe = data[data_key(recipe)]
    return recipe.digest, of_recipe.pairs.digest, run_recording.short_fingerprint(of_recipe)


def _close_orphaned_runs(parent: RunLogger, recipes: Sequence[Recipe], data: DataByKey) -> None:
    """Tags the grid's run and ends the runs of killed processes."""
    fingerprints = {_fingerprint(recipe, data)[:2] for recipe in recipes}
    grid_digest = hashlib.sha256(repr(sorted(fingerprints)).encode()).hexdigest()[:16]
    tags = {GRID_DIGEST: grid_digest}
    if len(data) == 1:
        tags |= run_recording.data_tags(next(iter(data.values())))
    parent.set_tags(tags)

    def is_same(tags: Mapping[str, str]) -> bool:
        trained = tags.get(RECIPE_DIGEST, ""), tags.get(DATASET_DIGEST, "")
        return tags.get(GRID_DIGEST) == grid_digest or trained in fingerprints

    close_orphaned_runs(parent, is_same, "resumes the grid")


def _train_and_log(recipes: Sequence[Recipe], data: DataByKey, *, resume: bool) -> _LoggedGrid:
    logged = _LoggedGrid()
    wanted = set(recipes)
    num_parallel = num_parallel_batches(resolve_device(recipe.device) for recipe in recipes)
    batches = _plan_batches(recipes, data, num_parallel, resume)
    with figure_pool.render_pool(len(recipes)) as draw, console.progress("training", "epoch") as advance:
        progress = _Progress(advance, len(recipes))
        trained = train_batches(
            batches,
            num_parallel=num_parallel,
            clean_loss_every=CLEAN_LOSS_EVERY,
            on_progress=progress.show,
        )
        with closing(trained) as results:
            for result in (result for batch in results for result in batch if result.recipe in wanted):
                progress.count_recorded()
                _log_result(result, data[data_key(result.recipe)], logged, draw)
    return logged


def _plan_batches(recipes: Sequence[Recipe], data: DataByKey, num_parallel: int, resume: bool) -> list[GridBatch]:
    batches = []
    for key, of_key in data.items():
        store = open_checkpoints(of_key, CLEAN_LOSS_EVERY)
        members = [recipe for recipe in recipes if data_key(recipe) == key]
        for batch in plan_with_checkpoints(members, store, resume=resume, at_once=num_parallel):
            train = of_key.training_pairs(batch[0])
            open_checkpoint = partial(_open_checkpoint, store, batch, resume)
            batches.append(GridBatch(batch, train, of_key.encoded["dev"], open_checkpoint))
    return batches


@contextmanager
def _open_checkpoint(store: CheckpointStore, batch: list[Recipe], resume: bool) -> Iterator[TrainingCheckpoint]:
    with store.open(batch, resume=resume) as checkpoint:
        announce_resume(checkpoint, batch)
        yield checkpoint


class _Progress:
    """The progress bar of a grid, which also counts the recorded recipes."""

    def __init__(self, advance: console.Advance, total: int) -> None:
        self._advance = advance
        self._total = total
        self._recorded = 0
        self._last: tuple[int, int] = (0, 1)
        self._lock = threading.Lock()

    def show(self, done: int, epochs: int, values: Mapping[str, str]) -> None:
        """Shows the epochs done."""
        recorded = {"recorded": f"{self._recorded} of {self._total}"} if self._recorded else {}
        with self._lock:
            self._last = done, epochs
            self._advance(done, epochs, {**values, **recorded})

    def count_recorded(self) -> None:
        """Counts the recipe that is being recorded."""
        self._recorded += 1
        self.show(*self._last, {})


def _log_result(result: TrainingResult, data: ExperimentData, logged: _LoggedGrid, draw: Draw) -> None:
    """Evaluates and logs one training; a diverged one gets a failed run."""
    check_interrupted()
    recipe = result.recipe
    try:
        with start_run(recipe.name, "train", nested=True) as run:
            inputs = run_recording.log_training_setup(run, recipe, data)
            tag_resumed(run, result.resumed_from_epoch, recipe.epochs)
            run_recording.log_history(run, result)
            result.check()
            evaluated = experiment.evaluate_training(result, data)
            run_recording.log_training(run, evaluated, data, inputs, draw)
    except DivergedError as error:
        logged.failures.append(str(error))
        console.warn(f"{recipe.name}: {error}")
        return
    logged.evaluated[recipe] = evaluated
    logged.runs.append((run_loader.recorded_run(run), run_recording.baseline_table(evaluated.evaluation.baselines)))


def _build_tables(
    loaded: Sequence[TrainedRun], logged: _LoggedGrid, fingerprints: set[run_loader.Fingerprint], total: int
) -> tuple[list[AblationTable], list[str]]:
    """Returns the tables of the grid's runs, and notes on them."""
    # The tracking server may not have received all of the runs that were just logged, so those come from memory.
    runs = [run for run in (*loaded, *(run for run, _ in logged.runs)) if run_loader.fingerprint(run) in fingerprints]
    if not runs:
        raise InputError(f"every training of the grid failed; the first error: {logged.failures[0]}")
    tables, missing = run_loader.load_tables(runs, {run.run_id: table for run, table in logged.runs})
    notes = [f"{len(logged.failures)} of {total} trainings diverged."] if logged.failures else []
    return tables, [*notes, *missing]


def _print_summary(parent: RunLogger, tables: Sequence[AblationTable], data: DataByKey) -> None:
    for table in tables:
        terminal.print_table(table)
    for notice in dict.fromkeys(d.pairs.notice for d in data.values() if d.pairs.notice):
        console.warn(notice)
    terminal.print_next_steps(
        [
            ("tables, figures and a report", links.mlflow_run_command(parent, "compare")),
            ("register the best run", links.mlflow_run_command(parent, "register")),
            *links.ui_steps(parent),
        ]
    )
