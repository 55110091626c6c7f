"""Ablation tables: runs that differ by seed alone become a row, compared with the row at alpha 0."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np

from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.statistics import MeanDifference, SeedStats

EVALUATED_SPLITS = ("dev", "test")
# Column names of the scores, in the order of the columns.
COLUMN_NAMES = {
    "mse": "MSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman", "neighbor_recall": "neighbor recall",
    "recall_at_1": "recall@1", "recall_at_10": "recall@10", "mrr": "MRR",
}  # fmt: skip
SCORES = tuple(COLUMN_NAMES)
PAIR_SCORES = SCORES[:4]
# Measured at every precision that vectors can be stored in.
SEARCH_SCORES = SCORES[3:]
PRECISIONS = ("float32", "int8", "binary")
# Float queries against stored codes (Jégou et al. 2011).
ASYMMETRIC = "asymmetric"
SELECTION_METRIC = "dev/spearman"
# Recipe fields that are appended to the names of compressors that would otherwise be called the same.
DISTINGUISHING_FIELDS = (
    "epochs", "batch_size", "lr", "lr_schedule", "weight_decay", "init", "neighbor_weight", "num_neighbors",
    "synthetic_sentences", "neighbor_temperature", "teacher", "teacher_alpha", "subvector_dim",
)  # fmt: skip


def metric_name(split: str, score: str, precision: str = "float32") -> str:
    """A score's name in MLflow, such as dev/mrr, dev/mrr_int8 and dev/mrr_asymmetric."""
    return f"{split}/{score}" + ("" if precision == "float32" else f"_{precision}")


_METRICS = (
    *(
        metric_name(split, score, precision)
        for precision in (*PRECISIONS, ASYMMETRIC)
        for split in EVALUATED_SPLITS
        for score in (SCORES if precision == "float32" else SEARCH_SCORES)
    ),
    "train/loss",
    "train/clean_loss",
)


class ComparisonKey(NamedTuple):
    """What must agree for two runs to stand in one table. Names of datasets and encoders may differ."""

    dataset_digest: str
    test_digest: str | None
    encoder_fingerprint: str
    label_transform: str
    loss: str


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run, as read from MLflow.

    Attributes:
        url: Address of the run in MLflow's UI.
        notice: Warning to show with the data, if any.
        metrics: Latest value of each metric; those on test are from the newest evaluation, if there is one.
    """

    run_id: str
    url: str
    start_time: datetime
    recipe: Recipe
    comparison_key: ComparisonKey
    dataset: str
    notice: str | None
    metrics: Mapping[str, float]


def baseline_family(name: str, dim: int | None) -> str:
    """A baseline's name without its dim and bytes, such as "PCA" for "PCA to 32"."""
    name = re.sub(r", \d+ bytes$", "", name)
    return name if dim is None else re.sub(rf" (to )?{dim}\b", "", name)


@dataclass(frozen=True)
class BaselineRow:
    """A baseline that needs no labels, measured on the table's data.

    Attributes:
        name: Name, such as "PCA to 32".
        dim: Output dimension; None for a baseline that does not depend on the compressor's dim.
        scores: Statistics over draws by metric, such as "dev/mse".
        search_only: Whether it is shown in the search table alone.
    """

    name: str
    dim: int | None
    bytes: int
    scores: Mapping[str, SeedStats]
    search_only: bool = False

    @property
    def family(self) -> str:
        """The name without dim and bytes."""
        return baseline_family(self.name, self.dim)


@dataclass(frozen=True)
class Row:
    """Runs that differ by seed alone.

    Attributes:
        name: Name of the compressor, without alpha and seed.
        recipe: Recipe of the first seed.
        gains: By split, Spearman minus Spearman at alpha 0 with the same other fields; empty without such a row.
        best: Whether this is the table's best row, by Spearman on dev.
    """

    name: str
    recipe: Recipe
    runs: Sequence[TrainedRun]
    gains: Mapping[str, MeanDifference] = field(default_factory=dict)
    best: bool = False

    @property
    def bytes(self) -> int:
        """Bytes per vector."""
        return self.recipe.bytes_per_vector

    @property
    def family(self) -> Recipe:
        """The recipe fields that rows at other values of alpha share."""
        return _family(self.recipe)

    @cached_property
    def scores(self) -> Mapping[str, SeedStats]:
        """Statistics over seeds by metric, such as "dev/mse" and "train/loss"."""
        return {metric: SeedStats.of(self.values(metric)) for metric in _METRICS}

    def values(self, metric: str) -> list[float]:
        """The finite values of a metric, by rising seed."""
        values = (run.metrics.get(metric, np.nan) for run in self.runs)
        return [float(value) for value in values if np.isfinite(value)]


@dataclass(frozen=True)
class AblationTable:
    """Rows that can be compared with each other.

    Attributes:
        title: The comparison key in words.
        notice: Warning to show with the data, if any.
        rows: Rows by family, then by rising alpha; their runs by rising seed.
        notes: Limits of the table, a sentence each.
    """

    comparison_key: ComparisonKey
    title: str
    notice: str | None
    rows: Sequence[Row]
    baselines: Sequence[BaselineRow]
    notes: Sequence[str]

    @property
    def best(self) -> Row:
        """The best row by Spearman on dev."""
        return next(row for row in self.rows if row.best)

    @property
    def score_baselines(self) -> list[BaselineRow]:
        """The baselines that are shown in the table of scores."""
        return [baseline for baseline in self.baselines if not baseline.search_only]

    def families(self) -> dict[str, list[Row]]:
        """Rows that differ by alpha alone, by name."""
        return {name: list(rows) for name, rows in groupby(self.rows, key=lambda row: row.name)}


