"""The search table: neighbor recall and retrieval scores against bytes per vector, for every method and precision."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, nan
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure

from twinsqueeze.recipe import FLOAT_QUERIES, bytes_per_vector
from twinsqueeze.reporting import method_plots
from twinsqueeze.reporting.ablation_table import (
    ASYMMETRIC,
    COLUMN_NAMES,
    EVALUATED_SPLITS,
    PRECISIONS,
    AblationTable,
    baseline_family,
    capitalized_name,
    metric_name,
    num_digits,
)
from twinsqueeze.reporting.baseline_selection import strongest
from twinsqueeze.reporting.method_plots import TRAINED, MethodPoints
from twinsqueeze.reporting.statistics import NO_VALUES, SeedStats
from twinsqueeze.task import Task

if TYPE_CHECKING:  # `compare` needs no PyTorch, which takes a second to import
    from twinsqueeze.evaluation.baselines import BaselineScores
    from twinsqueeze.evaluation.evaluator import EvaluationResult

SPLITS = ("train", *EVALUATED_SPLITS)
TextTable = tuple[list[str], list[list[str]]]  # header and rows


class VectorFormat(NamedTuple):
    """Name, precision in training (float32, product or binary), dim and bytes per vector of a trained compressor."""

    name: str
    precision: str
    dim: int
    bytes: int


@dataclass(frozen=True)
class SearchRow:
    """A way to store vectors, with statistics by metric without precision, such as "search/test_mrr"."""

    name: str
    method: str  # the name without the size, by which figures choose the series
    bytes: int
    is_trained: bool
    search_only: bool  # left out of tables of scores
    scores: Mapping[str, SeedStats]
    task: Task  # whose scores they are

    @property
    def sizeless_name(self) -> str:
        """The name without the bytes, such as "FAISS PQ" for "FAISS PQ, 32 bytes"."""
        return self.name.removesuffix(f", {self.bytes} bytes")

    def score(self, metric: str) -> SeedStats:
        """A metric's statistics; without values if it was not measured."""
        return self.scores.get(metric, NO_VALUES)


def rows_from_run(
    vectors: VectorFormat, results: Mapping[str, "EvaluationResult"], baselines: Sequence["BaselineScores"], task: Task
) -> list[SearchRow]:
    """Rows of one compressor and its baselines, the largest vectors first; results are by split."""
    scores = {
        metric_name(split, score, precision): SeedStats.of([value])
        for split, result in results.items()
        for precision, values in {"float32": result.scores, **result.by_precision}.items()
        for score, value in values.items()
    }
    rows = _trained_rows(vectors, TRAINED, scores, task)
    for baseline in baselines:
        scores = {
            metric_name(split, score): SeedStats(value, nan, baseline.draws)
            for split, values in baseline.scores.items()
            for score, value in values.items()
        }
        method = baseline_family(baseline.name, baseline.dim)
        rows.append(SearchRow(baseline.name, method, baseline.bytes, False, baseline.search_only, scores, task))
    return _measured_by_size(rows)


def rows_from_tables(tables: Sequence[AblationTable]) -> list[SearchRow]:
    """Rows of each compressor at its best alpha and of baselines, for tables that share data and encoder."""
    rows: list[SearchRow] = []
    for table in reversed(tables):  # of rows with the same name the first table's is used
        for name, family in table.families().items():
            best = max(family, key=attrgetter("dev_score"))
            recipe = best.recipe
            vectors = VectorFormat(
                f"{name}, alpha {recipe.alpha:g}", recipe.precision, recipe.dim, recipe.bytes_per_vector
            )
            rows += _trained_rows(vectors, f"{TRAINED} {recipe.architecture}", best.scores, table.task)
        rows += [
            SearchRow(b.name, b.family, b.bytes, False, b.search_only, b.scores, table.task)
            for b in table.shown_baselines
        ]
    return _measured_by_size({row.name: row for row in rows}.values())


def _trained_rows(vectors: VectorFormat, method: str, recorded: Mapping[str, SeedStats], task: Task) -> list[SearchRow]:
    """A row per precision that the vectors can be stored in; the precision in training is recorded without suffix."""
    rows = []
    for precision in PRECISIONS if vectors.precision == "float32" else (vectors.precision, ASYMMETRIC):
        suffix = "float32" if precision == vectors.precision else precision
        scores = {
            metric_name(split, score): recorded.get(metric_name(split, score, suffix), NO_VALUES)
            for split in SPLITS
            for score in task.scores
        }
        if vectors.precision == "float32":
            label, size, group = f", {precision}", bytes_per_vector(precision, vectors.dim), method
        else:
            label = f", {FLOAT_QUERIES}" if precision == ASYMMETRIC else ""
            size, group = vectors.bytes, f"{method} (quantized), {vectors.precision}"
        search_only = precision != vectors.precision
        rows.append(SearchRow(f"{vectors.name}{label}", f"{group}{label}", size, True, search_only, scores, task))
    return rows


