"""A run's result in a few sentences, and the baselines to compare it with."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from math import isnan

from twinsqueeze.recipe import FLOAT_QUERIES
from twinsqueeze.reporting.ablation_table import COLUMN_NAMES, metric_name
from twinsqueeze.reporting.search_table import SearchRow, VectorFormat

KINDS = {"float32": "floats", "product": "dimensions as product codes", "binary": "signs"}


def headline(vectors: VectorFormat, ours: SearchRow, rows: Sequence[SearchRow], splits: Sequence[str]) -> list[str]:
    """Sentences on the selection score of compressed vectors, row `ours`, beside the strongest baselines among `rows`.

    These are the best of the same size, and a smaller one if it is better. The first split decides which is best.
    """
    metric = metric_name(splits[0], ours.task.selection)
    rivals = [row for row in rows if not row.is_trained and FLOAT_QUERIES not in row.name]
    rivals.sort(key=lambda row: _mean(row, metric), reverse=True)
    original = [f" (uncompressed {_scores(row, splits, named=False)})" for row in rivals if row.name == "uncompressed"]
    size = f"{vectors.dim} {KINDS[vectors.precision]}, {ours.bytes:,} bytes"
    sentences = [f"{size}: {COLUMN_NAMES[ours.task.selection]} {_scores(ours, splits)}{''.join(original)}."]
    same = next((row for row in rivals if row.bytes == ours.bytes), None)
    smaller = next((row for row in rivals if row.bytes < ours.bytes), None)
    if same:
        sentences.append(f"The best baseline of this size, {_comparison(same, ours, splits)}.")
    if smaller and (not same or _mean(smaller, metric) > _mean(ours, metric)):
        comparison = _comparison(smaller, ours, splits, f" in {smaller.bytes:,} bytes")
        sentences.append(f"The best smaller one, {comparison}.")
    return sentences


def strongest_baselines(
    rows: Sequence[SearchRow], sizes: Sequence[int], metric: str, limit: int, *, float_queries: bool
) -> list[SearchRow]:
    """The uncompressed vectors and the `limit` - 1 baselines to compare with, in the order of `rows`.

    These are the best of each of the sizes and the best of other sizes up to the largest, then the second best of each,
    and so on. Baselines with float queries only if `float_queries`.
    """
    baselines = [row for row in rows if not row.is_trained and (float_queries or FLOAT_QUERIES not in row.name)]
    baselines.sort(key=lambda row: _mean(row, metric), reverse=True)
    groups = [[row for row in baselines if row.bytes == size] for size in sizes]
    groups.append([row for row in baselines if row.bytes < max(sizes) and row.bytes not in sizes])
    ranked = [row for row in chain.from_iterable(zip_longest(*groups)) if row]
    chosen = {row.name for row in ranked[: limit - 1]} | {"uncompressed"}
    return [row for row in rows if not row.is_trained and row.name in chosen]


def _mean(row: SearchRow, metric: str) -> float:
    mean = row.score(metric).mean
    return float("-inf") if isnan(mean) else mean


def _scores(row: SearchRow, splits: Sequence[str], *, named: bool = True) -> str:
    metrics = {split: metric_name(split, row.task.selection) for split in splits}
    return ", ".join(f"{split} " * named + row.score(metric).format() for split, metric in metrics.items())


def _comparison(row: SearchRow, ours: SearchRow, splits: Sequence[str], size: str = "") -> str:
    """Such as "PCA to 32, whitened, is better on dev and not better on test: 0.8187, 0.7582"."""
    metrics = {split: metric_name(split, ours.task.selection) for split in splits}
    better = [split for split, metric in metrics.items() if _mean(row, metric) > _mean(ours, metric)]
    outcomes = {"better": better, "not better": [split for split in splits if split not in better]}
    verdict = " and ".join(f"{outcome} on {' and '.join(names)}" for outcome, names in outcomes.items() if names)
    return f"{row.sizeless_name}, is {verdict}{size}: {_scores(row, splits, named=False)}"
