"""Figures that compare methods by their scores and bytes per vector."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

from twinsqueeze.reporting.ablation_table import COLUMN_NAMES
from twinsqueeze.reporting.run_plots import (
    DARK,
    LIGHT,
    MEDIUM,
    STRONG,
    TITLE_Y,
    Style,
    draw_legend,
    panels,
    set_log_ticks,
    share_y,
)
from twinsqueeze.types import FloatArray

EQUAL_SCORES = 0.005  # scores that differ by less are drawn as equally good
TRAINED = "trained"  # names of trained methods begin with this word


# Quantizers with fixed centroids, most of them of randomly rotated vectors.
ROTATED = ("rotated signs", "signs of", "TurboQuant", "RaBitQ")


class Series(NamedTuple):
    """A line of the figures that compare methods."""

    methods: tuple[str, ...]  # the beginnings of its methods' names
    style: Style
    label_offset: tuple[float, float]  # of the bytes beside its points, in points


# Every figure that compares methods draws these, as far as they were measured.
SERIES = {
    "TwinSqueeze": Series((TRAINED,), {"color": STRONG, "marker": "o", "ls": "-", "lw": 2, "zorder": 3}, (5, -3)),
    "PRQ": Series(("PRQ",), {"color": DARK, "marker": "v", "ls": "-"}, (5, -3)),
    "OPQ+PQ": Series(("FAISS OPQ+PQ", "OPQ+PQ", "Dense"), {"color": DARK, "marker": "D", "ls": "--"}, (5, -3)),
    "signs, TurboQuant": Series(ROTATED, {"color": MEDIUM, "marker": "^", "ls": ":"}, (-4, -11)),
    "PCA": Series(("PCA",), {"color": LIGHT, "marker": "s", "ls": "-"}, (3, -11)),
    "uncompressed": Series(("uncompressed",), {"color": DARK, "marker": "*", "ls": "-."}, (-6, 6)),
}


def find_series(method: str) -> str | None:
    """Return the label of the series that draws a method, or None if no figure does."""
    return next((label for label, series in SERIES.items() if method.startswith(series.methods)), None)


class MethodPoints(NamedTuple):
    """Bytes per vector of a series' N points, and N scores by metric, such as "test/spearman"."""

    bytes: Sequence[int]
    scores: Mapping[str, Sequence[float]]

    def size_front(self, metric: str) -> list[int]:
        """The point with the highest score of every size, by rising size, without sizes worse than smaller ones."""
        scores = np.nan_to_num(self.scores[metric], nan=-np.inf)
        front: list[int] = []
        for _, size in groupby(np.argsort(self.bytes, kind="stable").tolist(), key=lambda i: self.bytes[i]):
            best = max(size, key=lambda i: scores[i])
            if all(scores[best] >= scores[i] - EQUAL_SCORES for i in front):
                front.append(best)
        return front


def pareto_front(points: FloatArray) -> list[int]:
    """Return the rows of (N, K) points that no other row exceeds in one column and equals or exceeds in the others."""
    finite = np.flatnonzero(np.isfinite(points).all(axis=1))
    return [
        int(i)
        for i in finite
        if not any((points[j] >= points[i]).all() and (points[j] > points[i]).any() for j in finite)
    ]


def plot_quality_vs_bytes(methods: Mapping[str, MethodPoints], titles: Mapping[str, str], selected_on: str) -> Figure:
    """Plot scores against bytes per vector, a line per series and a panel per metric, whose titles are by metric.

    Lines join the best points of every size on the split `selected_on`, without sizes that are worse than a smaller
    one; the others are dots.
    """
    figure, axes_list = panels(len(titles), legend=list(methods))
    for axes, (metric, title) in zip(axes_list, titles.items(), strict=True):
        selection_metric = f"{selected_on}/{metric.rpartition('/')[2]}"
        for label, points in methods.items():
            xy = np.column_stack([points.bytes, points.scores[metric]])
            _plot_series(axes, label, xy, [points.size_front(selection_metric)])
        axes.set_title(title, y=TITLE_Y)
        axes.set_xlabel("bytes per vector")
        axes.set_xscale("log", base=2)
        set_log_ticks(axes.xaxis, LogLocator(base=4, numticks=12), "{x:,.0f}")
    draw_legend(figure, list(methods))
    return figure


