"""Ablation tables: runs that differ by seed alone become a row, compared with the row at alpha 0."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.statistics import MeanDifference, SeedStats
from twinsqueeze.utils.files import public_name

EVALUATED_SPLITS = ("dev", "test")
COLUMN_NAMES = {
    "mse": "MSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman", "neighbor_recall": "neighbor recall",
    "recall_at_1": "recall@1", "recall_at_10": "recall@10", "mrr": "MRR",
}  # fmt: skip
SCORES = tuple(COLUMN_NAMES)
PAIR_SCORES = SCORES[:4]
MAIN_SCORES = SCORES[:5]
SEARCH_SCORES = SCORES[3:]  # measured at every precision that vectors can be stored in
PRECISIONS = ("float32", "int8", "binary")
ASYMMETRIC = "asymmetric"  # float queries against stored codes (Jégou et al. 2011)
SELECTION_METRIC = "dev/spearman"
# Recipe fields that are appended to the names of compressors that would otherwise be called the same.
DISTINGUISHING_FIELDS = (
    "epochs", "batch_size", "lr", "lr_schedule", "weight_decay", "init", "neighbor_weight", "num_neighbors",
    "synthetic_sentences", "neighbor_temperature", "teacher", "teacher_alpha", "subvector_dim",
)  # fmt: skip


def metric_name(split: str, score: str, precision: str = "float32") -> str:
    """A score's name in MLflow, such as dev/spearman, search/dev_mrr and search/dev_spearman_asymmetric.

    The sections dev and test have `MAIN_SCORES` of the vectors as trained, so that MLflow's charts stay few.
    """
    if precision == "float32":
        return f"{split}/{score}" if score in MAIN_SCORES else f"search/{split}_{score}"
    return f"search/{split}_{score}_{precision}"


_METRICS = [
    *(
        metric_name(split, score, precision)
        for precision in (*PRECISIONS, ASYMMETRIC)
        for split in EVALUATED_SPLITS
        for score in (SCORES if precision == "float32" else SEARCH_SCORES)
    ),
    "train/loss",
    "train/clean_loss",
]


class ComparisonKey(NamedTuple):
    """What must agree for two runs to stand in one table. Names of datasets and encoders may differ."""

    dataset_digest: str
    test_digest: str | None
    encoder_fingerprint: str
    label_transform: str
    loss: str


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run, as read from MLflow; its metrics on test are those of the newest evaluation."""

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
    """A baseline that needs no labels, with statistics over draws by metric."""

    name: str
    dim: int | None  # None if it does not depend on the compressor's
    bytes: int
    scores: Mapping[str, SeedStats]
    search_only: bool = False  # in the search table alone

    @property
    def family(self) -> str:
        """The name without dim and bytes."""
        return baseline_family(self.name, self.dim)


@dataclass(frozen=True)
class Row:
    """Runs that differ by seed alone, by rising seed."""

    name: str  # of the compressor, without alpha and seed
    family: Recipe  # the fields that rows at other values of alpha share
    runs: Sequence[TrainedRun]
    gains: Mapping[str, MeanDifference]  # by split: Spearman minus Spearman at alpha 0, if the table has such a row
    scores: Mapping[str, SeedStats]  # over seeds by metric, such as "dev/mse" and "train/loss"

    @property
    def recipe(self) -> Recipe:
        """Recipe of the first seed."""
        return self.runs[0].recipe

    def seeds(self, split: str) -> int:
        """Number of seeds that were measured on a split."""
        return self.scores[metric_name(split, "spearman")].count


@dataclass(frozen=True)
class AblationTable:
    """Rows that can be compared with each other: by family, then by rising alpha."""

    comparison_key: ComparisonKey
    title: str  # the comparison key in words
    notice: str | None  # a warning on the data
    rows: Sequence[Row]
    baselines: Sequence[BaselineRow]
    notes: Sequence[str]  # limits of the table

    @cached_property
    def best(self) -> Row:
        """The best row by Spearman on dev."""
        return max(self.rows, key=lambda row: row.scores[SELECTION_METRIC].mean)

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
    """Build a table per comparison key, the one with most runs first. The newest run of a recipe and seed is used."""
    newest: dict[ComparisonKey, dict[Recipe, TrainedRun]] = defaultdict(dict)
    repeated: Counter[ComparisonKey] = Counter()
    for run in sorted(runs, key=lambda run: run.start_time):
        recipe = _comparable_recipe(run.recipe)
        repeated[run.comparison_key] += recipe in newest[run.comparison_key]
        newest[run.comparison_key][recipe] = run
    by_size = sorted(newest, key=lambda key: -len(newest[key]))
    return [_build_table(list(newest[key].values()), baselines.get(key, ()), repeated[key]) for key in by_size]


