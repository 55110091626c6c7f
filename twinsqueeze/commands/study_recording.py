"""What the runs of a study record: a trial, and the study with its figures, tables, best recipe and description."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isnan, nan
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import yaml

from twinsqueeze.commands.run_recording import RunRecorder
from twinsqueeze.errors import InputError
from twinsqueeze.experiment_data import ExperimentData
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting import figure_pool, formats, report, terminal, tuning_plots
from twinsqueeze.reporting.ablation_table import COLUMN_NAMES, AblationTable, count, metric_name
from twinsqueeze.reporting.figure_pool import Drawing
from twinsqueeze.reporting.search_table import TextTable
from twinsqueeze.reporting.tuning_plots import NUMBER, STATE, VALUE
from twinsqueeze.reporting.tuning_report import Confirmation, changed_fields, parameter_table
from twinsqueeze.task import NO_ENCODER, Task
from twinsqueeze.tracking.run import start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import STUDY, TRIAL, TRIAL_STATE
from twinsqueeze.tuning.space import Range, SearchSpace
from twinsqueeze.tuning.study import COMPLETE, FAILED, PRUNED, Study, TrialResult
from twinsqueeze.utils import console
from twinsqueeze.utils.text import escape_markdown, format_value

BYTES = "bytes_per_vector"
RECIPE_FILE = "recipe.yaml"
START = "start recipe"


class _FailedTrialError(InputError):
    """Ends the run of a failed trial."""


def log_trial(result: TrialResult, space: SearchSpace, data: ExperimentData, study: str, seed: int) -> None:
    """Records a trial in a run of its own under the study's run: a failed one as a failed run."""
    tags = {STUDY: study, TRIAL: str(result.number), TRIAL_STATE: result.state}
    try:
        with start_run(f"trial-{result.number}", "trial", nested=True, tags=tags) as run:
            if not result.recipe_digest:
                raise _FailedTrialError(result.reason)
            recipe = space.make_recipe(result.params, seed=seed)
            recorder = RunRecorder(run, data, ["train", "dev"], recipe.model_dump(), {})
            for metrics in result.history:
                recorder.log_epoch(metrics)
            for score, value in result.scores.items():
                step = recipe.epochs if score in data.task.curve_scores else 0
                run.log_metrics({metric_name("dev", score): value}, step)
            if result.state == FAILED:
                raise _FailedTrialError(result.reason)
            epochs = f"after {len(result.history)} of {recipe.epochs} epochs" if result.history else "as tried before"
            run.set_description(f"Trial {result.number} of study {study}: {result.state} {epochs}.")
    except _FailedTrialError as error:
        console.warn(f"trial {result.number}: {error}")


def start_name(space: SearchSpace) -> str:
    """Returns what the start recipe is called, such as "preset pairs"."""
    fixed = changed_fields(space.start, Recipe.preset(space.preset))
    return f"preset {space.preset}" + (f" with other {', '.join(fixed)}" if fixed else "")


def name_rows(tables: Sequence[AblationTable], tuned: Recipe, start: Recipe) -> list[AblationTable]:
    """Returns tables whose rows are called "tuned" and "start recipe"."""
    names = {recipe.model_copy(update={"seed": 0}).digest: name for recipe, name in ((tuned, "tuned"), (start, START))}
    return [
        replace(
            table,
            rows=[replace(row, name=names[row.recipe.model_copy(update={"seed": 0}).digest]) for row in table.rows],
        )
        for table in tables
    ]


def log_study(
    run: RunLogger, study: Study, fresh_seeds: Sequence[int], data: ExperimentData, confirmation: Confirmation
) -> dict[str, str]:
    """Records figures, the table of trials and the best recipe, and returns the options of `best` that train it."""
    table = trial_table(study)
    with TemporaryDirectory() as folder:
        drawings = {Path(folder, f"{name}.png"): each for name, each in _figures(study, table, data.task).items()}
        with figure_pool.render(drawings):
            pass
        run.log_artifacts(Path(folder), "figures")
    run.log_table("trials.json", table)
    gain = confirmation.gain if confirmation.tuned and confirmation.start else None
    if gain and confirmation.tuned is not confirmation.start:
        run.log_metrics({"tuning/gain": gain.mean, "tuning/gain_low": gain.low, "tuning/gain_high": gain.high})
    recipe = study.space.make_recipe(study.best.params)
    fields = _recipe_fields(recipe, study.space)
    with TemporaryDirectory() as folder:
        file = Path(folder, RECIPE_FILE)
        content = yaml.safe_dump({**fields, "seed": list(fresh_seeds)}, sort_keys=False, default_flow_style=None)
        file.write_text(f"# The best recipe of a study. `ablation --grid {RECIPE_FILE}` trains it.\n{content}")
        run.log_artifact(file)
    columns = ",".join(f"{ours}={theirs}" for ours, theirs in data.pairs.columns.items())
    options = {name: format_value(value) for name, value in fields.items()}
    return options | ({"columns": columns} if columns else {})


