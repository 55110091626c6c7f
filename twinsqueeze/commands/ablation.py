"""The job ablation: a grid of recipes trained together, a run each under one parent."""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd

from twinsqueeze.commands import run_recording
from twinsqueeze.commands.context import ExperimentContext, prepare_context
from twinsqueeze.commands.resume import (
    announce_resume,
    close_orphaned_runs,
    open_snapshots,
    plan_with_checkpoints,
    tag_resumed,
)
from twinsqueeze.data.sentence_pairs import SPLITS
from twinsqueeze.errors import InputError
from twinsqueeze.grid import load_grid
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting import figure_pool, formats, run_loader, terminal
from twinsqueeze.reporting.ablation_table import TrainedRun, build_tables
from twinsqueeze.reporting.figure_pool import Draw
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET_DIGEST, GRID_DIGEST, RECIPE_DIGEST
from twinsqueeze.training import worker_pool
from twinsqueeze.training.batching import num_parallel_batches
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import DivergedError, EpochMetrics, TrainingResult
from twinsqueeze.training.worker_pool import TrainFunction
from twinsqueeze.utils import console
from twinsqueeze.utils.device import resolve_device
from twinsqueeze.utils.signals import check_interrupted
from twinsqueeze.utils.threads import map_threaded

FROM_GRID = "grid"
# Epochs between measurements of the clean loss, which costs as much as a fifth of the training.
CLEAN_EVERY = 10
Source = tuple[str, str, str]


def run_ablation(
    grid: str,
    *,
    dataset: str = FROM_GRID,
    device: str = FROM_GRID,
    score_max: float | None = None,
    force: bool = False,
    resume: bool = True,
) -> None:
    """Trains every recipe of a grid and records each in a run of its own, all under a parent that holds the table.

    Recipes that a finished run of the experiment has on the same data are not trained again.

    Args:
        grid: A YAML file, see `load_grid`.
        dataset: As in a recipe, or "grid" for what the file says.
        device: As in a recipe, or "grid" for what the file says.
        score_max: The upper end of the data's scores; None for 5, or what is known of STS-B.
        force: Whether to train again what is there.
        resume: Whether to go on where the same training was interrupted.

    Raises:
        InputError: If something that the user gave can't be used, or every training diverges.
    """
    fixed = {name: value for name, value in (("dataset", dataset), ("device", device)) if value != FROM_GRID}
    recipes = load_grid(grid, **fixed)
    materials = _gather(recipes, score_max)
    notices = dict.fromkeys(m.data.notice for m in materials.values() if m.data.notice)
    with start_run(Path(grid).stem, "ablation") as parent:
        parent.log_params({"grid": grid, "replicas": len(recipes)})
        parent.log_artifact(Path(grid))
        if len(materials) == 1:
            parent.set_tags(run_recording.data_tags(next(iter(materials.values()))))
        _end_left_runs(parent, recipes, materials)
        found = run_loader.load_runs(parent.experiment_id).runs
        done = {} if force else run_loader.finished_recipes(found)
        todo = [recipe for recipe in recipes if _fingerprint(recipe, materials) not in done]
        if len(todo) < len(recipes):
            console.info(
                f"{len(recipes) - len(todo)} of {len(recipes)} recipes are in the experiment already and are not "
                "trained again (--force true trains them)"
            )
        with figure_pool.render_pool(len(todo)) as draw:
            trained, failures = _train(todo, materials, draw, resume=resume)
        wanted = {_fingerprint(recipe, materials) for recipe in recipes}
        # Of what has just been trained the tracking server may not have everything yet.
        runs = [run for run in (*found, *(run for run, _ in trained)) if run_loader.fingerprint(run) in wanted]
        if not runs:
            raise InputError(f"no training of the grid succeeded; the first said: {failures[0]}")
        baselines = run_loader.load_baselines(runs, {run.run_id: table for run, table in trained})
        tables = build_tables(runs, baselines.rows)
        notes = [f"{len(failures)} of {len(recipes)} trainings diverged."] if failures else []
        notes += baselines.notes
        parent.set_description(formats.summary(tables, notes))
    for table in tables:
        terminal.print_table(table)
    for notice in notices:
        console.warn(notice)
    terminal.print_next_steps(
        [
            ("tables, figures and a report", links.mlflow_run_command(parent, "compare")),
            ("put the best in use", links.mlflow_run_command(parent, "register")),
            *links.ui_steps(parent),
        ]
    )


