"""Load runs and their artifacts from MLflow for tables and figures."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from math import isfinite, nan
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Run

from twinsqueeze.errors import InputError
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.ablation_table import (
    EVALUATED_SPLITS,
    AblationTable,
    BaselineRow,
    ComparisonKey,
    TrainedRun,
    build_tables,
    metric_name,
)
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.task import SIMILARITY, TASKS, Task
from twinsqueeze.tracking import links
from twinsqueeze.tracking.parameters import decode_params
from twinsqueeze.tracking.run import env_run_id
from twinsqueeze.tracking.store import find_current_experiment
from twinsqueeze.tracking.tags import (
    ADAPTED_FIELDS,
    DATASET,
    DATASET_DIGEST,
    FILE_SHA256,
    KIND,
    NOTICE,
    TASK,
    TEST_DIGEST,
    TRAINED_RUN,
)
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.files import describe_file_change, file_sha256
from twinsqueeze.utils.text import describe_error, escape_control_chars

TEST_METRICS = ("test/", "search/test_", "uncertainty/test_")
Fingerprint = tuple[str, str, str]  # digests of recipe and data, and the encoder's fingerprint


def load_experiment(name: str) -> tuple[str, list[TrainedRun], list[str]]:
    """Load an experiment by name or id, or the "current" one: its id, its runs, and notes on those left out."""
    experiment_id = _resolve_experiment(name)
    runs, notes = load_runs(experiment_id)
    if not runs:
        solution = "Train with `main` or `ablation`, or pass another experiment"
        raise InputError(" ".join(["no finished training run in the experiment.", *notes, solution]))
    return experiment_id, runs, notes


def _resolve_experiment(name: str) -> str:
    client = mlflow.MlflowClient()
    if name == "current":  # the experiment that a new run would be in
        if run_id := env_run_id():
            return str(client.get_run(run_id).info.experiment_id)
        if current := find_current_experiment():
            return current
        name = os.environ["MLFLOW_EXPERIMENT_NAME"]
    try:
        experiment = client.get_experiment_by_name(name) or client.get_experiment(name)
    except mlflow.MlflowException:
        names = ", ".join(repr(e.name) for e in client.search_experiments(max_results=10))
        raise InputError(f"experiment {name!r} not found; existing experiments: {names}") from None
    return str(experiment.experiment_id)


def load_runs(experiment_id: str) -> tuple[list[TrainedRun], list[str]]:
    """Load the finished training runs of an experiment, and notes on those that were left out."""
    trainings = _search_runs(experiment_id, "train")
    finished = [run for run in trainings if run.info.status == "FINISHED"]
    evaluations = defaultdict(list)
    for run in sorted(_search_runs(experiment_id, "evaluation"), key=lambda run: run.info.start_time):
        if run.info.status == "FINISHED":
            evaluations[run.data.tags.get(TRAINED_RUN)].append(run)
    runs, skipped = [], defaultdict(list)
    for run in finished:
        try:
            trained = parse_run(run, evaluations[run.info.run_id])
        except (InputError, KeyError):
            skipped["invalid recipe parameters"].append(run.info.run_name)
            continue
        if all(isfinite(trained.metrics.get(metric_name("dev", score), nan)) for score in trained.task.curve_scores):
            runs.append(trained)
        else:
            skipped["dev metrics missing or not finite"].append(run.info.run_name)
    notes = []
    if unfinished := len(trainings) - len(finished):
        notes.append(f"{unfinished:,} of {len(trainings):,} runs did not finish and were skipped.")
    for reason, names in skipped.items():
        shown = escape_control_chars(", ".join(names[:3])) + (", …" if len(names) > 3 else "")
        notes.append(f"{len(names):,} run{'s' if len(names) > 1 else ''} skipped, {reason}: {shown}.")
    return _infer_test_digests(runs), notes


def _search_runs(experiment_id: str, kind: str) -> list[Run]:
    try:
        return mlflow.search_runs([experiment_id], f"tags.`{KIND}` = '{kind}'", output_format="list")
    except mlflow.MlflowException as error:
        raise InputError(f"runs of experiment {experiment_id} can't be read: {describe_error(error)}") from error


def parse_run(run: Run, evaluations: Sequence[Run] = ()) -> TrainedRun:
    """Parse a training run; its test scores are those of the last evaluation on the same data."""
    params, tags = decode_params(run), run.data.tags
    recipe = Recipe.parse({name: params[name] for name in Recipe.model_fields} | _adapted_fields(tags))
    task = TASKS[tags.get(TASK, SIMILARITY.name)]
    metrics, test_digest = dict(run.data.metrics), tags.get(TEST_DIGEST)
    for evaluation in evaluations:
        scores = {n: v for n, v in evaluation.data.metrics.items() if n.startswith(TEST_METRICS)}
        if scores and evaluation.data.tags.get(DATASET_DIGEST) == tags[DATASET_DIGEST]:
            metrics |= scores
            test_digest = evaluation.data.tags[TEST_DIGEST]
    fingerprint = params["encoder_fingerprint"]
    compared = (recipe.label_transform, recipe.loss) if task == SIMILARITY else ("", "")
    return TrainedRun(
        run_id=run.info.run_id,
        url=links.run_url(run.info.experiment_id, run.info.run_id),
        start_time=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        recipe=recipe,
        comparison_key=ComparisonKey(tags[DATASET_DIGEST], test_digest, fingerprint, *compared, task.name),
        dataset=escape_control_chars(tags[DATASET]),
        notice=tags.get(NOTICE) and escape_control_chars(tags[NOTICE]),
        metrics=metrics,
    )


def _adapted_fields(tags: Mapping[str, str]) -> dict[str, Any]:
    try:
        return dict(json.loads(tags.get(ADAPTED_FIELDS, "{}")))
    except (TypeError, ValueError) as error:  # somebody has edited it
        raise InputError(f"tag {ADAPTED_FIELDS} is not a JSON object: {error}") from error


def _infer_test_digests(runs: Sequence[TrainedRun]) -> list[TrainedRun]:
    """Set the test digest of runs without test scores if all others on the same data share one."""
    digests = defaultdict(set)
    for run in runs:
        digests[run.comparison_key.dataset_digest].add(run.comparison_key.test_digest)
    inferred = []
    for run in runs:
        known = digests[run.comparison_key.dataset_digest] - {None}
        digest = next(iter(known)) if len(known) == 1 else run.comparison_key.test_digest
        inferred.append(replace(run, comparison_key=run.comparison_key._replace(test_digest=digest)))
    return inferred


def fingerprint(run: TrainedRun) -> Fingerprint:
    """Equal for runs of the same recipe on the same data and encoder."""
    return run.recipe.digest, run.comparison_key.dataset_digest, run.comparison_key.encoder_fingerprint


def finished_recipes(runs: Iterable[TrainedRun]) -> dict[Fingerprint, TrainedRun]:
    """Runs with test scores, by fingerprint."""
    return {fingerprint(run): run for run in runs if _is_tested(run)}


def _is_tested(run: TrainedRun) -> bool:
    return isfinite(run.metrics.get(metric_name("test", run.task.selection), nan))


def load_tables(
    runs: Sequence[TrainedRun], baselines: Mapping[str, pd.DataFrame] | None = None
) -> tuple[list[AblationTable], list[str]]:
    """Build the ablation tables of runs, and notes on missing baselines; those passed by run id need not be read."""
    sources: dict[tuple[ComparisonKey, int], TrainedRun] = {}  # one run of each has the baselines
    for run in sorted(runs, key=lambda run: (_is_tested(run), run.start_time), reverse=True):
        sources.setdefault((run.comparison_key, run.recipe.dim), run)
    rows: dict[ComparisonKey, dict[str, BaselineRow]] = defaultdict(dict)
    notes = []
    for (key, dim), run in sorted(sources.items(), key=lambda item: item[0][1]):
        try:
            known = (baselines or {}).get(run.run_id)
            table = _read_table(run.run_id, "baselines.json") if known is None else known
        except InputError as error:
            notes.append(f"Baselines at dim {dim} are missing: {error}.")
            continue
        for record in table.to_dict("records"):
            rows[key].setdefault(record["model"], _baseline_row(record, dim, run.task))
    return build_tables(runs, {key: list(by_name.values()) for key, by_name in rows.items()}), notes


def _baseline_row(record: Mapping[Any, Any], dim: int, task: Task) -> BaselineRow:
    scores = {}
    for split, score in product(EVALUATED_SPLITS, task.scores):
        name = f"{split}/{score}"
        if name in record:
            mean, deviation = (nan if value is None else value for value in (record[name], record.get(f"{name}_sd")))
            scores[metric_name(split, score)] = SeedStats(float(mean), float(deviation), int(record["draws"]))
    own_dim = None if pd.isna(record["dim"]) else dim
    return BaselineRow(record["model"], own_dim, int(record["bytes"]), scores, bool(record["search_only"]))


def read_curve(run: TrainedRun, metric: str) -> "pd.Series[float]":
    """Values of a metric by step."""
    history = mlflow.MlflowClient().get_metric_history(run.run_id, metric)
    return pd.Series({point.step: point.value for point in history}).sort_index()


def read_predictions(run_id: str) -> pd.DataFrame:
    """A run's predictions, with columns such as split, label, predicted and squared_error."""
    return _read_table(run_id, "predictions.json")