def _build_table(runs: Sequence[TrainedRun], baselines: Sequence[BaselineRow], repeated: int) -> AblationTable:
    groups: dict[Recipe, list[TrainedRun]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.recipe.seed):
        groups[_comparable_recipe(run.recipe, seed=0)].append(run)
    names = _name_families({_comparable_recipe(recipe, alpha=0.0) for recipe in groups})
    rows = []
    for recipe, group in groups.items():
        family = _comparable_recipe(recipe, alpha=0.0)
        gains = _spearman_gains(group, groups[family]) if recipe != family and family in groups else {}
        scores = {metric: SeedStats.of(_finite_values(group, metric)) for metric in _METRICS}
        rows.append(Row(names[family], family, group, gains, scores))
    order = attrgetter("architecture", "precision", "dim", *DISTINGUISHING_FIELDS)
    rows.sort(key=lambda row: (order(row.family), row.recipe.alpha))
    first, key = runs[0], runs[0].comparison_key
    encoder = public_name(first.recipe.encoder)
    title = f"{first.dataset}, encoder {encoder}, labels {key.label_transform}, loss {key.loss}"
    return AblationTable(key, title, first.notice, rows, baselines, _notes(rows, repeated))


def _finite_values(runs: Sequence[TrainedRun], metric: str) -> list[float]:
    values = (run.metrics.get(metric, np.nan) for run in runs)
    return [float(value) for value in values if np.isfinite(value)]


def _spearman_gains(noisy: Sequence[TrainedRun], noise_free: Sequence[TrainedRun]) -> dict[str, MeanDifference]:
    values = {s: [_finite_values(runs, f"{s}/spearman") for runs in (noisy, noise_free)] for s in EVALUATED_SPLITS}
    return {split: MeanDifference.between(*pair) for split, pair in values.items() if all(pair)}


def _notes(rows: Sequence[Row], repeated: int) -> list[str]:
    notes = []
    if repeated:
        notes.append(f"{count(repeated, 'run')} repeated with the same recipe and seed: the newest is used.")
    without_reference = {row.name for row in rows} - {row.name for row in rows if row.recipe.alpha == 0}
    if without_reference:
        notes.append(f"No run at alpha 0 of {', '.join(sorted(without_reference))}: no Spearman gain.")
    if single := sum(len(row.runs) == 1 for row in rows):
        notes.append(f"{count(single, 'row')} with a single seed: no standard deviation and no interval.")
    if untested := sum(len(row.runs) - row.seeds("test") for row in rows):
        notes.append(f"{count(untested, 'run')} without test scores: `evaluate --model RUN_ID` adds them.")
    return notes


def count(number: int, noun: str) -> str:
    """A number with its noun, such as "1 row" and "2 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _comparable_recipe(recipe: Recipe, **changes: float) -> Recipe:
    """The recipe without the fields that `ComparisonKey` replaces and without the device, with changed fields."""
    defaults = Recipe()
    ignored = {name: getattr(defaults, name) for name in ("dataset", "encoder", "device")}
    return recipe.model_copy(update=ignored | changes)


def _name_families(families: Iterable[Recipe]) -> dict[Recipe, str]:
    """Names such as "mlp32", with the fields that distinguish families of the same compressor name."""
    by_name = defaultdict(list)
    for family in families:
        by_name[family.compressor_name].append(family)
    names = {}
    for name, group in by_name.items():
        fields = [field for field in DISTINGUISHING_FIELDS if len({getattr(family, field) for family in group}) > 1]
        for family in group:
            values = {field: getattr(family, field) for field in fields}
            shown = [f"{field} {v}" if isinstance(v, str) else f"{field} {v:g}" for field, v in values.items()]
            names[family] = ", ".join([name, *shown])
    return names
