"""The table of search: what is kept of neighbours and partners, against bytes a vector, for every method."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from twinsqueeze.ablation_table import (
    CHOSEN_BY,
    PRECISIONS,
    SEARCH_SCORES,
    SPLITS,
    AblationTable,
    BaselineRow,
    Row,
    method,
    metric_name,
)
from twinsqueeze.figures import quality_against_bytes, similarity_against_neighbours
from twinsqueeze.seeds import Spread
from twinsqueeze.sizes import bytes_a_vector

if TYPE_CHECKING:  # a comparison needs no PyTorch, which takes a second to import
    from twinsqueeze.baselines import BaselineScores
    from twinsqueeze.evaluation import Assessment

NAMES = {
    "spearman": "Spearman",
    "neighbours_kept": "neighbours",
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
    "mrr": "MRR",
}
ABSENT = "n/a"
OURS = "trained"
EXPLANATION = (
    "What search keeps: every sentence of the split searches all the others by cosine, both sides as they are stored. "
    "Neighbours: the share of the ten nearest uncompressed sentences among the ten nearest found. Recall and MRR: of "
    "the partner, for the pairs scored 4 or more. The rows of ours are of each compressor's best alpha by Spearman on "
    "dev; the others need no labels."
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
    method: str
    bytes: int
    ours: bool
    scores: Mapping[str, Spread]


def of_run(
    title: str,
    precision: str,
    dim: int,
    assessments: Mapping[str, "Assessment"],
    baselines: Sequence["BaselineScores"],
) -> list[SearchRow]:
    """The rows of one compressor and what it is compared with, the largest vectors first.

    Args:
        title: What the compressor is called.
        precision: What it was trained as.
        dim: Numbers in its vectors.
        assessments: It on each split that was looked at.
        baselines: The same splits with what needs no labels.
    """
    rows = []
    for kept_as in _kept_as(precision):
        found = {
            metric_name(split, score): Spread.of([scores[score]])
            for split, assessment in assessments.items()
            if (scores := assessment.scores if kept_as == precision else assessment.quantised.get(kept_as))
            for score in SEARCH_SCORES
        }
        if found:
            rows.append(_ours(title, OURS, precision, kept_as, dim, found))
    for baseline in baselines:
        found = {
            metric_name(split, score): Spread(scores[score], float("nan"), baseline.draws)
            for split, scores in baseline.scores.items()
            for score in SEARCH_SCORES
        }
        rows.append(SearchRow(baseline.name, method(baseline.name, baseline.dim), baseline.bytes, False, found))
    return _sorted(rows)


def of_table(table: AblationTable) -> list[SearchRow]:
    """The rows of each compressor's best alpha and what it is compared with, the largest vectors first."""
    rows = []
    for name, family in table.families().items():
        best = max(family, key=lambda row: row.scores[CHOSEN_BY].mean)
        alpha = f"{name}, alpha {best.recipe.alpha:g}"
        precision, dim, group = best.recipe.precision, best.recipe.dim, f"{OURS} {best.recipe.architecture}"
        rows += [_ours(alpha, group, precision, kept, dim, _at(best, kept)) for kept in _kept_as(precision)]
    return _sorted([*rows, *map(_baseline, table.baselines)])


def _kept_as(precision: str) -> Sequence[str]:
    """What vectors are kept as: those trained in floats in fewer bits too, the others as they were trained."""
    return PRECISIONS if precision == "float32" else (precision,)


def _ours(name: str, group: str, precision: str, kept_as: str, dim: int, scores: Mapping[str, Spread]) -> SearchRow:
    if precision == "float32":
        return SearchRow(f"{name}, {kept_as}", f"{group}, {kept_as}", bytes_a_vector(kept_as, dim), True, scores)
    return SearchRow(name, f"{group} as codes, {precision}", bytes_a_vector(kept_as, dim), True, scores)


def _at(row: Row, kept_as: str) -> dict[str, Spread]:
    names = [(split, score) for split in SPLITS for score in SEARCH_SCORES]
    recorded = "float32" if kept_as == row.recipe.precision else kept_as  # a training's own precision has no suffix
    return {metric_name(*name): row.scores[metric_name(*name, recorded)] for name in names}


def _baseline(row: BaselineRow) -> SearchRow:
    return SearchRow(row.name, row.method, row.bytes, False, row.scores)


def _sorted(rows: Iterable[SearchRow]) -> list[SearchRow]:
    return sorted((row for row in rows if _known(row)), key=lambda row: -row.bytes)


def _known(row: SearchRow) -> bool:
    """Whether there is anything to show: runs from before search was measured have nothing at int8 and binary."""
    return any(np.isfinite(spread.mean) for spread in row.scores.values())


def header(splits: Iterable[str]) -> list[str]:
    """What `cells` puts side by side."""
    return ["stored as", "bytes", *(f"{split} {name}" for split in splits for name in NAMES.values())]


def cells(rows: Sequence[SearchRow], splits: Iterable[str]) -> list[list[str]]:
    """The table as text, a list a row."""
    splits = list(splits)
    return [
        [row.name, f"{row.bytes:,}", *(_cell(row.scores.get(metric_name(s, n)), n) for s in splits for n in NAMES)]
        for row in rows
    ]


def _cell(spread: Spread | None, score: str) -> str:
    if spread is None or not np.isfinite(spread.mean):
        return ABSENT
    digits = 4 if score == "spearman" else 2
    deviation = f" ± {spread.deviation:.{digits}f}" if np.isfinite(spread.deviation) else ""
    return f"{spread.mean:.{digits}f}{deviation}"


def of_tables(tables: Sequence[AblationTable]) -> list[SearchRow]:
    """The rows of tables on the same data and encoder, whatever they were trained towards; the first's baselines."""
    rows = {row.name: row for table in reversed(tables) for row in of_table(table)}
    return _sorted(rows.values())


def picture(rows: Sequence[SearchRow]) -> Figure:
    """Quality against bytes a vector, on the last split that was looked at."""
    split = next(split for split in ("test", "dev", "train") if split in _measured(rows))
    methods = _methods(rows)
    qualities = ("spearman", "neighbours_kept", "recall_at_10")
    return quality_against_bytes(
        {
            name: (
                [row.bytes for row in members],
                {q: [_mean(row, metric_name(split, q)) for row in members] for q in qualities},
            )
            for name, members in methods.items()
        },
        OURS,
        {q: f"{NAMES[q]} on {split}" for q in qualities},
    )


def frontier(rows: Sequence[SearchRow]) -> Figure:
    """Spearman against the neighbours kept, a panel a split."""
    splits = [split for split in SPLITS if split in _measured(rows)]
    return similarity_against_neighbours(
        {
            split: {
                name: (
                    [row.bytes for row in members],
                    [_mean(row, metric_name(split, "neighbours_kept")) for row in members],
                    [_mean(row, metric_name(split, "spearman")) for row in members],
                )
                for name, members in _methods(rows).items()
            }
            for split in splits
        },
        OURS,
    )


def _measured(rows: Sequence[SearchRow]) -> set[str]:
    return {name.partition("/")[0] for row in rows for name, spread in row.scores.items() if np.isfinite(spread.mean)}


def _methods(rows: Sequence[SearchRow]) -> dict[str, list[SearchRow]]:
    """Rows that differ in size alone, ours first."""
    methods: dict[str, list[SearchRow]] = {}
    for row in sorted(rows, key=lambda row: (not row.ours, row.bytes)):
        methods.setdefault(row.method, []).append(row)
    return methods


def _mean(row: SearchRow, metric: str) -> float:
    spread = row.scores.get(metric)
    return spread.mean if spread else float("nan")
