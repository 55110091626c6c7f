"""Reads runs from MLflow for the ablation's tables and figures."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run

from twinsqueeze.errors import InputError
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.ablation_table import (
    EVALUATED_SPLITS,
    SCORES,
    BaselineRow,
    ComparisonKey,
    TrainedRun,
)
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import env_run_id
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET, DATASET_DIGEST, FILE_SHA256, KIND, NOTICE, TEST_DIGEST, TRAINED_RUN
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.files import describe_file_change, file_sha256
from twinsqueeze.utils.text import describe_error, escape_control_chars

PAGE = 1000
# Whoever has this has been evaluated on test.
TESTED = "test/spearman"
# Of recipes, what runs from before the field was there were trained by.
ADDED_LATER: dict[str, str] = {}
# Digests of recipe and data, and the encoder's fingerprint.
Fingerprint = tuple[str, str, str]


@dataclass(frozen=True)
class LoadedRuns:
    """What an experiment holds.

    Attributes:
        runs: Finished trainings that can be compared.
        notes: What was left out, and why.
    """

    runs: Sequence[TrainedRun]
    notes: Sequence[str]


@dataclass(frozen=True)
class LoadedBaselines:
    """What needs no labels, as it was recorded.

    Attributes:
        rows: Of every kind of run.
        notes: What is missing, and why.
    """

    rows: Mapping[ComparisonKey, Sequence[BaselineRow]]
    notes: Sequence[str]


def resolve_experiment(name: str | None) -> str:
    """An experiment's id.

    Args:
        name: Its name or id; None for the one that a run started now would be in.

    Raises:
        InputError: If there is none.
    """
    client = mlflow.MlflowClient()
    if name is None and (run_id := env_run_id()):
        return str(client.get_run(run_id).info.experiment_id)
    name = name or os.environ.get("MLFLOW_EXPERIMENT_ID") or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "0"
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            found = client.get_experiment(name)
        except mlflow.MlflowException:
            names = ", ".join(repr(e.name) for e in client.search_experiments(max_results=10))
            raise InputError(f"there is no experiment {name!r}; there are {names}") from None
    return str(found.experiment_id)


def load_runs(experiment_id: str) -> LoadedRuns:
    """Every finished training of an experiment, with scores from evaluations where these are newer.

    Raises:
        InputError: If the store can't be read.
    """
    trainings = list(_search(experiment_id, "train"))
    evaluations = _newest_evaluations(_search(experiment_id, "evaluation"))
    finished = [run for run in trainings if run.info.status == "FINISHED"]
    runs, notes = [], []
    if unfinished := len(trainings) - len(finished):
        notes.append(f"{unfinished:,} of {len(trainings):,} runs did not finish and are left out.")
    broken, unscored = [], []
    for run in finished:
        try:
            trained = _trained_run(run, evaluations.get(run.info.run_id))
        except (InputError, KeyError):
            broken.append(run.info.run_name)
            continue
        if np.isfinite([trained.metrics.get(f"dev/{name}", np.nan) for name in SCORES[:4]]).all():
            runs.append(trained)
        else:
            unscored.append(run.info.run_name)
    for names, why in ((broken, "parameters are no recipe"), (unscored, "metrics on dev are missing or not finite")):
        if names:
            what, verb = ("run", "is") if len(names) == 1 else ("runs", "are")
            shown = escape_control_chars(", ".join(names[:3])) + (", …" if len(names) > 3 else "")
            notes.append(f"{len(names):,} {what} whose {why} {verb} left out: {shown}.")
    return LoadedRuns(_infer_test_digest(runs), notes)


def _search(experiment_id: str, kind: str) -> Iterator[Run]:
    client = mlflow.MlflowClient()
    token = None
    try:
        while True:
            page = client.search_runs([experiment_id], f"tags.`{KIND}` = '{kind}'", max_results=PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return
    except mlflow.MlflowException as error:
        raise InputError(f"the runs of experiment {experiment_id} can't be read: {describe_error(error)}") from error


def _newest_evaluations(evaluations: Iterable[Run]) -> dict[str, list[Run]]:
    """Finished evaluations by the run that they evaluate, the newest last."""
    found: dict[str, list[Run]] = {}
    for run in sorted(evaluations, key=lambda run: run.info.start_time):
        if run.info.status == "FINISHED" and TRAINED_RUN in run.data.tags:
            found.setdefault(run.data.tags[TRAINED_RUN], []).append(run)
    return found


def _trained_run(run: Run, evaluations: Sequence[Run] | None) -> TrainedRun:
    params, tags = run.data.params, run.data.tags
    known = {**ADDED_LATER, **params}
    recipe = Recipe.parse({name: known[name] for name in Recipe.model_fields})
    metrics = dict(run.data.metrics)
    test_digest = tags.get(TEST_DIGEST)
    for evaluation in evaluations or ():
        if evaluation.data.tags.get(DATASET_DIGEST) != tags[DATASET_DIGEST]:
            continue
        found = evaluation.data.metrics.items()
        on_test = {name: value for name, value in found if name.startswith(("test/", "uncertainty/test_"))}
        if on_test:
            metrics |= on_test
            test_digest = evaluation.data.tags[TEST_DIGEST]
    return TrainedRun(
        run_id=run.info.run_id,
        link=links.run_url(run.info.experiment_id, run.info.run_id),
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        recipe=recipe,
        kind=ComparisonKey(
            dataset_digest=tags[DATASET_DIGEST],
            test_digest=test_digest,
            encoder_fingerprint=params["encoder_fingerprint"],
            label_transform=recipe.label_transform,
            loss=recipe.loss,
        ),
        dataset=escape_control_chars(tags[DATASET]),
        notice=tags.get(NOTICE) and escape_control_chars(tags[NOTICE]),
        metrics=metrics,
    )


def recorded_run(run: RunLogger) -> TrainedRun:
    """A training that this process has recorded, whether the store has it yet or not."""
    return _trained_run(run.as_run(), None)


def _infer_test_digest(runs: Sequence[TrainedRun]) -> list[TrainedRun]:
    """Puts trainings that never saw test with those on the same data that did, where it is clear which."""
    digests: dict[str, set[str]] = {}
    for run in runs:
        if run.kind.test_digest:
            digests.setdefault(run.kind.dataset_digest, set()).add(run.kind.test_digest)
    placed = []
    for run in runs:
        known = digests.get(run.kind.dataset_digest, set())
        if run.kind.test_digest is None and len(known) == 1:
            placed.append(replace(run, kind=run.kind._replace(test_digest=next(iter(known)))))
        else:
            placed.append(run)
    return placed


def fingerprint(run: TrainedRun) -> Fingerprint:
    """What two runs of the same training have in common."""
    return run.recipe.digest, run.kind.dataset_digest, run.kind.encoder_fingerprint


def finished_recipes(runs: Iterable[TrainedRun]) -> dict[Fingerprint, TrainedRun]:
    """Runs with scores on test by what was trained."""
    return {fingerprint(run): run for run in runs if np.isfinite(run.metrics.get(TESTED, np.nan))}


def load_baselines(
    runs: Iterable[TrainedRun], preloaded: Mapping[str, pd.DataFrame] = MappingProxyType({})
) -> LoadedBaselines:
    """What needs no labels, as one run of every kind and dim has recorded it; where none has, a note.

    Args:
        runs: The runs.
        preloaded: The tables of some of them by the runs' ids, which need not be read.
    """
    sources: dict[tuple[ComparisonKey, int], TrainedRun] = {}
    for run in sorted(runs, key=lambda run: (TESTED in run.metrics, run.started), reverse=True):
        sources.setdefault((run.kind, run.recipe.dim), run)
    found: dict[ComparisonKey, dict[str, BaselineRow]] = {}
    notes = []
    for (kind, dim), run in sorted(sources.items(), key=lambda item: item[0][1]):
        try:
            table = preloaded[run.run_id] if run.run_id in preloaded else _read_table(run.run_id, "baselines.json")
        except InputError as error:
            notes.append(f"Rows without labels are missing at dim {dim}: {error}.")
            continue
        for row in table.to_dict("records"):
            scores = {
                f"{split}/{name}": SeedStats(
                    _number(row[f"{split}/{name}"]), _number(row.get(f"{split}/{name}_sd")), int(row["draws"])
                )
                for split in EVALUATED_SPLITS
                for name in SCORES
                if f"{split}/{name}" in row
            }
            own_dim = None if pd.isna(row["dim"]) else dim
            found.setdefault(kind, {}).setdefault(
                row["model"],
                BaselineRow(row["model"], own_dim, int(row["bytes"]), scores, bool(row.get("search_only"))),
            )
    return LoadedBaselines({kind: list(rows.values()) for kind, rows in found.items()}, notes)


def _number(value: float | None) -> float:
    """A table's number; JSON has none for NaN."""
    return float("nan") if value is None else float(value)


