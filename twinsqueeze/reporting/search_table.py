"""The search table: neighbor recall and retrieval of relevant sentences against bytes per vector, for every method."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from twinsqueeze.recipe import FLOAT_QUERIES, bytes_per_vector
from twinsqueeze.reporting.ablation_table import (
    ASYMMETRIC,
    EVALUATED_SPLITS,
    PRECISIONS,
    SEARCH_SCORES,
    SELECTION_METRIC,
    AblationTable,
    BaselineRow,
    Row,
    baseline_family,
    metric_name,
)
from twinsqueeze.reporting.run_plots import plot_spearman_vs_neighbor_recall, quality_against_bytes
from twinsqueeze.reporting.statistics import SeedStats

if TYPE_CHECKING:  # a comparison needs no PyTorch, which takes a second to import
    from twinsqueeze.evaluation.baselines import BaselineScores
    from twinsqueeze.evaluation.evaluator import EvaluationResult
    from twinsqueeze.reporting.figure_pool import Drawing

SEARCH_COLUMN_NAMES = {
    "spearman": "Spearman",
    "neighbor_recall": "neighbor recall",
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
    "mrr": "MRR",
}
ABSENT = "n/a"
TRAINED = "trained"
EXPLANATION = (
    "What search keeps: every sentence of the split searches all the others by cosine, both sides as they are stored, "
    "or, where the row says so, the one that searches in floats (asymmetric distances, Jégou et al. 2011). "
    "Neighbor recall: the share of the ten nearest uncompressed sentences among the ten nearest found. Recall and "
    "MRR: a sentence is relevant to another if their pair is scored 4 or more. The rows of ours are of each "
    "compressor's best alpha by Spearman on dev; the others need no labels."
)


@dataclass(frozen=True)
class SearchRow:
    """A way to store vectors.

    Attributes:
        name: Of the row.
        method: What it has in common with the same at other sizes.
        bytes: Of a vector.
        ours: Whether it was trained on scored pairs.
        scores: By metric as at float32, such as "test/mrr".
    """

    name: str
    family: str
    bytes: int
    ours: bool
    scores: Mapping[str, SeedStats]


def rows_from_run(
    title: str,
    precision: str,
    dim: int,
    size: int,
    assessments: Mapping[str, "EvaluationResult"],
    baselines: Sequence["BaselineScores"],
) -> list[SearchRow]:
    """The rows of one compressor and what it is compared with, the largest vectors first.

    Args:
        title: What the compressor is called.
        precision: What it was trained as.
        dim: Numbers in its vectors.
        size: Bytes of a vector as it was trained.
        assessments: It on each split that was looked at.
        baselines: The same splits with what needs no labels.
    """
    rows = []
    for kept_as in _kept_as(precision):
        found = {
            metric_name(split, score): SeedStats.of([scores[score]])
            for split, assessment in assessments.items()
            if (scores := assessment.scores if kept_as == precision else assessment.by_precision.get(kept_as))
            for score in SEARCH_SCORES
        }
        if found:
            rows.append(_ours(title, TRAINED, precision, kept_as, dim, size, found))
    for baseline in baselines:
        found = {
            metric_name(split, score): SeedStats(scores[score], float("nan"), baseline.draws)
            for split, scores in baseline.scores.items()
            for score in SEARCH_SCORES
        }
        rows.append(
            SearchRow(baseline.name, baseline_family(baseline.name, baseline.dim), baseline.bytes, False, found)
        )
    return _sorted(rows)


def rows_from_table(table: AblationTable) -> list[SearchRow]:
    """The rows of each compressor's best alpha and what it is compared with, the largest vectors first."""
    rows = []
    for name, family in table.families().items():
        best = max(family, key=lambda row: row.scores[SELECTION_METRIC].mean)
        alpha = f"{name}, alpha {best.recipe.alpha:g}"
        precision, dim, group = best.recipe.precision, best.recipe.dim, f"{TRAINED} {best.recipe.architecture}"
        rows += [_ours(alpha, group, precision, kept, dim, best.bytes, _at(best, kept)) for kept in _kept_as(precision)]
    return _sorted([*rows, *map(_baseline, table.baselines)])


def _kept_as(precision: str) -> Sequence[str]:
    """How vectors are compared: those trained in floats in fewer bits too, the others with queries in floats too."""
    return PRECISIONS if precision == "float32" else (precision, ASYMMETRIC)


