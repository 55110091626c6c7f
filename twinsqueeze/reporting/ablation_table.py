"""The ablation's tables: runs that differ by seed alone become a row, with the difference to training without noise."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np

from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.statistics import MeanDifference, SeedStats

EVALUATED_SPLITS = ("dev", "test")
SCORES = ("mse", "mae", "pearson", "spearman", "neighbor_recall", "recall_at_1", "recall_at_10", "mrr")
# What a search is measured by, at every precision that vectors are kept in.
SEARCH_SCORES = SCORES[3:]
PRECISIONS = ("float32", "int8", "binary")
# Queries in floats with what is stored in fewer bits.
ASYMMETRIC = "asymmetric"
LOSSES = ("train/loss", "train/clean_loss")
SELECTION_METRIC = "dev/spearman"
# What tells compressors of one name from each other.
DISTINGUISHING_FIELDS = (
    "epochs", "batch_size", "lr", "lr_schedule", "weight_decay", "init", "neighbor_weight", "num_neighbors",
    "synthetic_sentences", "neighbor_temperature", "teacher", "teacher_alpha", "subvector_dim",
)  # fmt: skip


def metric_name(split: str, score: str, compared: str = "float32") -> str:
    """What MLflow knows a score by, such as dev/mrr, dev/mrr_int8 and dev/mrr_asymmetric."""
    return f"{split}/{score}" + ("" if compared == "float32" else f"_{compared}")


_RECORDED = (
    *(metric_name(split, score) for split in EVALUATED_SPLITS for score in SCORES),
    *(
        metric_name(s, score, way)
        for way in (*PRECISIONS[1:], ASYMMETRIC)
        for s in EVALUATED_SPLITS
        for score in SEARCH_SCORES
    ),
)


class ComparisonKey(NamedTuple):
    """What must agree for two runs to stand in one table; whatever data and encoder are called."""

    dataset_digest: str
    test_digest: str | None
    encoder_fingerprint: str
    label_transform: str
    loss: str


@dataclass(frozen=True)
class TrainedRun:
    """A finished training, as it was read from MLflow.

    Attributes:
        run_id: MLflow's.
        link: Where it is looked at.
        started: When.
        recipe: What it was asked to train.
        kind: What it can be compared with.
        dataset: What its data are called.
        notice: What must be said of its data, if anything.
        metrics: The latest value of each, those on test from the newest evaluation where there is one.
    """

    run_id: str
    link: str
    started: datetime
    recipe: Recipe
    kind: ComparisonKey
    dataset: str
    notice: str | None
    metrics: Mapping[str, float]


def baseline_family(name: str, dim: int | None) -> str:
    """What a baseline of some name is called at every dim and every number of bytes."""
    name = re.sub(r", \d+ bytes$", "", name)
    return name if dim is None else re.sub(rf" (to )?{dim}\b", "", name)


@dataclass(frozen=True)
class BaselineRow:
    """What needs no labels, measured on the table's data.

    Attributes:
        name: Such as "PCA to 32".
        dim: Numbers that vectors are reduced to, None where the row is the same at every dim.
        bytes: Of a vector.
        scores: Mean and deviation over draws by metric, such as "dev/mse"; deviation NaN where nothing is random.
        search_only: Whether it is of interest only where a search is weighed against its bytes.
    """

    name: str
    dim: int | None
    bytes: int
    scores: Mapping[str, SeedStats]
    search_only: bool = False

    @property
    def family(self) -> str:
        """The name without the dim and the bytes, such as "PCA"."""
        return baseline_family(self.name, self.dim)


@dataclass(frozen=True)
class Row:
    """Runs that differ by seed alone.

    Attributes:
        name: The compressor, without noise and seed.
        recipe: Of its first seed.
        runs: By rising seed.
        scores: Over seeds, by metric such as "dev/mse" and "train/loss".
        gains: On each split Spearman less that at alpha 0, all else equal; nothing where there is no such row.
        best: Whether this is the table's best row, by Spearman on dev.
    """

    name: str
    recipe: Recipe
    runs: Sequence[TrainedRun]
    scores: Mapping[str, SeedStats]
    gains: Mapping[str, MeanDifference] = field(default_factory=dict)
    best: bool = False

    @property
    def bytes(self) -> int:
        """Of a compressed vector."""
        return self.recipe.bytes_per_vector

    @property
    def family(self) -> Recipe:
        """What it shares with the same recipe at other strengths of noise."""
        return _family(self.recipe)

    def values(self, metric: str) -> list[float]:
        """A metric of every seed that has it."""
        return values(self.runs, metric)


@dataclass(frozen=True)
class AblationTable:
    """Rows that can be compared with each other.

    Attributes:
        kind: What they have in common.
        title: The same in words.
        notice: What must be said of the data, if anything.
        rows: By family, then by rising alpha.
        baselines: What needs no labels.
        notes: What could not be computed, and why.
    """

    kind: ComparisonKey
    title: str
    notice: str | None
    rows: Sequence[Row]
    baselines: Sequence[BaselineRow]
    notes: Sequence[str]

    @property
    def best(self) -> Row:
        """The row that does best on dev."""
        return next(row for row in self.rows if row.best)

    @property
    def plain_baselines(self) -> list[BaselineRow]:
        """Those that stand beside every compressor."""
        return [baseline for baseline in self.baselines if not baseline.search_only]

    def families(self) -> dict[str, list[Row]]:
        """Rows that differ by alpha alone, by their name."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.name, []).append(row)
        return found


