"""Which baselines tables and figures show by default; table.csv, MLflow's baselines.json and `--verbose` have all."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isnan
from typing import Protocol, TypeVar

from twinsqueeze.recipe import FLOAT_QUERIES
from twinsqueeze.reporting.statistics import NO_VALUES, SeedStats

MAX_PER_SIZE = 3
ALWAYS_SHOWN = re.compile(r"uncompressed|PCA to \d+")


class ScoredRow(Protocol):
    """A row of a table."""

    @property
    def name(self) -> str:
        """Its name, which says whether queries are floats."""

    @property
    def bytes(self) -> int:
        """Bytes per vector."""

    @property
    def scores(self) -> Mapping[str, SeedStats]:
        """Scores by metric."""


RowT = TypeVar("RowT", bound=ScoredRow)


def strongest(baselines: Sequence[RowT], metric: str) -> list[RowT]:
    """The best three baselines of every size by a metric, uncompressed vectors and plain PCA, in the given order.

    Baselines with float queries and with stored queries are ranked apart.
    """

    def size(row: RowT) -> tuple[int, bool]:
        return row.bytes, FLOAT_QUERIES in row.name

    def quality(row: RowT) -> float:
        mean = row.scores.get(metric, NO_VALUES).mean
        return float("-inf") if isnan(mean) else mean

    shown = {row.name for row in baselines if ALWAYS_SHOWN.fullmatch(row.name)}
    for _, group in groupby(sorted(baselines, key=size), key=size):
        shown |= {row.name for row in sorted(group, key=quality, reverse=True)[:MAX_PER_SIZE]}
    return [row for row in baselines if row.name in shown]