def _ours(
    name: str, group: str, precision: str, kept_as: str, dim: int, size: int, scores: Mapping[str, SeedStats]
) -> SearchRow:
    if precision == "float32":
        return SearchRow(f"{name}, {kept_as}", f"{group}, {kept_as}", bytes_per_vector(kept_as, dim), True, scores)
    asked = f", {FLOAT_QUERIES}" if kept_as == ASYMMETRIC else ""
    return SearchRow(f"{name}{asked}", f"{group} as codes, {precision}{asked}", size, True, scores)


def _at(row: Row, kept_as: str) -> dict[str, SeedStats]:
    names = [(split, score) for split in EVALUATED_SPLITS for score in SEARCH_SCORES]
    recorded = "float32" if kept_as == row.recipe.precision else kept_as  # a training's own precision has no suffix
    return {metric_name(*name): row.scores[metric_name(*name, recorded)] for name in names}


def _baseline(row: BaselineRow) -> SearchRow:
    return SearchRow(row.name, row.family, row.bytes, False, row.scores)


def _sorted(rows: Iterable[SearchRow]) -> list[SearchRow]:
    return sorted((row for row in rows if _known(row)), key=lambda row: -row.bytes)


def _known(row: SearchRow) -> bool:
    """Whether there is anything to show: runs from before search was measured have nothing at int8 and binary."""
    return any(np.isfinite(spread.mean) for spread in row.scores.values())


def as_text(rows: Sequence[SearchRow], splits: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """The table on some splits as text: a header and its rows."""
    splits = list(splits)
    header = ["stored as", "bytes", *(f"{split} {name}" for split in splits for name in SEARCH_COLUMN_NAMES.values())]
    return header, [
        [
            row.name,
            f"{row.bytes:,}",
            *(_cell(row.scores.get(metric_name(s, n)), n) for s in splits for n in SEARCH_COLUMN_NAMES),
        ]
        for row in rows
    ]


def _cell(spread: SeedStats | None, score: str) -> str:
    if spread is None or not np.isfinite(spread.mean):
        return ABSENT
    digits = 4 if score == "spearman" else 2
    deviation = f" ± {spread.deviation:.{digits}f}" if np.isfinite(spread.deviation) else ""
    return f"{spread.mean:.{digits}f}{deviation}"


def rows_from_tables(tables: Sequence[AblationTable]) -> list[SearchRow]:
    """The rows of tables on the same data and encoder, whatever they were trained towards; the first's baselines."""
    rows = {row.name: row for table in reversed(tables) for row in rows_from_table(table)}
    return _sorted(rows.values())


def picture(rows: Sequence[SearchRow]) -> "Drawing":
    """Quality against bytes a vector, on the last split that was looked at; drawn when it is called."""
    split = next(split for split in ("test", "dev", "train") if split in _measured(rows))
    methods = _methods(rows)
    qualities = ("spearman", "neighbor_recall", "recall_at_10")
    return partial(
        quality_against_bytes,
        {
            name: (
                [row.bytes for row in members],
                {q: [_mean(row, metric_name(split, q)) for row in members] for q in qualities},
            )
            for name, members in methods.items()
        },
        TRAINED,
        {q: f"{SEARCH_COLUMN_NAMES[q]} on {split}" for q in qualities},
    )


def pareto_figure(rows: Sequence[SearchRow]) -> Figure:
    """Spearman against neighbor recall, a panel a split."""
    splits = [split for split in EVALUATED_SPLITS if split in _measured(rows)]
    return plot_spearman_vs_neighbor_recall(
        {
            split: {
                name: (
                    [row.bytes for row in members],
                    [_mean(row, metric_name(split, "neighbor_recall")) for row in members],
                    [_mean(row, metric_name(split, "spearman")) for row in members],
                )
                for name, members in _methods(rows).items()
            }
            for split in splits
        },
        TRAINED,
    )


def _measured(rows: Sequence[SearchRow]) -> set[str]:
    return {name.partition("/")[0] for row in rows for name, spread in row.scores.items() if np.isfinite(spread.mean)}


def _methods(rows: Sequence[SearchRow]) -> dict[str, list[SearchRow]]:
    """Rows that differ in size alone, ours first."""
    methods: dict[str, list[SearchRow]] = {}
    for row in sorted(rows, key=lambda row: (not row.ours, row.bytes)):
        methods.setdefault(row.family, []).append(row)
    return methods


def _mean(row: SearchRow, metric: str) -> float:
    spread = row.scores.get(metric)
    return spread.mean if spread else float("nan")
