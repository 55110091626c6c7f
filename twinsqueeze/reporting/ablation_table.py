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
from twinsqueeze.reporting.baseline_selection import strongest
from twinsqueeze.reporting.statistics import MeanDifference, SeedStats
from twinsqueeze.task import NO_ENCODER, SIMILARITY, TASKS, Task
from twinsqueeze.utils.files import public_name

EVALUATED_SPLITS = ("dev", "test")
COLUMN_NAMES = {
    "mse": "MSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman", "neighbor_recall": "neighbor recall",
    "recall_at_1": "recall@1", "recall_at_10": "recall@10", "recall_at_100": "recall@100", "mrr": "MRR",
    "mrr_at_10": "MRR@10", "ndcg_at_10": "nDCG@10",
}  # fmt: skip
PRECISIONS = ("float32", "int8", "binary")
ASYMMETRIC = "asymmetric"  # float queries against stored codes (Jégou et al. 2011)
# Recipe fields that are appended to the names of compressors that would otherwise be called the same.
DISTINGUISHING_FIELDS = (
    "base", "loss", "label_transform", "epochs", "batch_size", "lr", "lr_schedule", "weight_decay", "init",
    "neighbor_weight", "num_neighbors", "num_candidates", "unlabeled_sentences", "neighbor_temperature",
    "infonce_temperature", "teacher", "teacher_whitening", "teacher_alpha", "teacher_interpolation", "subvector_dim",
    "codes_per_subvector", "codebook_lr",
)  # fmt: skip


def metric_name(split: str, score: str, precision: str = "float32") -> str:
    """A score's name in MLflow, such as dev/spearman, search/dev_mrr and search/dev_spearman_asymmetric.

    The sections dev and test have main scores of the vectors as trained, so that MLflow's charts stay few.
    """
    if precision == "float32":
        is_main = any(score in task.main_scores for task in TASKS.values())
        return f"{split}/{score}" if is_main else f"search/{split}_{score}"
    return f"search/{split}_{score}_{precision}"


def selection_metric(task: Task) -> str:
    """The metric by which runs of a task are selected, such as dev/spearman."""
    return metric_name("dev", task.selection)


def num_digits(task: Task, score: str) -> int:
    """Decimals of a score in texts and tables."""
    return 4 if score in task.curve_scores else 2


def capitalized_name(score: str) -> str:
    """A score's name at the beginning of a sentence: neighbor recall becomes Neighbor recall, nDCG@10 stays."""
    name = COLUMN_NAMES[score]
    return name[0].upper() + name[1:] if name.islower() else name


def _metrics(task: Task) -> list[str]:
    """The metrics of rows, in the order of table.csv."""
    precisions = (*PRECISIONS, ASYMMETRIC) if task == SIMILARITY else PRECISIONS
    scores = [
        metric_name(split, score, precision)
        for precision in precisions
        for split in EVALUATED_SPLITS
        for score in (task.scores if precision == "float32" else task.search_scores)
    ]
    return [*scores, "train/loss", "train/clean_loss"]


class ComparisonKey(NamedTuple):
    """What must agree for two runs to stand in one table. Names of datasets and encoders may differ."""

    dataset_digest: str
    test_digest: str | None
    encoder_fingerprint: str
    label_transform: str  # empty for data without human scores, as is the loss: runs of every loss can be compared
    loss: str
    task: str = SIMILARITY.name


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

    @property
    def task(self) -> Task:
        """The task of the run's data."""
        return TASKS[self.comparison_key.task]


def baseline_family(name: str, dim: int | None) -> str:
    """A baseline's name without its dim and bytes, such as "PCA" for "PCA to 32"."""
    name = re.sub(r", \d+ bytes$", "", name)
    return name if dim is None else re.sub(rf" (to )?{dim}\b", "", name)