def plot_score_vs_neighbor_recall(
    methods: Mapping[str, MethodPoints], score: str, splits: Sequence[str], selected_on: str
) -> Figure:
    """Plot a score against neighbor recall, a panel per split, with bytes per vector beside the ends of lines.

    Lines join the points that none of their size or less exceeds in both scores on the split `selected_on`: for
    trained compressors a line for every size if a size has several, and otherwise one line from size to size. A label
    that would cover another one is left out.
    """
    figure, axes_list = panels(len(splits), height=4.2, legend=list(methods))
    labels: list[Annotation] = []
    for axes, split in zip(axes_list, splits, strict=True):
        for label, points in methods.items():
            xy = np.column_stack([points.scores[f"{split}/{name}"] for name in ("neighbor_recall", score)])
            lines = _trade_offs(points, score, selected_on, by_size=label == "TwinSqueeze")
            _plot_series(axes, label, xy, lines)
            ends = {points.bytes[i]: i for line in filter(None, lines) for i in (line[0], line[-1])}
            labels += [
                axes.annotate(
                    f"{size:,}", xy[end], xytext=SERIES[label].label_offset, textcoords="offset points", fontsize=7,
                    color=SERIES[label].style["color"], zorder=4,
                )
                for size, end in sorted(ends.items(), reverse=True)
            ]  # fmt: skip
        axes.margins(x=0.1)
        axes.set(xlabel="neighbor recall (ten nearest)", ylabel=COLUMN_NAMES[score])
        axes.set_title(f"{COLUMN_NAMES[score]} and neighbor recall on {split}", y=TITLE_Y)
    share_y(axes_list)
    draw_legend(figure, list(methods))
    _hide_overlapping(figure, labels)
    return figure


def _hide_overlapping(figure: Figure, labels: Sequence[Annotation]) -> None:
    """Hide every label that would cover one before it."""
    figure.draw_without_rendering()
    visible: list[Bbox] = []
    for label in labels:
        box = label.get_window_extent()
        label.set_visible(not any(box.overlaps(other) for other in visible))
        if label.get_visible():
            visible.append(box)


def _trade_offs(points: MethodPoints, score: str, split: str, *, by_size: bool) -> list[list[int]]:
    """Lines through the points that none of their size or less exceeds in a score and neighbor recall.

    `by_size`: a line for every size, by rising neighbor recall, if a size has several points. Otherwise one line joins
    the points with the highest score of their size.
    """
    scores = np.column_stack([points.scores[f"{split}/{name}"] for name in ("neighbor_recall", score)])
    front = pareto_front(np.column_stack([scores, -np.asarray(points.bytes)]))
    front.sort(key=lambda i: (points.bytes[i], scores[i, 0]))
    lines = [list(line) for _, line in groupby(front, key=lambda i: points.bytes[i])]
    return lines if by_size and len(lines) < len(front) else [[max(line, key=lambda i: scores[i, 1]) for line in lines]]


def _plot_series(axes: Axes, label: str, points: FloatArray, lines: Sequence[Sequence[int]]) -> None:
    """Plot (N, 2) points of a series: lines through some, and pale dots for the others."""
    style = {"ms": 5, "lw": 1.2, **SERIES[label].style}
    others = sorted(set(range(len(points))) - {i for line in lines for i in line})
    axes.plot(*points[others].T, ls="none", marker=".", ms=4, color=style["color"], alpha=0.35)
    for i, line in enumerate(lines):
        axes.plot(*points[list(line)].T, label="" if i else label, **style)