def _measured_by_size(rows: Iterable[SearchRow]) -> list[SearchRow]:
    """Rows with at least one score, the largest vectors first."""
    measured = [row for row in rows if any(isfinite(stats.mean) for stats in row.scores.values())]
    return sorted(measured, key=lambda row: -row.bytes)


def with_strongest_baselines(rows: Sequence[SearchRow]) -> list[SearchRow]:
    """The trained rows, and the baselines that tables show by default."""
    metric = metric_name(_selection_split(_measured_splits(rows)), rows[0].task.selection)
    shown = {row.name for row in strongest([row for row in rows if not row.is_trained], metric)}
    return [row for row in rows if row.is_trained or row.name in shown]


def split_columns(splits: Collection[str], names: Sequence[str]) -> list[str]:
    """Column names of every split, preceded by the split if there are several."""
    return [f"{split} {name}" if len(splits) > 1 else name for split in splits for name in names]


def format_rows(
    rows: Sequence[SearchRow], splits: Collection[str] = EVALUATED_SPLITS, scores: Sequence[str] = ()
) -> TextTable:
    """The table on some splits as text, by default with the search scores."""
    scores = scores or rows[0].task.search_scores
    return format_columns(rows, [(split, score) for split in splits for score in scores])


def format_columns(rows: Sequence[SearchRow], columns: Sequence[tuple[str, str]]) -> TextTable:
    """The scores of rows as text; a column is a split, named if there are several, and a score."""
    several = len({split for split, _ in columns}) > 1
    header = [f"{split} {COLUMN_NAMES[score]}" if several else COLUMN_NAMES[score] for split, score in columns]
    metrics = [(metric_name(split, score), num_digits(rows[0].task, score)) for split, score in columns]
    cells = [
        [row.name, f"{row.bytes:,}", *(row.score(metric).format(digits) for metric, digits in metrics)] for row in rows
    ]
    return ["vectors", "bytes", *header], cells


def format_run(rows: Sequence[SearchRow], splits: Collection[str]) -> TextTable:
    """Scores of a run's vectors as they are stored, and of baselines."""
    shown = [replace(row, name=row.name.removesuffix(", float32")) for row in rows if not row.search_only]
    shown.sort(key=lambda row: not row.is_trained)
    return format_rows(shown, splits, rows[0].task.main_scores)


def quality_figure(rows: Sequence[SearchRow]) -> "partial[Figure]":
    """A call that plots quality against bytes per vector on the last measured split; it can be pickled."""
    splits = _measured_splits(rows)
    scores = dict.fromkeys((rows[0].task.selection, "neighbor_recall"))
    titles = {metric_name(splits[-1], score): f"{capitalized_name(score)} on {splits[-1]}" for score in scores}
    return partial(method_plots.plot_quality_vs_bytes, _method_points(rows), titles, _selection_split(splits))


def pareto_figure(rows: Sequence[SearchRow]) -> Figure:
    """The selection score against neighbor recall, a column per split; the two must differ."""
    splits, score = _measured_splits(rows), rows[0].task.selection
    return method_plots.plot_score_vs_neighbor_recall(_method_points(rows), score, splits, _selection_split(splits))


def _measured_splits(rows: Sequence[SearchRow]) -> list[str]:
    return [
        split
        for split in SPLITS
        if any(isfinite(row.score(metric_name(split, row.task.selection)).mean) for row in rows)
    ]


def _selection_split(splits: Sequence[str]) -> str:
    """The split whose scores select what is emphasized: dev if it was measured."""
    return "dev" if "dev" in splits else splits[-1]


def _method_points(rows: Sequence[SearchRow]) -> dict[str, MethodPoints]:
    """The rows of each measured series of figures, except those with float queries, which few methods have."""
    groups: dict[str, list[SearchRow]] = {label: [] for label in method_plots.SERIES}
    for row in sorted(rows, key=lambda row: row.bytes):
        label = method_plots.find_series(row.method)
        if label and not row.method.endswith(FLOAT_QUERIES):
            groups[label].append(row)
    metrics = [metric_name(split, score) for split in SPLITS for score in rows[0].task.search_scores]
    return {
        label: MethodPoints(
            [row.bytes for row in group], {metric: [row.score(metric).mean for row in group] for metric in metrics}
        )
        for label, group in groups.items()
        if group
    }