@dataclass(frozen=True)
class BaselineRow:
    """A baseline, with statistics over draws by metric."""

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
    gains: Mapping[str, MeanDifference]  # by split: the selection score minus that of the row at alpha 0, if any
    scores: Mapping[str, SeedStats]  # over seeds by metric, such as "dev/mse" and "train/loss"

    @property
    def recipe(self) -> Recipe:
        """Recipe of the first seed."""
        return self.runs[0].recipe

    @property
    def task(self) -> Task:
        """The task of the runs' data."""
        return self.runs[0].task

    @property
    def dev_score(self) -> float:
        """Mean over seeds of the score by which rows are selected."""
        return self.scores[selection_metric(self.task)].mean

    def seeds(self, split: str) -> int:
        """Number of seeds that were measured on a split."""
        return self.scores[metric_name(split, self.task.selection)].count


@dataclass(frozen=True)
class AblationTable:
    """Rows that can be compared with each other: by family, then by rising alpha."""

    comparison_key: ComparisonKey
    title: str  # the comparison key in words
    notice: str | None  # a warning on the data
    rows: Sequence[Row]
    baselines: Sequence[BaselineRow]
    notes: Sequence[str]  # limits of the table
    shows_all: bool = False  # all baselines instead of the strongest

    @property
    def task(self) -> Task:
        """The task of the data."""
        return TASKS[self.comparison_key.task]

    @cached_property
    def best(self) -> Row:
        """The best row by the selection score on dev."""
        return max(self.rows, key=attrgetter("dev_score"))

    @property
    def shown_baselines(self) -> Sequence[BaselineRow]:
        """The baselines that tables and figures show."""
        return self.baselines if self.shows_all else strongest(self.baselines, selection_metric(self.task))

    @property
    def score_baselines(self) -> list[BaselineRow]:
        """Those that are shown in the table of scores."""
        return [baseline for baseline in self.shown_baselines if not baseline.search_only]

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
    task, rows = runs[0].task, []
    for recipe, group in groups.items():
        family = _comparable_recipe(recipe, alpha=0.0)
        gains = _gains(group, groups[family], task) if recipe != family and family in groups else {}
        scores = {metric: SeedStats.of(_finite_values(group, metric)) for metric in _metrics(task)}
        rows.append(Row(names[family], family, group, gains, scores))
    order = attrgetter("architecture", "precision", "dim", *DISTINGUISHING_FIELDS)
    rows.sort(key=lambda row: (order(row.family), row.recipe.alpha))
    first = runs[0]
    return AblationTable(
        first.comparison_key, _title(first), first.notice, rows, baselines, _notes(rows, task, repeated)
    )


def _title(run: TrainedRun) -> str:
    key, encoder = run.comparison_key, run.recipe.encoder
    title = f"{run.dataset}, encoder {'unknown' if encoder == NO_ENCODER else public_name(encoder)}"
    return f"{title}, labels {key.label_transform}, loss {key.loss}" if run.task == SIMILARITY else title


def _finite_values(runs: Sequence[TrainedRun], metric: str) -> list[float]:
    values = (run.metrics.get(metric, np.nan) for run in runs)
    return [float(value) for value in values if np.isfinite(value)]


def _gains(noisy: Sequence[TrainedRun], noise_free: Sequence[TrainedRun], task: Task) -> dict[str, MeanDifference]:
    metrics = {split: metric_name(split, task.selection) for split in EVALUATED_SPLITS}
    values = {split: [_finite_values(runs, name) for runs in (noisy, noise_free)] for split, name in metrics.items()}
    return {split: MeanDifference.between(*pair) for split, pair in values.items() if all(pair)}


def _notes(rows: Sequence[Row], task: Task, repeated: int) -> list[str]:
    notes = []
    if repeated:
        notes.append(f"{count(repeated, 'run')} repeated with the same recipe and seed: the newest is used.")
    without_reference = {row.name for row in rows} - {row.name for row in rows if row.recipe.alpha == 0}
    if without_reference:
        notes.append(
            f"No run at alpha 0 of {', '.join(sorted(without_reference))}: no {COLUMN_NAMES[task.selection]} gain."
        )
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