def _recipe_fields(recipe: Recipe, space: SearchSpace) -> dict[str, object]:
    """Returns the preset, the fields that differ from it, and the data, as a grid has them."""
    default = Recipe()
    fields = {"recipe": space.preset, **changed_fields(recipe, Recipe.preset(space.preset)), "dataset": recipe.dataset}
    if recipe.encoder not in {default.encoder, NO_ENCODER}:
        fields["encoder"] = recipe.encoder
    return fields


def trial_table(study: Study) -> pd.DataFrame:
    """Returns one row per trial: number, state, value, parameters, bytes per vector and scores on dev."""
    rows = []
    for trial in study.trials:
        row = {NUMBER: trial.number, STATE: trial.state, VALUE: trial.value, **trial.params}
        if trial.recipe_digest:
            row[BYTES] = study.space.make_recipe(trial.params).bytes_per_vector
        rows.append(row | {metric_name("dev", name): value for name, value in trial.scores.items()})
    return pd.DataFrame(rows)


def _figures(study: Study, table: pd.DataFrame, task: Task) -> dict[str, Drawing]:
    """Returns the figures of a study; a trade-off only where two scores were measured, or several sizes."""
    score = COLUMN_NAMES[task.selection]
    figures: dict[str, Drawing] = {"trials": partial(tuning_plots.plot_trials, table, score, _start_value(study))}
    importances = study.importances()
    if len(importances) > 1 and any(importances.values()):
        figures["importances"] = partial(tuning_plots.plot_importances, importances, score)
    complete = table[table[STATE] == COMPLETE].copy()
    y = metric_name("dev", task.selection), score
    if task.selection != "neighbor_recall":
        x = metric_name("dev", "neighbor_recall"), COLUMN_NAMES["neighbor_recall"]
        figures["trade_off"] = partial(tuning_plots.plot_trade_off, complete, x, y, study.best.number)
    return figures


def _start_value(study: Study) -> float:
    """Returns the value of the start recipe, which is the first trial; NaN if it was not completed."""
    start = study.space.start
    for trial in study.trials:
        if trial.state == COMPLETE and study.space.make_recipe(trial.params) == start:
            return trial.value
    return nan


def describe(
    run: RunLogger,
    study: Study,
    confirmation: Confirmation,
    tables: Sequence[AblationTable],
    notes: Sequence[str],
) -> None:
    """Sets the description of a study's run."""
    header, rows = _parameters(study)
    paragraphs = [
        f"**{escape_markdown(confirmation.verdict())}**",
        escape_markdown(" ".join(_summary(study, confirmation))),
        formats.markdown_table(header, rows),
        report.summary(tables, notes),
    ]
    run.set_description("\n\n".join(paragraphs))


def print_study(study: Study, confirmation: Confirmation) -> None:
    """Prints what the search found."""
    terminal.print_lines(*_summary(study, confirmation))
    terminal.print_table(_parameters(study))
    terminal.print_lines("")


def _summary(study: Study, confirmation: Confirmation) -> list[str]:
    states = [trial.state for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in (COMPLETE, PRUNED, FAILED) if state in states)
    best, start = study.best, _start_value(study)
    compared = "" if isnan(start) else f", start recipe {start:.4f}"
    return [
        f"{count(len(states), 'trial')} of {study.space.name} from {start_name(study.space)}: {counts}.",
        f"The best is trial {best.number}: dev {COLUMN_NAMES[confirmation.score]} {best.value:.4f}{compared}.",
    ]


def _parameters(study: Study) -> TextTable:
    fields = {
        name: [name] if isinstance(parameter, Range) else list(next(iter(parameter.values())))
        for name, parameter in study.space.parameters.items()
    }
    tuned = study.space.make_recipe(study.best.params)
    return parameter_table(fields, study.space.start, tuned, study.importances())