def _data_key(recipe: Recipe) -> Source:
    return recipe.dataset, recipe.encoder, recipe.device


def _gather(recipes: Sequence[Recipe], score_max: float | None) -> dict[Source, ExperimentContext]:
    """Everything that the recipes need, so that a grid does not stop halfway for a file that is not there."""
    widest: dict[Source, Recipe] = {}
    for recipe in recipes:
        known = widest.setdefault(_data_key(recipe), recipe)
        if recipe.dim > known.dim:
            widest[_data_key(recipe)] = recipe
    return {
        source: prepare_context(
            recipe.dataset,
            recipe.encoder,
            resolve_device(recipe.device),
            SPLITS,
            score_max=score_max,
            validate_dim=recipe.validate_dim,
        )
        for source, recipe in widest.items()
    }


def _fingerprint(recipe: Recipe, materials: dict[Source, ExperimentContext]) -> run_loader.Fingerprint:
    material = materials[_data_key(recipe)]
    return recipe.digest, material.data.digest, run_recording.encoder_fingerprint(material)


def _end_left_runs(parent: RunLogger, recipes: Sequence[Recipe], materials: dict[Source, ExperimentContext]) -> None:
    """Ends what was left RUNNING of this grid, or of anything, by processes that were killed."""
    fingerprints = {_fingerprint(recipe, materials)[:2] for recipe in recipes}
    grid_digest = hashlib.sha256(repr(sorted(fingerprints)).encode()).hexdigest()[:16]
    parent.set_tags({GRID_DIGEST: grid_digest})

    def is_same(tags: Mapping[str, str]) -> bool:
        trained = tags.get(RECIPE_DIGEST, ""), tags.get(DATASET_DIGEST, "")
        return tags.get(GRID_DIGEST) == grid_digest or trained in fingerprints

    close_orphaned_runs(parent, is_same, "goes on with the grid")


@dataclass(frozen=True)
class _Training:
    """A batch of recipes that train together.

    Attributes:
        place: Of the batch among all.
        kept: What holds the snapshot's file until it is closed.
    """

    place: int
    recipes: list[Recipe]
    material: ExperimentContext
    snapshot: TrainingCheckpoint
    kept: ExitStack


def _train(
    recipes: Sequence[Recipe], materials: dict[Source, ExperimentContext], draw: Draw, *, resume: bool
) -> tuple[list[tuple[TrainedRun, pd.DataFrame]], list[str]]:
    """Trains and records; returns the runs, each with the table of what needs no labels, and why some failed."""
    runs: list[tuple[TrainedRun, pd.DataFrame]] = []
    failures: list[str] = []
    wanted = {(_data_key(recipe), recipe.digest) for recipe in recipes}
    snapshots = {source: open_snapshots(material, CLEAN_EVERY) for source, material in materials.items()}
    at_once = num_parallel_batches(resolve_device(recipe.device) for recipe in recipes)
    cut = [
        batch
        for source in materials
        for batch in plan_with_checkpoints(
            [r for r in recipes if _data_key(r) == source], snapshots[source], resume=resume, at_once=at_once
        )
    ]
    if not cut:
        return runs, failures
    for batch in cut:  # before any of them trains, so that none waits for another one's sentences
        materials[_data_key(batch[0])].training_pairs(batch[0])
    at_once = min(at_once, len(cut))
    epochs = [sum(recipe.epochs for recipe in batch) for batch in cut]
    pairs = sum(n * len(materials[_data_key(batch[0])].encoded["train"]) for n, batch in zip(epochs, cut, strict=True))

    def opened(held: ExitStack) -> Iterator[_Training]:
        for place, batch in enumerate(cut):
            source = _data_key(batch[0])
            kept = held.enter_context(ExitStack())
            snapshot = kept.enter_context(snapshots[source].open(batch, resume=resume))
            announce_resume(snapshot, batch)
            yield _Training(place, batch, materials[source], snapshot, kept)

    with (
        ExitStack() as held,
        worker_pool.training_pool(pairs, at_once) as fit,
        console.progress("training", "epoch") as advance,
    ):
        watch = _GridProgress(fit, advance, epochs)
        # However this ends, trainings are told to stop, then waited for, and then their files are let go.
        with closing(map_threaded(opened(held), watch.fit, at_once)) as finished, watch:
            for training, trained in finished:
                for fitted in trained:
                    if (_data_key(fitted.recipe), fitted.recipe.digest) not in wanted:
                        continue
                    watch.recording(len(runs) + len(failures) + 1, len(recipes))
                    try:
                        runs.append(_record(fitted, training.material, draw))
                    except DivergedError as error:
                        failures.append(str(error))
                        console.warn(f"{fitted.recipe.name}: {error}")
                training.snapshot.discard()
                training.kept.close()
    return runs, failures