def build_tables(
    runs: Iterable[TrainedRun], baselines: Mapping[ComparisonKey, Sequence[BaselineRow]]
) -> list[AblationTable]:
    """Build a table per comparison key, the one with most runs first.

    Args:
        runs: Runs; of those with the same recipe and seed the newest is used.
        baselines: Baselines by comparison key.
    """
    newest: dict[tuple[ComparisonKey, Recipe], TrainedRun] = {}
    repeated: Counter[ComparisonKey] = Counter()
    for run in sorted(runs, key=lambda run: run.start_time):
        key = run.comparison_key, _comparable_recipe(run.recipe)
        repeated[run.comparison_key] += key in newest
        newest[key] = run
    groups: dict[ComparisonKey, list[TrainedRun]] = {}
    for run in newest.values():
        groups.setdefault(run.comparison_key, []).append(run)
    tables = [_build_table(group, baselines.get(key, ()), repeated[key]) for key, group in groups.items()]
    return sorted(tables, key=lambda table: -sum(len(row.runs) for row in table.rows))


def _build_table(runs: Sequence[TrainedRun], baselines: Sequence[BaselineRow], repeated: int) -> AblationTable:
    groups: dict[Recipe, list[TrainedRun]] = {}
    for run in sorted(runs, key=lambda run: run.recipe.seed):
        groups.setdefault(_comparable_recipe(run.recipe).model_copy(update={"seed": 0}), []).append(run)
    names = _name_families({_family(recipe) for recipe in groups})
    rows = {recipe: Row(names[_family(recipe)], recipe=group[0].recipe, runs=group) for recipe, group in groups.items()}
    for recipe, row in rows.items():
        noise_free = rows.get(_family(recipe))
        if noise_free is not None and noise_free is not row:
            rows[recipe] = replace(row, gains=_spearman_gains(row, noise_free))
    best = max(rows.values(), key=lambda row: row.scores[SELECTION_METRIC].mean)
    ordered = sorted(rows.values(), key=lambda row: (_sort_key(row.family), row.recipe.alpha))
    first, key = runs[0], runs[0].comparison_key
    return AblationTable(
        comparison_key=key,
        title=f"{first.dataset}, encoder {first.recipe.encoder}, labels {key.label_transform}, loss {key.loss}",
        notice=first.notice,
        rows=[replace(row, best=row is best) for row in ordered],
        baselines=baselines,
        notes=_notes(ordered, repeated),
    )


def _spearman_gains(row: Row, noise_free: Row) -> dict[str, MeanDifference]:
    values = {s: [r.values(metric_name(s, "spearman")) for r in (row, noise_free)] for s in EVALUATED_SPLITS}
    return {split: MeanDifference.between(*pair) for split, pair in values.items() if all(pair)}


def _notes(rows: Sequence[Row], repeated: int) -> list[str]:
    notes = []
    if repeated:
        notes.append(f"{_count(repeated, 'run')} repeated with the same recipe and seed: the newest is used.")
    without_reference = {row.name for row in rows} - {row.name for row in rows if row.recipe.alpha == 0}
    if without_reference:
        notes.append(f"No run at alpha 0 of {', '.join(sorted(without_reference))}: no Spearman gain.")
    if single := sum(len(row.runs) == 1 for row in rows):
        notes.append(f"{_count(single, 'row')} with a single seed: no standard deviation and no interval.")
    if untested := sum(len(row.runs) - len(row.values("test/spearman")) for row in rows):
        command = "`mlflow run . --env-manager local -e evaluate -P model=RUN_ID`"
        notes.append(f"{_count(untested, 'run')} without test scores: evaluate with {command}.")
    return notes


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _comparable_recipe(recipe: Recipe) -> Recipe:
    """The recipe without the fields that `ComparisonKey` replaces and without the device."""
    defaults = Recipe()
    return recipe.model_copy(update={name: getattr(defaults, name) for name in ("dataset", "encoder", "device")})


def _family(recipe: Recipe) -> Recipe:
    return _comparable_recipe(recipe).model_copy(update={"alpha": 0.0, "seed": 0})


def _sort_key(family: Recipe) -> tuple[str | int | float, ...]:
    return family.architecture, family.precision, family.dim, *(getattr(family, name) for name in DISTINGUISHING_FIELDS)


def _name_families(families: Iterable[Recipe]) -> dict[Recipe, str]:
    """Names such as "mlp32", with the fields that distinguish families of the same compressor name."""
    by_name = defaultdict(list)
    for family in families:
        by_name[family.compressor_name].append(family)
    names = {}
    for name, group in by_name.items():
        fields = [field for field in DISTINGUISHING_FIELDS if len({getattr(family, field) for family in group}) > 1]
        for family in group:
            names[family] = ", ".join([name, *(f"{field} {_format(getattr(family, field))}" for field in fields)])
    return names


def _format(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
