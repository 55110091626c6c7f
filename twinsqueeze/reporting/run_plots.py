"""Figures of a run, from arrays.

Colors are those of Okabe and Ito (2008), which color-blind readers can tell apart; dashes and markers differ too.
"""

from collections.abc import Callable, Mapping, Sequence
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

BLUE, ORANGE, GREEN, VERMILION, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
SPLIT_STYLES = {"train": (BLUE, "-"), "dev": (ORANGE, "--"), "test": (VERMILION, "-.")}
# Names of trained methods begin with this word.
TRAINED = "trained"
TRAINED_COLORS = (VERMILION, BLUE, "#000000", "#C2185B")
BASELINE_COLORS = (GRAY, "#56B4E9", ORANGE, GREEN, "#CC79A7", "#8C510A", "#999933", "#332288")
PRECISION_MARKERS = {"float32": "o", "int8": "s", "product": "P", "binary": "^", "signs": "^"}
LEGEND_COLUMNS = 5
LEGEND_LINE = 0.21  # inches
# Height of titles as a share of the axes. Without it, matplotlib measures all artists to place them.
TITLE_Y = 1.0
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Smaller losses are drawn here: a loss of 0 has no logarithm.
MIN_LOSS = 1e-8


class MethodCurve(NamedTuple):
    """Bytes per vector of a method, in rising order, and the scores there by metric, such as "test/mrr"."""

    bytes: Sequence[int]
    scores: Mapping[str, Sequence[float]]


def plot_loss_curves(
    loss: FloatArray, clean_loss: FloatArray, dev: Mapping[str, FloatArray], loss_name: str = "mse"
) -> Figure:
    """Plot losses over epochs, and beside them the correlations on dev.

    Args:
        loss: (T,) train loss with noise.
        clean_loss: (T,) train loss without noise, NaN where it was not measured.
        dev: (T,) curves mse, pearson and spearman.
        loss_name: "mse", or "pearson" for 1 minus the correlation.
    """
    figure, (left, right) = _fast_row(2)
    epochs = np.arange(1, len(loss) + 1)
    measured = np.isfinite(clean_loss)
    marker = "o" if len(loss) == 1 else None
    left.plot(epochs, loss, color=BLUE, marker=marker, label="train, noisy")
    left.plot(epochs[measured], clean_loss[measured], color=GREEN, ls=":", marker=marker, label="train, clean")
    dev_loss = dev["mse"] if loss_name == "mse" else 1 - dev["pearson"]
    left.plot(epochs, dev_loss, color=ORANGE, ls="--", marker=marker, label="dev")
    label = "mean squared error" if loss_name == "mse" else "1 - Pearson correlation"
    left.set(xlabel="epoch", ylabel=label, yscale="log")
    _set_log_ticks(left.yaxis, LogLocator(subs=(1, 2, 5)), "{x:g}")
    left.legend(frameon=False)
    right.plot(epochs, dev["spearman"], color=ORANGE, ls="--", marker=marker, label="Spearman")
    right.plot(epochs, dev["pearson"], color=GRAY, ls="-.", marker=marker, label="Pearson")
    right.set(xlabel="epoch", ylabel="correlation on dev")
    right.legend(frameon=False)
    return figure


def plot_predictions(
    labels: Mapping[str, FloatArray], predicted: Mapping[str, FloatArray], label_transform: str
) -> Figure:
    """Plot each pair's predicted cosine against its label, a panel per split, with the diagonal.

    Args:
        labels: (P,) labels of each split, 0 to 1.
        predicted: (P,) cosines of each split.
        label_transform: Transform from scores to labels, such as "tanh".
    """
    figure, axes_list = _fast_row(len(labels))
    low = min(-0.05, *(float(np.min(values)) for values in predicted.values()))
    for axes, split in zip(axes_list, labels, strict=True):
        color, _ = SPLIT_STYLES[split]
        axes.plot([0, 1], [0, 1], color=GRAY, lw=1)
        axes.scatter(labels[split], predicted[split], s=8, alpha=0.35, lw=0, color=color, rasterized=True)
        axes.set_title(f"{split}: {len(labels[split]):,} pairs", y=TITLE_Y)
        axes.set(xlabel=f"label ({label_transform} of the human score)", ylabel="predicted cosine")
        axes.set(xlim=(-0.02, 1.02), ylim=(low, 1.05))
    return figure


def plot_pair_losses(losses: Mapping[str, FloatArray]) -> Figure:
    """Plot histograms of the pairs' squared errors on a log scale.

    Args:
        losses: (P,) squared errors of each split.
    """
    figure, (axes,) = _fast_row(1)
    bins = loss_bins(list(losses.values()), 60)
    for split, values in losses.items():
        label = f"{split}: mean {values.mean():.4f}, median {np.median(values):.4f}"
        draw_loss_histogram(axes, values, bins, SPLIT_STYLES[split], label)
    axes.legend(frameon=False, loc="upper left")
    return figure


def loss_bins(losses: Sequence[FloatArray], count: int) -> list[float]:
    """Edges of logarithmic histogram bins for all losses."""
    largest = max(float(values.max()) for values in losses)
    edges: list[float] = np.geomspace(MIN_LOSS, max(largest, 10 * MIN_LOSS), count).tolist()
    return edges


def draw_loss_histogram(
    axes: Axes, losses: FloatArray, bins: Sequence[float], style: tuple[str, str], label: str
) -> None:
    """Draw the outline of a histogram of losses on a log scale; `style` is a color and a dash."""
    color, dash = style
    weights = np.full(len(losses), 1 / len(losses))
    values = np.maximum(losses, MIN_LOSS)
    axes.hist(values, bins=bins, weights=weights, histtype="step", color=color, ls=dash, lw=1.5, label=label)
    axes.set(xscale="log", xlabel="squared error of a pair", ylabel="share of pairs")
    _set_log_ticks(axes.xaxis, LogLocator(numticks=12), _format_power_of_ten)