def find_evaluation(trained_run: str, dev_digest: str, encoder_fingerprint: str) -> str | None:
    """The id of the newest evaluation of a trained run, in any experiment, on dev rows of a digest by an encoder."""
    kind = f"tags.`{KIND}` = 'evaluation' AND tags.`{TRAINED_RUN}` = '{trained_run}'"
    found = mlflow.search_runs(
        filter_string=f"{kind} AND attributes.status = 'FINISHED'", output_format="list", search_all_experiments=True
    )
    for run in found:  # the newest first
        same_encoder = run.data.params.get("encoder_fingerprint") == encoder_fingerprint
        if same_encoder and find_input_digest(run.info.run_id, "dev") == dev_digest:
            return str(run.info.run_id)
    return None


def find_input_digest(run_id: str, split: str) -> str:
    """The digest of a split that a run has as an input; "" without it."""
    inputs = mlflow.MlflowClient().get_run(run_id).inputs
    recorded = inputs.dataset_inputs if inputs else []
    return next((item.dataset.digest for item in recorded if split in {tag.value for tag in item.tags}), "")


def read_train_losses(run_id: str) -> FloatArray:
    """(P,) squared errors of the train pairs, without noise."""
    losses: FloatArray = pd.read_parquet(_download(run_id, "train_pair_losses.parquet"))["squared_error"].to_numpy()
    return losses


def _read_table(run_id: str, path: str) -> pd.DataFrame:
    content = json.loads(_download(run_id, path).read_text(encoding="utf-8"))
    return pd.DataFrame(content["data"], columns=content["columns"])


def _download(run_id: str, path: str) -> Path:
    """Download an artifact; raise an `InputError` if it is missing or does not match its recorded digest."""
    try:
        file = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path))
        recorded = mlflow.MlflowClient().get_run(run_id).data.tags[f"{FILE_SHA256}{path}"]
        change = describe_file_change(path, recorded, file_sha256(file))
    except Exception as error:  # stores raise exceptions of many types for missing files
        raise InputError(f"artifact {path} of run {run_id} can't be read: {describe_error(error)}") from error
    if change:
        raise InputError(f"run {run_id} is not what was recorded: {change}")
    return file
