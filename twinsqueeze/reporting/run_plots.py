"""Figures from arrays, and the layout that all figures share."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from twinsqueeze.recipe import FLOAT_QUERIES
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.text import escape_mathtext

# Okabe and Ito (2008): color-blind readers can tell these colors apart. Dashes and markers differ too.
BLUE, ORANGE, GREEN, VERMILION, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
BASELINE_COLORS = (GRAY, "#56B4E9", ORANGE, GREEN, "#CC79A7", "#8C510A", "#999933", "#332288")
TRAINED = "trained"  # names of trained methods begin with this word
TRAINED_COLORS = (VERMILION, BLUE, "#000000", "#C2185B")
PRECISION_MARKERS = {"float32": "o", "int8": "s", "product": "P", "binary": "^", "signs": "^"}
SERIES_STYLES = ((VERMILION, "--"), (BLUE, "-"))  # the first two series of a panel
# Inches: a panel with its labels, the margins of the figure, the gaps between panels, and a line of the legend.
PANEL_WIDTH = 4.4
LEFT, RIGHT, TOP, BOTTOM = 0.8, 0.15, 0.35, 0.55
COLUMN_GAP, ROW_GAP = 0.75, 0.9
LEGEND_LINE = 0.21
LEGEND_LETTER, LEGEND_KEY = 0.068, 0.5
# Height of titles as a share of the axes. Without it, matplotlib measures all artists to place them.
TITLE_Y = 1.0
MIN_LOSS = 1e-8  # smaller losses are drawn here: a loss of 0 has no logarithm


class MethodCurve(NamedTuple):
    """Bytes per vector of a method, in rising order, and the scores there by metric, such as "test/mrr"."""

    bytes: Sequence[int]
    scores: Mapping[str, Sequence[float]]


def plot_loss_curves(
    loss: FloatArray, clean_loss: FloatArray, dev: Mapping[str, FloatArray], loss_name: str = "mse"
) -> Figure:
    """Plot (T,) losses, NaN where they were not measured, beside the (T,) correlations on dev."""
    figure, (left, right) = panels(2)
    epochs = np.arange(1, len(loss) + 1)
    measured = np.isfinite(clean_loss)
    marker = "o" if len(loss) == 1 else None
    left.plot(epochs, loss, color=BLUE, marker=marker, label="train, noisy")
    left.plot(epochs[measured], clean_loss[measured], color=GREEN, ls=":", marker=marker, label="train, clean")
    dev_loss = dev["mse"] if loss_name == "mse" else 1 - dev["pearson"]
    left.plot(epochs, dev_loss, color=ORANGE, ls="--", marker=marker, label="dev")
    label = "mean squared error" if loss_name == "mse" else "1 - Pearson correlation"
    left.set(xlabel="epoch", ylabel=label, yscale="log")
    set_log_ticks(left.yaxis)
    right.plot(epochs, dev["spearman"], color=ORANGE, ls="--", marker=marker, label="Spearman")
    right.plot(epochs, dev["pearson"], color=GRAY, ls="-.", marker=marker, label="Pearson")
    right.set(xlabel="epoch", ylabel="correlation on dev")
    for axes in (left, right):
        axes.legend(frameon=False)
    return figure


def plot_predictions(
    plots: Mapping[str, Mapping[str, tuple[FloatArray, FloatArray]]], xlabel: str, columns: int | None = None
) -> Figure:
    """Plot (P,) predicted cosines against (P,) labels from 0 to 1, by title of the panel and name of the series."""
    figure, axes_list = panels(len(plots), columns=columns)
    low = min(-0.05, *(float(np.min(predicted)) for series in plots.values() for _, predicted in series.values()))
    for axes, (title, series) in zip(axes_list, plots.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=GRAY, lw=1)
        for (name, (labels, predicted)), (color, _) in zip(series.items(), SERIES_STYLES[-len(series) :], strict=True):
            axes.scatter(labels, predicted, s=8, alpha=0.4, lw=0, color=color, label=name, rasterized=True)
        axes.set_title(title, y=TITLE_Y)
        axes.set(xlabel=xlabel, ylabel="predicted cosine", xlim=(-0.02, 1.02), ylim=(low, 1.05))
        if len(series) > 1:
            axes.legend(loc="lower right", frameon=False, fontsize="small")
    return figure


def plot_pair_losses(plots: Mapping[str, Mapping[str, FloatArray]], columns: int | None = None) -> Figure:
    """Plot histograms of (P,) squared errors on a log scale, by title of the panel and name of the series."""
    figure, axes_list = panels(len(plots), columns=columns)
    largest = max(float(values.max()) for series in plots.values() for values in series.values())
    bins = np.geomspace(MIN_LOSS, max(largest, 10 * MIN_LOSS), 60).tolist()
    for axes, (title, series) in zip(axes_list, plots.items(), strict=True):
        for (name, values), (color, dash) in zip(series.items(), SERIES_STYLES[-len(series) :], strict=True):
            label = f"{name}: mean {values.mean():.4f}, median {np.median(values):.4f}"
            shown, weights = np.maximum(values, MIN_LOSS), np.full(len(values), 1 / len(values))
            axes.hist(shown, bins=bins, weights=weights, histtype="step", color=color, ls=dash, lw=1.5, label=label)
        axes.set_title(title, y=TITLE_Y)
        axes.set(xscale="log", xlabel="squared error of a pair", ylabel="share of pairs")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        set_log_ticks(axes.xaxis, LogLocator(numticks=6))
        axes.legend(loc="upper left", frameon=False, fontsize="small")
    return figure


def plot_quality_vs_bytes(methods: Mapping[str, MethodCurve], titles: Mapping[str, str]) -> Figure:
    """Plot scores against bytes per vector, a line per method and a panel per metric, whose titles are by metric."""
    figure, axes_list = panels(len(titles), legend=list(methods))
    styles = _method_styles(methods)
    for axes, (metric, title) in zip(axes_list, titles.items(), strict=True):
        for name, (sizes, scores) in methods.items():
            axes.plot(sizes, scores[metric], lw=1.2, label=escape_mathtext(name), **styles[name])
        axes.set_title(title, y=TITLE_Y)
        axes.set(xlabel="bytes per vector")
        axes.set_xscale("log", base=2)
        set_log_ticks(axes.xaxis, LogLocator(base=2, numticks=12), "{x:,.0f}")
        axes.tick_params("x", labelsize="x-small")
    draw_legend(figure)
    return figure


def plot_spearman_vs_neighbor_recall(methods: Mapping[str, MethodCurve], splits: Sequence[str]) -> Figure:
    """Plot Spearman against neighbor recall, labeled by bytes per vector; a second row enlarges the upper right."""
    figure, axes_list = panels(2 * len(splits), columns=len(splits), height=5.4, legend=list(methods))
    styles = _method_styles(methods)
    for whole, enlarged, split in zip(axes_list, axes_list[len(splits) :], splits, strict=False):
        curves = {
            name: np.array([curve.scores[f"{split}/neighbor_recall"], curve.scores[f"{split}/spearman"]])
            for name, curve in methods.items()
        }
        left, bottom = _zoom_limits(np.hstack(list(curves.values())))
        for name, points in curves.items():
            for axes in (whole, enlarged):
                axes.plot(*points, lw=0.8, label=escape_mathtext(name), **styles[name])
            sizes = methods[name].bytes
            for i, (size, (x, y)) in enumerate(zip(sizes, points.T, strict=True)):
                zoomed = x >= left and y >= bottom
                # Outside the enlarged part, only the ends of a baseline's line are labeled.
                if np.isfinite((x, y)).all() and (zoomed or name.startswith(TRAINED) or i in {0, len(sizes) - 1}):
                    _label_point(enlarged if zoomed else whole, (x, y), f"{size:,}", styles[name]["color"])
        enlarged.set_xlim(left=left)
        enlarged.set_ylim(bottom=bottom)
        for axes, title in ((whole, split), (enlarged, f"{split}, upper right enlarged")):
            axes.set(title=title, xlabel="neighbor recall (ten nearest)", ylabel="Spearman")
    draw_legend(figure)
    return figure


def _zoom_limits(points: FloatArray) -> tuple[float, float]:
    """Left and bottom of the enlarged part: the first quartile of neighbor recall and the median of Spearman."""
    x, y = points[:, np.isfinite(points).all(axis=0)]
    return (float(np.quantile(x, 0.25)), float(np.quantile(y, 0.5))) if len(x) else (0.0, 0.0)


def _label_point(axes: Axes, point: tuple[float, float], text: str, color: str) -> None:
    axes.annotate(text, point, xytext=(5, 4), textcoords="offset points", fontsize=6, color=color, zorder=4)


def _method_styles(methods: Mapping[str, MethodCurve]) -> dict[str, dict[str, Any]]:
    """Line styles by method: a color per family, such as "PCA" of "PCA, int8", and a marker per precision."""
    families = dict.fromkeys(_split_precision(name)[0] for name in methods)
    trained, baselines = cycle(TRAINED_COLORS), cycle(BASELINE_COLORS)
    colors = {name: next(trained if name.startswith(TRAINED) else baselines) for name in families}
    styles = {}
    for name, (sizes, _) in methods.items():
        family, precision = _split_precision(name)
        is_trained = name.startswith(TRAINED)
        is_open = name.endswith(FLOAT_QUERIES) or (precision == "int8" and not is_trained)
        styles[name] = {
            "color": colors[family],
            "marker": PRECISION_MARKERS.get(precision, "D"),
            "markersize": 8 if is_trained else 5,
            "zorder": 3 if is_trained else 2,
            "markerfacecolor": "white" if is_open else colors[family],
            "linestyle": "-" if len(set(sizes)) == len(sizes) else "none",  # points of equal size are not joined
        }
    return styles


def _split_precision(method: str) -> tuple[str, str]:
    """Family and precision of a method, such as "PCA" and "int8" of "PCA, int8"; float32 if the name has none."""
    method = method.removesuffix(f", {FLOAT_QUERIES}")
    family, _, last = method.rpartition(", ")
    return (family, last) if last in PRECISION_MARKERS else (method, "PQ" if "PQ" in method else "float32")


def set_log_ticks(axis: Axis, locator: LogLocator | None = None, labels: str = "{x:g}") -> None:
    """Set plain-text ticks: matplotlib's own are mathtext, which is slow to parse."""
    axis.set_major_locator(locator or LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(labels)


def panels(
    count: int, *, columns: int | None = None, height: float = 3.8, legend: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """A figure of panels in rows of `height` inches, with room for the names of a legend below."""
    columns = min(count, columns or count)
    rows = -(-count // columns)
    width = max(6.0, PANEL_WIDTH * columns)
    below = LEGEND_LINE * -(-len(legend) // _legend_columns(legend, width))
    total = height * rows + below
    figure = Figure(figsize=(width, total), dpi=110)
    panel_width = (width - LEFT - RIGHT - COLUMN_GAP * (columns - 1)) / columns
    panel_height = (total - TOP - BOTTOM - below - ROW_GAP * (rows - 1)) / rows
    # Margins are fixed, since matplotlib's constrained layout doubles the time.
    figure.subplots_adjust(
        left=LEFT / width, right=1 - RIGHT / width, bottom=(BOTTOM + below) / total, top=1 - TOP / total,
        wspace=COLUMN_GAP / panel_width, hspace=ROW_GAP / panel_height,
    )  # fmt: skip
    grid = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, grid


def draw_legend(figure: Figure) -> None:
    """Draw the legend of the first panel below all panels."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    columns = _legend_columns(names, figure.get_figwidth())
    figure.legend(handles, names, loc="lower center", ncols=columns, frameon=False, fontsize="small")


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Columns of a legend that fit into a width in inches."""
    longest = max(map(len, names), default=0)
    return min(max(len(names), 1), max(int(width / (LEGEND_LETTER * longest + LEGEND_KEY)), 1))