class _GridProgress:
    """The bar over batches that train at once, and what ends them when the context is left.

    Args:
        fit: What trains a batch.
        advance: Of the bar.
        epochs: Of each batch, those of all its recipes.
    """

    def __init__(self, fit: TrainFunction, advance: console.Advance, epochs: Sequence[int]) -> None:
        self._fit = fit
        self._advance = advance
        self._epochs = epochs
        self._done = [0] * len(epochs)
        self._recorded: dict[str, str] = {}
        self._lock = threading.Lock()
        self._over: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = self._over or CancelledError()

    def fit(self, training: _Training) -> list[TrainingResult]:
        """Trains a batch, in whatever thread; if that fails, the others end by the same error."""
        recipes, material = training.recipes, training.material

        def on_epoch(progress: EpochMetrics) -> None:
            self._check()
            figures = {"loss": f"{progress.loss.mean():.4f}", "dev Spearman": f"{progress.dev.spearman.mean():.4f}"}
            self._show(figures, training.place, progress.epoch * len(recipes))

        def on_teacher_epoch(done: int, of: int) -> None:
            self._check()
            self._show({"heads": f"{done} of {of} epochs"})

        try:
            self._check()
            trained = self._fit(
                recipes,
                material.training_pairs(recipes[0]),
                material.encoded["dev"],
                clean_loss_every=CLEAN_EVERY,
                on_epoch=on_epoch,
                on_teacher_epoch=on_teacher_epoch,
                snapshot=training.snapshot,
            )
        except BaseException as error:
            self._over = self._over or error
            raise
        if any(fitted.diverged_at for fitted in trained):  # which may have left epochs out
            self._show({}, training.place, self._epochs[training.place])
        return trained

    def recording(self, number: int, of: int) -> None:
        """Shows how many recipes are recorded, with the one that is being recorded."""
        self._recorded = {"recorded": f"{number} of {of}"}
        self._show({})

    def _check(self) -> None:
        check_interrupted()
        if self._over:
            raise self._over

    def _show(self, figures: Mapping[str, str], place: int = 0, done: int = 0) -> None:
        with self._lock:
            self._done[place] = max(self._done[place], done)
            self._advance(sum(self._done), sum(self._epochs), {**figures, **self._recorded})


def _record(fitted: TrainingResult, material: ExperimentContext, draw: Draw) -> tuple[TrainedRun, pd.DataFrame]:
    check_interrupted()
    with start_run(fitted.recipe.name, "train", nested=True) as run:
        inputs = run_recording.log_training_setup(run, fitted.recipe, material)
        tag_resumed(run, fitted.resumed_from_epoch, fitted.recipe.epochs)
        run_recording.record_curves(run, fitted)
        fitted.check()
        outcome = run_recording.evaluate_and_log_training(run, fitted, material, inputs, draw)
    return run_loader.recorded_run(run), run_recording.baseline_table(outcome.baselines)
