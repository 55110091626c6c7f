"""The search table: neighbor recall and retrieval scores against bytes per vector, for every method and precision."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure

from twinsqueeze.recipe import FLOAT_QUERIES, bytes_per_vector
from twinsqueeze.reporting import run_plots
from twinsqueeze.reporting.ablation_table import (
    ASYMMETRIC,
    COLUMN_NAMES,
    EVALUATED_SPLITS,
    PRECISIONS,
    SEARCH_SCORES,
    SELECTION_METRIC,
    AblationTable,
    baseline_family,
    metric_name,
)
from twinsqueeze.reporting.run_plots import TRAINED, MethodCurve
from twinsqueeze.reporting.statistics import NO_VALUES, SeedStats

if TYPE_CHECKING:  # `compare` needs no PyTorch, which takes a second to import
    from twinsqueeze.evaluation.baselines import BaselineScores
    from twinsqueeze.evaluation.evaluator import EvaluationResult

# Header and rows.
TextTable = tuple[list[str], list[list[str]]]
EXPLANATION = (
    "Search quality: every sentence of the split searches all others by cosine. Queries and documents are stored "
    "alike, except in rows with float queries (asymmetric distances, Jégou et al. 2011). Neighbor recall: the share "
    "of the ten nearest uncompressed sentences among the ten nearest found. Recall and MRR: a sentence is relevant to "
    "another if their pair is scored 4 or more. Each trained compressor is shown at its best alpha by Spearman on "
    "dev; the other rows are baselines (no labels)."
)


class VectorFormat(NamedTuple):
    """A trained compressor's vectors.

    Attributes:
        name: Name of the compressor.
        precision: Precision that it was trained for: float32, product or binary.
        dim: Output dimension.
        bytes: Bytes per vector at that precision.
    """

    name: str
    precision: str
    dim: int
    bytes: int


@dataclass(frozen=True)
class SearchRow:
    """A way to store vectors.

    Attributes:
        name: Name of the row.
        method: Name without the size; rows of one method are joined in figures.
        bytes: Bytes per vector.
        is_trained: Whether it was trained on scored pairs.
        scores: Statistics by metric without precision, such as "test/mrr".
    """

    name: str
    method: str
    bytes: int
    is_trained: bool
    scores: Mapping[str, SeedStats]


def rows_from_run(
    vectors: VectorFormat, results: Mapping[str, "EvaluationResult"], baselines: Sequence["BaselineScores"]
) -> list[SearchRow]:
    """Rows of one compressor and its baselines, the largest vectors first.

    Args:
        vectors: The compressor's vectors.
        results: The compressor's results by split.
        baselines: Baselines on the same splits.
    """
    rows = []
    for precision in _compared_precisions(vectors.precision):
        scores = {
            metric_name(split, score): SeedStats.of([found[score]])
            for split, result in results.items()
            if (found := result.scores if precision == vectors.precision else result.by_precision.get(precision))
            for score in SEARCH_SCORES
        }
        rows.append(_trained_row(vectors, TRAINED, precision, scores))
    for baseline in baselines:
        scores = {
            metric_name(split, score): SeedStats(values[score], nan, baseline.draws)
            for split, values in baseline.scores.items()
            for score in SEARCH_SCORES
        }
        method = baseline_family(baseline.name, baseline.dim)
        rows.append(SearchRow(baseline.name, method, baseline.bytes, False, scores))
    return _measured_by_size(rows)


def rows_from_table(table: AblationTable) -> list[SearchRow]:
    """Rows of each compressor at its best alpha and of the baselines, the largest vectors first."""
    rows = []
    for name, family in table.families().items():
        best = max(family, key=lambda row: row.scores[SELECTION_METRIC].mean)
        recipe = best.recipe
        vectors = VectorFormat(f"{name}, alpha {recipe.alpha:g}", recipe.precision, recipe.dim, best.bytes)
        for precision in _compared_precisions(recipe.precision):
            recorded = "float32" if precision == recipe.precision else precision  # no suffix for its own precision
            scores = {
                metric_name(split, score): best.scores[metric_name(split, score, recorded)]
                for split in EVALUATED_SPLITS
                for score in SEARCH_SCORES
            }
            rows.append(_trained_row(vectors, f"{TRAINED} {recipe.architecture}", precision, scores))
    rows += [SearchRow(b.name, b.family, b.bytes, False, b.scores) for b in table.baselines]
    return _measured_by_size(rows)


def rows_from_tables(tables: Sequence[AblationTable]) -> list[SearchRow]:
    """Rows of tables on the same data and encoder; of rows with the same name the first table's is used."""
    rows = {row.name: row for table in reversed(tables) for row in rows_from_table(table)}
    return _measured_by_size(rows.values())