def read_curve(run: TrainedRun, metric: str) -> tuple[FloatArray, FloatArray]:
    """A metric's steps and values over a training."""
    history = sorted(mlflow.MlflowClient().get_metric_history(run.run_id, metric), key=lambda point: point.step)
    return np.array([point.step for point in history], float), np.array([point.value for point in history])


def read_predictions(run: TrainedRun) -> pd.DataFrame:
    """A run's table of predictions: split, label, predicted, squared_error and more."""
    return _read_table(run.run_id, "predictions.json")


def read_train_losses(run: TrainedRun) -> FloatArray:
    """Squared errors of a run's train pairs, without noise."""
    name = "train_pair_losses.parquet"
    with _readable(run.run_id, name):
        losses: FloatArray = pd.read_parquet(_artifact(run.run_id, name))["squared_error"].to_numpy()
    return losses


def _read_table(run_id: str, file: str) -> pd.DataFrame:
    path = _artifact(run_id, file)
    with _readable(run_id, file):
        content = json.loads(path.read_text(encoding="utf-8"))
        return pd.DataFrame(content["data"], columns=content["columns"])


def _artifact(run_id: str, path: str) -> Path:
    """A run's file, as it was recorded."""
    try:
        file = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path))
        recorded = mlflow.MlflowClient().get_run(run_id).data.tags.get(f"{FILE_SHA256}{path}")
    except Exception as error:  # stores answer a missing file with exceptions of many kinds
        raise InputError(f"run {run_id} has no {path}: {describe_error(error)}") from error
    with _readable(run_id, path):
        found = recorded and describe_file_change(path, recorded, file_sha256(file))
    if found:
        raise InputError(f"run {run_id} is not what was recorded: {found}")
    return file


@contextmanager
def _readable(run_id: str, path: str) -> Iterator[None]:
    """Takes whatever a damaged file does to its reader, where no digest has told before, as the user's to mend."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} of run {run_id} can't be read: {describe_error(error)}") from error
