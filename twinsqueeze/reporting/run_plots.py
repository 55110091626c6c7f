"""Figures from arrays. They know neither files nor MLflow.

Colours are those of Okabe and Ito (2008), told apart by the colour-blind; lines differ in dash as well, for print.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from twinsqueeze.recipe import FLOAT_QUERIES
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.text import escape_mathtext

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"


SPLIT_STYLES = {"train": (BLUE, "-"), "dev": (ORANGE, "--"), "test": (VERMILION, "-.")}
# Of what was trained, in the order in which it comes.
OUR_COLOURS = (VERMILION, BLUE, "#000000", "#C2185B")
# Of what needs no labels, in the order in which it comes.
OTHER_COLOURS = (GREY, "#56B4E9", ORANGE, GREEN, "#CC79A7", "#8C510A", "#999933", "#332288")
PRECISION_MARKERS = {"float32": "o", "int8": "s", "product": "P", "binary": "^", "signs": "^"}
LEGEND_COLUMNS = 5
LEGEND_LINE = 0.21  # inches
# Of titles, as a share of the panel's height: matplotlib would look for a place that nothing else takes.
TITLE = 1.0
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Losses below this are drawn at it: a pair predicted exactly has no logarithm.
SMALLEST_LOSS = 1e-8


def loss_curves(
    loss: FloatArray, clean_loss: FloatArray, dev: Mapping[str, FloatArray], objective: str = "mse"
) -> Figure:
    """Losses against epochs, and beside them the correlations on dev.

    Args:
        loss: (T,) noisy train loss.
        clean_loss: (T,) train loss without noise; NaN where it was not measured.
        dev: (T,) curves mse, pearson and spearman.
        objective: What the losses are: "mse", or "pearson" for 1 less the correlation.
    """
    figure, (left, right) = _row(2)
    epochs = np.arange(1, len(loss) + 1)
    measured = np.isfinite(clean_loss)
    marker = "o" if len(loss) == 1 else None
    left.plot(epochs, loss, color=BLUE, marker=marker, label="train, with noise")
    left.plot(epochs[measured], clean_loss[measured], color=GREEN, ls=":", marker=marker, label="train, clean")
    on_dev = dev["mse"] if objective == "mse" else 1 - dev["pearson"]
    left.plot(epochs, on_dev, color=ORANGE, ls="--", marker=marker, label="dev")
    name = "mean squared error" if objective == "mse" else "1 less Pearson's correlation"
    left.set(xlabel="epoch", ylabel=name, yscale="log")
    _log_ticks(left.yaxis, LogLocator(subs=(1, 2, 5)), "{x:g}")
    left.legend(frameon=False)
    right.plot(epochs, dev["spearman"], color=ORANGE, ls="--", marker=marker, label="Spearman")
    right.plot(epochs, dev["pearson"], color=GREY, ls="-.", marker=marker, label="Pearson")
    right.set(xlabel="epoch", ylabel="correlation on dev")
    right.legend(frameon=False)
    return figure


def predicted_against_label(
    labels: Mapping[str, FloatArray], predicted: Mapping[str, FloatArray], label_kind: str
) -> Figure:
    """Each pair's predicted cosine against its label, a panel a split, with the diagonal where they agree.

    Args:
        labels: (P,) labels of each split, 0 to 1.
        predicted: (P,) cosines of each split.
        label_kind: What the label is called on the axis, such as "tanh".
    """
    figure, axes_of = _row(len(labels))
    low = min(-0.05, *(float(np.min(values)) for values in predicted.values()))
    for axes, name in zip(axes_of, labels, strict=True):
        colour = SPLIT_STYLES[name][0]
        axes.plot([0, 1], [0, 1], color=GREY, lw=1)
        axes.scatter(labels[name], predicted[name], s=8, alpha=0.35, lw=0, color=colour, rasterized=True)
        axes.set_title(f"{name}: {len(labels[name]):,} pairs", y=TITLE)
        axes.set(
            xlabel=f"label ({label_kind} of the human score)",
            ylabel="predicted cosine",
            xlim=(-0.02, 1.02),
            ylim=(low, 1.05),
        )
    return figure


def pair_loss_distribution(losses: Mapping[str, FloatArray]) -> Figure:
    """How the pairs' squared errors are distributed, on a log scale, one outline a split.

    Args:
        losses: (P,) squared errors of each split.
    """
    figure, (axes,) = _row(1)
    largest = max(float(values.max()) for values in losses.values())
    bins = np.geomspace(SMALLEST_LOSS, max(largest, 10 * SMALLEST_LOSS), 60).tolist()
    for name, values in losses.items():
        colour, dash = SPLIT_STYLES[name]
        axes.hist(
            np.maximum(values, SMALLEST_LOSS),
            bins=bins,
            weights=np.full(len(values), 1 / len(values)),
            histtype="step",
            color=colour,
            ls=dash,
            lw=1.5,
            label=f"{name}: mean {values.mean():.4f}, median {np.median(values):.4f}",
        )
    axes.set(xscale="log", xlabel="squared error of a pair", ylabel="share of the pairs")
    _log_ticks(axes.xaxis, LogLocator(numticks=12), _power_of_ten)
    axes.legend(frameon=False, loc="upper left")
    return figure


def quality_against_bytes(
    methods: Mapping[str, tuple[Sequence[int], Mapping[str, Sequence[float]]]], ours: str, qualities: Mapping[str, str]
) -> Figure:
    """What is kept against the bytes of a vector, a panel a quality, a line a method from its fewest bytes to its most.

    Args:
        methods: By name the bytes of each of its sizes, in rising order, and each quality's values there. Methods whose
            names differ only in a last part, such as "PCA" and "PCA, int8", share a colour.
        ours: The name, without the last part, of what stands before all others, or how it begins.
        qualities: Titles of the panels by quality.
    """
    columns = min(len(methods), LEGEND_COLUMNS)
    figure, axes_of = _row(len(qualities), below=LEGEND_LINE * -(-len(methods) // columns))
    styles = _styles(methods, ours)
    for axes, (quality, title) in zip(axes_of, qualities.items(), strict=True):
        for name, (sizes, values) in methods.items():
            axes.plot(sizes, values[quality], ls=_line(sizes), lw=1.2, label=escape_mathtext(name), **styles[name])
        axes.set_title(title, y=TITLE)
        axes.set_xlabel("bytes a vector")
        axes.set_xscale("log", base=2)
        _log_ticks(axes.xaxis, LogLocator(base=2, numticks=12), "{x:,.0f}")
        axes.tick_params("x", labelsize="x-small")
    handles, names = axes_of[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=columns, frameon=False, fontsize="small")
    return figure


def plot_spearman_vs_neighbor_recall(
    methods: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float]]]], ours: str
) -> Figure:
    """Spearman against neighbor recall: both are better towards the upper right, which is drawn twice.

    The points worth a choice lie close together, so that a second row of panels has them alone, with all their sizes.

    Args:
        methods: By split and name the bytes of each of a method's sizes, in rising order, the neighbor recall there and
            Spearman there. Bytes stand beside the points; in the first row at the ends of lines.
        ours: As for `quality_against_bytes`.
    """
    figure, axes_of = panels(2 * len(methods), columns=len(methods), height=5.4)
    for axes, near, (split, of_split) in zip(axes_of, axes_of[len(methods) :], methods.items(), strict=False):
        styles = _styles(of_split, ours)
        corner = _zoom_limits(of_split.values())
        for name, (sizes, kept, spearman) in of_split.items():
            ends = {0, len(sizes) - 1}
            for panel in (axes, near):
                panel.plot(kept, spearman, ls=_line(sizes), lw=0.8, label=escape_mathtext(name), **styles[name])
            for i, (size, x, y) in enumerate(zip(sizes, kept, spearman, strict=True)):
                in_corner = x >= corner[0] and y >= corner[1]
                # Sizes between the ends of a line can be counted.
                if np.isfinite((x, y)).all() and (in_corner or name.startswith(ours) or i in ends):
                    (near if in_corner else axes).annotate(
                        f"{size:,}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=6,
                        color=styles[name]["color"], zorder=4,
                    )  # fmt: skip
        near.set_xlim(left=corner[0])
        near.set_ylim(bottom=corner[1])
        for panel, title in ((axes, split), (near, f"{split}, its upper right, larger")):
            panel.set(
                title=title, xlabel="neighbor recall (share of the ten nearest neighbors found)", ylabel="Spearman"
            )
    handles, names = axes_of[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def _zoom_limits(methods: Iterable[tuple[Sequence[int], Sequence[float], Sequence[float]]]) -> tuple[float, float]:
    """Where the upper right begins that is drawn again, 0 where there are no points.

    It has the better half of Spearman, and of the neighbours all but the worst quarter: what was trained on scores
    keeps fewer of them than what was not.
    """
    points = np.array([point for _, kept, spearman in methods for point in zip(kept, spearman, strict=True)])
    points = points.reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        return 0.0, 0.0
    return float(np.quantile(points[:, 0], 0.25)), float(np.quantile(points[:, 1], 0.5))


def _line(sizes: Sequence[int]) -> str:
    """How a method's points are joined: compressors of one size differ in something else, and are not."""
    return "-" if len(set(sizes)) == len(sizes) else "none"