def build_tables(
    runs: Iterable[TrainedRun], baselines: Mapping[ComparisonKey, Sequence[BaselineRow]]
) -> list[AblationTable]:
    """The tables of some runs, the largest first.

    Args:
        runs: Any; of those that repeat a recipe, seed included, the newest counts.
        baselines: Of every kind.
    """
    newest: dict[tuple[ComparisonKey, Recipe], TrainedRun] = {}
    repeated: Counter[ComparisonKey] = Counter()
    for run in sorted(runs, key=lambda run: run.started):
        key = run.kind, _comparable_recipe(run.recipe)
        repeated[run.kind] += key in newest
        newest[key] = run
    kinds: dict[ComparisonKey, list[TrainedRun]] = {}
    for run in newest.values():
        kinds.setdefault(run.kind, []).append(run)
    tables = [_table(kind, members, baselines.get(kind, ()), repeated[kind]) for kind, members in kinds.items()]
    return sorted(tables, key=lambda table: -sum(len(row.runs) for row in table.rows))


def _table(
    kind: ComparisonKey, runs: Sequence[TrainedRun], baselines: Sequence[BaselineRow], repeated: int
) -> AblationTable:
    groups: dict[Recipe, list[TrainedRun]] = {}
    for run in sorted(runs, key=lambda run: run.recipe.seed):
        groups.setdefault(_comparable_recipe(run.recipe).model_copy(update={"seed": 0}), []).append(run)
    names = _names({_family(recipe) for recipe in groups})
    rows = {
        recipe: Row(
            name=names[_family(recipe)],
            recipe=members[0].recipe,
            runs=members,
            scores={metric: SeedStats.of(values(members, metric)) for metric in (*_RECORDED, *LOSSES)},
        )
        for recipe, members in groups.items()
    }
    for recipe, row in rows.items():
        quiet = rows.get(_family(recipe))
        if quiet is not None and quiet is not row:
            rows[recipe] = replace(row, gains=_gains(row, quiet))
    best = max(rows.values(), key=lambda row: row.scores[SELECTION_METRIC].mean)
    ordered = sorted(rows.values(), key=lambda row: (_order(row.family), row.recipe.alpha))
    return AblationTable(
        kind=kind,
        title=(f"{runs[0].dataset}, encoder {runs[0].recipe.encoder}, labels {kind.label_transform}, loss {kind.loss}"),
        notice=runs[0].notice,
        rows=[replace(row, best=row is best) for row in ordered],
        baselines=baselines,
        notes=_notes(ordered, repeated),
    )


def _gains(row: Row, quiet: Row) -> dict[str, MeanDifference]:
    gains = {}
    for split in EVALUATED_SPLITS:
        ours, theirs = (r.values(f"{split}/spearman") for r in (row, quiet))
        if ours and theirs:
            gains[split] = MeanDifference.between(ours, theirs)
    return gains


def _notes(rows: Sequence[Row], repeated: int) -> list[str]:
    notes = []
    if repeated:
        what = _count(repeated, "run")
        notes.append(f"{what} repeated by a newer one of the same recipe and seed: the newest counts.")
    quiet = {row.name for row in rows if row.recipe.alpha == 0}
    if lonely := sorted({row.name for row in rows} - quiet):
        notes.append(f"No run at alpha 0 of {', '.join(lonely)}: no difference to it can be computed.")
    if single := sum(len(row.runs) == 1 for row in rows):
        notes.append(f"{_count(single, 'row')} of a single seed: no standard deviation and no interval.")
    if untested := sum(len(row.runs) - len(row.values("test/spearman")) for row in rows):
        notes.append(
            f"{_count(untested, 'run')} without scores on test: "
            "`mlflow run . --env-manager local -e evaluate -P model=RUN_ID` makes them."
        )
    return notes


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def values(runs: Sequence[TrainedRun], metric: str) -> list[float]:
    """A metric of every run that has it."""
    found = (run.metrics.get(metric, np.nan) for run in runs)
    return [float(value) for value in found if np.isfinite(value)]


def _comparable_recipe(recipe: Recipe) -> Recipe:
    """A recipe without what the kind stands for, and the device, which is how and not what."""
    defaults = Recipe()
    return recipe.model_copy(update={name: getattr(defaults, name) for name in ("dataset", "encoder", "device")})


def _family(recipe: Recipe) -> Recipe:
    """What a recipe shares with those that differ in alpha and seed."""
    return _comparable_recipe(recipe).model_copy(update={"alpha": 0.0, "seed": 0})


def _order(family: Recipe) -> tuple[str | int | float, ...]:
    return family.architecture, family.precision, family.dim, *(getattr(family, name) for name in DISTINGUISHING_FIELDS)


def _names(families: Iterable[Recipe]) -> dict[Recipe, str]:
    """A name for every family: the compressor, and whatever else tells it from others that would be called so."""
    called = defaultdict(list)
    for family in families:
        called[family.compressor_name].append(family)
    names = {}
    for name, alike in called.items():
        telling = [field for field in DISTINGUISHING_FIELDS if len({getattr(family, field) for family in alike}) > 1]
        for family in alike:
            names[family] = ", ".join([name, *(f"{field} {_text(getattr(family, field))}" for field in telling)])
    return names


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