def _compared_precisions(trained_for: str) -> Sequence[str]:
    return PRECISIONS if trained_for == "float32" else (trained_for, ASYMMETRIC)


def _trained_row(vectors: VectorFormat, method: str, precision: str, scores: Mapping[str, SeedStats]) -> SearchRow:
    name, trained_for, dim, size = vectors
    if trained_for == "float32":
        size = bytes_per_vector(precision, dim)
        return SearchRow(f"{name}, {precision}", f"{method}, {precision}", size, True, scores)
    suffix = f", {FLOAT_QUERIES}" if precision == ASYMMETRIC else ""
    return SearchRow(f"{name}{suffix}", f"{method} (quantized), {trained_for}{suffix}", size, True, scores)


def _measured_by_size(rows: Iterable[SearchRow]) -> list[SearchRow]:
    """Rows with at least one score, the largest vectors first."""
    measured = [row for row in rows if any(isfinite(stats.mean) for stats in row.scores.values())]
    return sorted(measured, key=lambda row: -row.bytes)


def prefixes(splits: Collection[str]) -> list[str]:
    """Prefixes of column names by split, empty for a single split."""
    return [f"{split} " if len(splits) > 1 else "" for split in splits]


def format_rows(rows: Sequence[SearchRow], splits: Collection[str]) -> TextTable:
    """The table on some splits as text."""
    names = [f"{prefix}{COLUMN_NAMES[score]}" for prefix in prefixes(splits) for score in SEARCH_SCORES]
    table = []
    for row in rows:
        cells = [row.name, f"{row.bytes:,}"]
        for split in splits:
            for score in SEARCH_SCORES:
                stats = row.scores.get(metric_name(split, score), NO_VALUES)
                cells.append(stats.format(4 if score == "spearman" else 2))
        table.append(cells)
    return ["vectors", "bytes", *names], table


def quality_figure(rows: Sequence[SearchRow]) -> "partial[Figure]":
    """A call that plots quality against bytes per vector on the last measured split; it can be pickled."""
    split = _measured_splits(rows, ("train", *EVALUATED_SPLITS))[-1]
    scores = ("spearman", "neighbor_recall", "recall_at_10")
    titles = {metric_name(split, score): f"{COLUMN_NAMES[score]} on {split}" for score in scores}
    return partial(run_plots.plot_quality_vs_bytes, _method_curves(rows), titles)


def pareto_figure(rows: Sequence[SearchRow]) -> Figure:
    """Spearman against neighbor recall, a panel per split."""
    return run_plots.plot_spearman_vs_neighbor_recall(_method_curves(rows), _measured_splits(rows, EVALUATED_SPLITS))


def _measured_splits(rows: Sequence[SearchRow], splits: Sequence[str]) -> list[str]:
    found = {name.partition("/")[0] for row in rows for name, stats in row.scores.items() if isfinite(stats.mean)}
    return [split for split in splits if split in found]


def _method_curves(rows: Sequence[SearchRow]) -> dict[str, MethodCurve]:
    """Rows by method, trained compressors first."""
    methods: dict[str, list[SearchRow]] = {}
    for row in sorted(rows, key=lambda row: (not row.is_trained, row.bytes)):
        methods.setdefault(row.method, []).append(row)
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.scores))
    return {
        name: MethodCurve(
            [row.bytes for row in group],
            {metric: [row.scores.get(metric, NO_VALUES).mean for row in group] for metric in metrics},
        )
        for name, group in methods.items()
    }