def plot_quality_vs_bytes(methods: Mapping[str, MethodCurve], titles: Mapping[str, str]) -> Figure:
    """Plot scores against bytes per vector, a panel per metric and a line per method.

    Args:
        methods: Methods by name. Names that differ only in a last precision, such as "PCA, int8", share a color.
        titles: Titles of the panels by metric.
    """
    columns = min(len(methods), LEGEND_COLUMNS)
    figure, axes_list = _fast_row(len(titles), below=LEGEND_LINE * -(-len(methods) // columns))
    styles = _method_styles(methods)
    for axes, (metric, title) in zip(axes_list, titles.items(), strict=True):
        for name, (sizes, scores) in methods.items():
            axes.plot(sizes, scores[metric], lw=1.2, label=escape_mathtext(name), **styles[name])
        axes.set_title(title, y=TITLE_Y)
        axes.set(xlabel="bytes per vector")
        axes.set_xscale("log", base=2)
        _set_log_ticks(axes.xaxis, LogLocator(base=2, numticks=12), "{x:,.0f}")
        axes.tick_params("x", labelsize="x-small")
    handles, names = axes_list[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=columns, frameon=False, fontsize="small")
    return figure


def plot_spearman_vs_neighbor_recall(methods: Mapping[str, MethodCurve], splits: Sequence[str]) -> Figure:
    """Plot Spearman against neighbor recall, a column per split; the second row enlarges the upper right.

    Args:
        methods: Methods by name; numbers in the figure are their bytes per vector.
        splits: Splits to plot.
    """
    figure, axes_list = panels(2 * len(splits), columns=len(splits), height=5.4)
    styles = _method_styles(methods)
    for whole, enlarged, split in zip(axes_list, axes_list[len(splits) :], splits, strict=False):
        curves = {
            name: (curve.bytes, curve.scores[f"{split}/neighbor_recall"], curve.scores[f"{split}/spearman"])
            for name, curve in methods.items()
        }
        left, bottom = _zoom_limits([xy for _, x, y in curves.values() for xy in zip(x, y, strict=True)])
        for name, (sizes, x_values, y_values) in curves.items():
            for axes in (whole, enlarged):
                axes.plot(x_values, y_values, lw=0.8, label=escape_mathtext(name), **styles[name])
            for i, (size, x, y) in enumerate(zip(sizes, x_values, y_values, strict=True)):
                zoomed = x >= left and y >= bottom
                # Outside the enlarged part, only the ends of a baseline's line are labeled.
                if np.isfinite((x, y)).all() and (zoomed or name.startswith(TRAINED) or i in {0, len(sizes) - 1}):
                    (enlarged if zoomed else whole).annotate(
                        f"{size:,}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=6,
                        color=styles[name]["color"], zorder=4,
                    )  # fmt: skip
        enlarged.set_xlim(left=left)
        enlarged.set_ylim(bottom=bottom)
        for axes, title in ((whole, split), (enlarged, f"{split}, upper right enlarged")):
            axes.set(title=title, xlabel="neighbor recall (ten nearest)", ylabel="Spearman")
    handles, names = axes_list[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def _zoom_limits(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Left and bottom of the enlarged part: the first quartile of neighbor recall and the median of Spearman."""
    finite = np.array([point for point in points if np.isfinite(point).all()])
    if not len(finite):
        return 0.0, 0.0
    return float(np.quantile(finite[:, 0], 0.25)), float(np.quantile(finite[:, 1], 0.5))


def _set_log_ticks(axis: Axis, locator: LogLocator, labels: str | Callable[[float, float], str]) -> None:
    """Set plain-text ticks: matplotlib's own are mathtext, which is slow to parse."""
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(labels)


def _format_power_of_ten(value: float, _: float) -> str:
    return "10" + str(round(np.log10(value))).translate(SUPERSCRIPT)


def _method_styles(methods: Mapping[str, MethodCurve]) -> dict[str, dict[str, Any]]:
    """Line styles by method: a color per family, a marker per precision; trained methods are larger and in front.

    Markers are open for baselines at int8 and for float queries. Points of equal size are not joined.
    """
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
            "linestyle": "-" if len(set(sizes)) == len(sizes) else "none",
        }
    return styles


def _split_precision(method: str) -> tuple[str, str]:
    """Family and precision of a method, such as "PCA" and "int8" of "PCA, int8"; float32 if the name has none."""
    method = method.removesuffix(f", {FLOAT_QUERIES}")
    family, _, last = method.rpartition(", ")
    return (family, last) if last in PRECISION_MARKERS else (method, "PQ" if "PQ" in method else "float32")


def _fast_row(count: int, *, below: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A row of panels with fixed margins and `below` inches for a legend: constrained layout doubles the time."""
    width, height = max(6.0, 4.4 * count), 3.8 + below
    figure = Figure(figsize=(width, height), dpi=110)
    panel = (width - 0.8 - 0.15) / count - 0.75 * (count - 1) / count
    figure.subplots_adjust(
        left=0.8 / width, right=1 - 0.15 / width, bottom=(0.55 + below) / height, top=1 - 0.35 / height,
        wspace=0.75 / panel,
    )  # fmt: skip
    return figure, _add_axes(figure, 1, count, count)


def panels(count: int, *, columns: int | None = None, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of at most `columns`, each 4.4 by `height` inches."""
    columns = min(count, columns or count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.0, 4.4 * columns), height * rows), dpi=110, layout="constrained")
    return figure, _add_axes(figure, rows, columns, count)


def _add_axes(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    grid = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return grid