def _log_ticks(axis: Axis, locator: LogLocator, labels: str | Callable[[float, float], str]) -> None:
    """Ticks of a logarithmic axis in plain text: matplotlib's own are mathematics, which it takes long to parse."""
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(labels)


def _power_of_ten(value: float, _: float) -> str:
    """10⁻³ of 0.001."""
    return "10" + str(round(np.log10(value))).translate(SUPERSCRIPT)


def _styles(methods: Iterable[str], ours: str) -> dict[str, dict[str, Any]]:
    """How each method's line is drawn: a colour a family, a marker a precision, and ours larger and above.

    Markers are open of vectors at int8 that need no labels, and where a method is searched with float queries.
    """
    families = dict.fromkeys(_family(name)[0] for name in methods)
    trained = [name for name in families if name.startswith(ours)]
    colours = dict(zip(trained, cycle(OUR_COLOURS), strict=False))
    colours |= dict(zip((name for name in families if name not in trained), cycle(OTHER_COLOURS), strict=False))
    styles = {}
    for name in methods:
        family, precision = _family(name)
        stands_out = family in trained
        is_open = name.endswith(FLOAT_QUERIES) or (precision == "int8" and not stands_out)
        styles[name] = {
            "color": colours[family],
            "marker": PRECISION_MARKERS.get(precision, "D"),
            "ms": 8 if stands_out else 5,
            "zorder": 3 if stands_out else 2,
            "mfc": "white" if is_open else colours[family],
        }
    return styles


def _family(method: str) -> tuple[str, str]:
    """A method's name without its precision and float queries, and the precision; float32 where the name has none."""
    method = method.removesuffix(f", {FLOAT_QUERIES}")
    family, _, last = method.rpartition(", ")
    return (family, last) if last in PRECISION_MARKERS else (method, "PQ" if "PQ" in method else "float32")


def _row(count: int, *, below: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A row of panels as of `panels`, with room for a legend of `below` inches.

    Margins are given in inches and not found from the texts: that takes as long as the drawing, and a grid draws these
    figures for every replica.
    """
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
