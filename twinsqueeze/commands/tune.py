"""The command tune: searches for a recipe on one's own data, and confirms it with fresh seeds."""

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from twinsqueeze import __version__
from twinsqueeze.commands import study_recording
from twinsqueeze.commands.ablation import CLEAN_LOSS_EVERY, train_missing
from twinsqueeze.commands.orphaned_runs import adopt_trials, close_orphaned_runs
from twinsqueeze.commands.preparation import load_experiment_data
from twinsqueeze.commands.resume import open_checkpoint, open_checkpoints
from twinsqueeze.commands.run_recording import data_tags, short_fingerprint
from twinsqueeze.data.dataset import Dataset
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.experiment_data import ExperimentData, adapt_recipe
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting import terminal
from twinsqueeze.reporting.ablation_table import AblationTable, selection_metric
from twinsqueeze.reporting.tuning_report import Confirmation
from twinsqueeze.task import SCORE_NAMES
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import STUDY
from twinsqueeze.tuning.space import SearchSpace, load_space
from twinsqueeze.tuning.study import Study, StudyOptions, open_study
from twinsqueeze.tuning.trials import TrialTrainer, run_trials, trials_per_round
from twinsqueeze.utils import console


@dataclass(frozen=True)
class TuneOptions:
    """The options of the command; `load` loads a dataset by its name.

    The search trains with `seeds` seeds from `seed` on, and the confirmation with the next `confirm` ones.
    """

    space: str
    trials: int
    seeds: int
    confirm: int
    seed: int
    encoder: str
    dataset: str
    device: str
    load: Callable[[str], Dataset] = load_dataset
    resume: bool = True
    verbose: bool = False

    @property
    def fresh_seeds(self) -> range:
        """The seeds of the confirmation."""
        return range(self.seed + self.seeds, self.seed + self.seeds + self.confirm)


def tune(options: TuneOptions) -> None:
    """Searches a space on dev, and trains the best recipe and the start recipe with fresh seeds."""
    dataset = options.load(options.dataset)
    overrides = {name: getattr(options, name) for name in ("encoder", "dataset", "device")}
    space = load_space(options.space, dataset.task, **overrides)
    space.start.check_task(dataset.task, dataset.name)
    data = load_experiment_data(space.start, dataset, space.validate_dim, f"tune {space.name}, {options.trials} trials")
    space = replace(space, start=adapt_recipe(space.start, data))
    round_size = trials_per_round(space, data, options.seeds)
    study_options = StudyOptions(options.seed, round_size, space.combinations(options.trials))
    name = _study_name(space, data, options, study_options)
    with (
        open_study(name, space, study_options, resume=options.resume) as study,
        start_run(f"tune-{space.name}", "tuning", tags={STUDY: name, **data_tags(data)}) as parent,
    ):
        shown = ("trials", "seeds", "confirm", "seed", "encoder", "dataset", "device")
        parent.log_params({"space": options.space, **{field: getattr(options, field) for field in shown}})
        parent.log_artifact(space.file)
        close_orphaned_runs(parent, lambda tags: tags.get(STUDY) == name, "resumes the study")
        _run_trials(study, options, data, parent, name)
        tables, notes, confirmation = _confirm(study, options, data, parent)
        recipe_options = study_recording.log_study(parent, study, options.fresh_seeds, data, confirmation)
        study_recording.describe(parent, study, confirmation, tables, notes)
    study_recording.print_study(study, confirmation)
    terminal.print_ablation(tables, verbose=options.verbose)
    terminal.print_lines("", confirmation.verdict())
    if data.pairs.notice:
        console.warn(data.pairs.notice)
    again = links.next_command(parent, "best", **recipe_options, seed=str(options.fresh_seeds[0]))
    register = links.next_command(parent, "register")
    terminal.print_next_steps([("train it again", again), ("register the best run", register), *links.ui_steps(parent)])


def _study_name(space: SearchSpace, data: ExperimentData, options: TuneOptions, study: StudyOptions) -> str:
    """Returns 16 hex digits over everything that fixes the trials of a study."""
    versions = __version__, version("optuna")
    facts = space.digest, data.pairs.digest, short_fingerprint(data), *versions, options.seeds
    text = repr((*facts, study.seed, study.round_size, study.grid is None))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run_trials(study: Study, options: TuneOptions, data: ExperimentData, parent: RunLogger, name: str) -> None:
    """Trains the trials that the study does not have, and records each in a run of its own."""
    combinations = study.space.combinations(options.trials)
    total = options.trials if combinations is None else len(combinations)
    done = len(study.trials)
    if done:
        console.info(f"the study has {done} finished trials, which are not trained again (--resume false starts again)")
        adopt_trials(parent, name, [trial.number for trial in study.trials])
    seeds = range(options.seed, options.seed + options.seeds)
    open_ = partial(open_checkpoint, open_checkpoints(data, CLEAN_LOSS_EVERY), resume=options.resume)
    trials = run_trials(study, options.trials, TrialTrainer(data, seeds, CLEAN_LOSS_EVERY, open_))
    best, score = max((trial.value for trial in study.trials if trial.is_complete), default=None), data.task.selection
    with console.progress("tuning", "trial") as advance, closing(trials) as finished:
        for result in finished:
            study_recording.log_trial(result, study.space, data, name, seeds[0])
            if result.is_complete:
                best = max(result.value, result.value if best is None else best)
                parent.log_metrics({"tuning/value": result.value, "tuning/best_value": best}, result.number)
            shown: dict[str, Any] = {} if best is None else {f"best dev {SCORE_NAMES[score]}": f"{best:.4f}"}
            advance(result.number + 1 - done, total - done, shown)


def _confirm(
    study: Study, options: TuneOptions, data: ExperimentData, parent: RunLogger
) -> tuple[list[AblationTable], list[str], Confirmation]:
    """Trains the best and the start recipe with fresh seeds, evaluated as `main` does."""
    start = study.space.start
    best = study.space.make_recipe(study.best.params)
    recipes = {r: [r.model_copy(update={"seed": s}) for s in options.fresh_seeds] for r in (best, start)}
    every = list(dict.fromkeys(recipe for each in recipes.values() for recipe in each))
    console.info(f"confirmation: {len(every)} trainings with fresh seeds")
    tables, notes = train_missing(parent, every, dict.fromkeys(every, data), force=None, resume=options.resume)
    runs = {run.recipe.digest: run for table in tables for row in table.rows for run in row.runs}
    metric = selection_metric(data.task)

    def values(recipe: Recipe) -> list[float]:
        found = [runs.get(each.digest) for each in recipes[recipe]]
        return [run.metrics[metric] for run in found if run]

    start_values = values(start)
    tuned_values = start_values if best == start else values(best)
    tables = study_recording.name_rows(tables, best, start)
    return tables, notes, Confirmation(data.task.selection, tuned_values, start_values)
