"""Figures of a training and its predictions, and the layout that all figures share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from twinsqueeze.reporting.ablation_table import COLUMN_NAMES, capitalized_name
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.text import escape_mathtext

STRONG, DARK, MEDIUM, LIGHT = "#D55E00", "#222222", "#777777", "#AAAAAA"
# Inches: a panel with its labels, the margins of the figure, the gaps between panels, and a line of the legend.
PANEL_WIDTH = 4.4
LEFT, RIGHT, TOP, BOTTOM = 0.8, 0.15, 0.35, 0.55
COLUMN_GAP = 0.75
LEGEND_LINE = 0.21
LEGEND_LETTER, LEGEND_KEY = 0.068, 0.6
# Height of titles as a share of the axes. Without it, matplotlib measures all artists to place them.
TITLE_Y = 1.0
MIN_LOSS = 1e-8  # smaller losses are drawn here: a loss of 0 has no logarithm
LABEL_BINS = 10
LOSS_NAMES = {
    "mse": "mean squared error", "pearson": "1 - Pearson correlation",
    "infonce": "InfoNCE (cross-entropy of the positive passage)", "none": "neighborhood loss (KL divergence)",
}  # fmt: skip

Style = Mapping[str, Any]  # of a line


# Of the splits of one compressor; the last that was measured matters most.
SPLIT_STYLES: Mapping[str, Style] = {
    "train": {"color": LIGHT, "ls": "-"},
    "dev": {"color": DARK, "ls": "--"},
    "test": {"color": STRONG, "ls": "-", "lw": 2},
}

# Of the curves of one training: the most important score, another one.
CURVE_STYLES: Sequence[Style] = ({"color": STRONG, "lw": 2}, {"color": DARK, "ls": "--"})


def plot_loss_curves(
    loss: FloatArray, clean_loss: FloatArray, dev: Mapping[str, FloatArray], loss_name: str = "mse"
) -> Figure:
    """Plot (T,) losses, NaN where they were not measured, beside (T,) scores on dev: of pairs, the correlations."""
    figure, (left, right) = panels(2)
    epochs = np.arange(1, len(loss) + 1)
    measured = np.isfinite(clean_loss)
    marker = "o" if len(loss) == 1 else None
    left.plot(epochs, loss, color=LIGHT, marker=marker, label="train, noisy")
    left.plot(epochs[measured], clean_loss[measured], color=DARK, ls="--", marker=marker, label="train, clean")
    has_pairs = "pearson" in dev
    if has_pairs:
        dev_loss = dev["mse"] if loss_name == "mse" else 1 - dev["pearson"]
        left.plot(epochs, dev_loss, color=STRONG, lw=2, marker=marker, label="dev")
    left.set(yscale="log", ylabel="loss")
    left.set_title(f"Loss: {LOSS_NAMES[loss_name]}", y=TITLE_Y)
    set_log_ticks(left.yaxis)
    scores = ("spearman", "pearson") if has_pairs else tuple(dev)
    for score, style in zip(scores, CURVE_STYLES, strict=False):
        right.plot(epochs, dev[score], marker=marker, label=COLUMN_NAMES[score], **style)
    right.set(ylabel="correlation" if has_pairs else COLUMN_NAMES[scores[0]])
    right.set_title(f"{'Correlation' if has_pairs else capitalized_name(scores[0])} on dev", y=TITLE_Y)
    for axes in (left, right):
        set_epoch_axis(axes)
        axes.legend(frameon=False)
    return figure


def plot_predictions(
    plots: Mapping[str, Mapping[str, tuple[FloatArray, FloatArray]]],
    xlabel: str,
    styles: Mapping[str, Style],
    banded: Sequence[str],
) -> Figure:
    """Plot the mean of (P,) predicted cosines by bin of the (P,) labels from 0 to 1.

    Pairs of labels and cosines are by title of the panel and name of the series. Series in `banded` have a band from
    the 10th to the 90th percentile.
    """
    names = [*styles, "label"]
    figure, axes_list = panels(len(plots), legend=names)
    for axes, (title, series) in zip(axes_list, plots.items(), strict=True):
        for name, (labels, predicted) in series.items():
            bins = np.minimum((np.asarray(labels) * LABEL_BINS).astype(int), LABEL_BINS - 1)
            groups = [bins == i for i in np.unique(bins)]
            x = [labels[group].mean() for group in groups]
            if name in banded:
                band = np.array([np.quantile(predicted[group], [0.1, 0.9]) for group in groups]).T
                axes.fill_between(x, *band, color=styles[name]["color"], alpha=0.15, lw=0)
            axes.plot(x, [predicted[group].mean() for group in groups], label=name, **styles[name])
        axes.plot([0, 1], [0, 1], color=DARK, lw=0.8, ls=":", label="label")
        axes.set_title(title, y=TITLE_Y)
        axes.set(xlabel=xlabel, ylabel="predicted cosine", xlim=(-0.02, 1.02))
    share_y(axes_list)
    draw_legend(figure, names)
    return figure


def plot_pair_losses(plots: Mapping[str, Mapping[str, FloatArray]], styles: Mapping[str, Style]) -> Figure:
    """Plot distributions of (P,) squared errors on a log scale, by title of the panel and name of the series.

    A dot on each line marks the mean.
    """
    figure, axes_list = panels(len(plots), legend=list(styles))
    largest = max(float(values.max()) for series in plots.values() for values in series.values())
    edges = np.geomspace(MIN_LOSS, max(largest, 10 * MIN_LOSS), 31)
    centers = np.sqrt(edges[1:] * edges[:-1])
    for axes, (title, series) in zip(axes_list, plots.items(), strict=True):
        for name, values in series.items():
            share = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
            axes.plot(centers, share, label=name, **styles[name])
            mean = max(float(values.mean()), MIN_LOSS)
            axes.plot(mean, np.interp(np.log(mean), np.log(centers), share), "o", ms=6, color=styles[name]["color"])
        axes.set_title(title, y=TITLE_Y)
        axes.set(xscale="log", xlabel="squared error of a pair (dot: mean)", ylabel="share of pairs")
        set_log_ticks(axes.xaxis, LogLocator(numticks=6))
    share_y(axes_list)
    draw_legend(figure, list(styles))
    return figure


def plot_run_predictions(predictions: Mapping[str, tuple[FloatArray, FloatArray]], label_transform: str) -> Figure:
    """Plot predicted cosines by bin of the label for one compressor, from labels and cosines (P,) by split."""
    series = "mean; band: 10% to 90% of the pairs"
    plots = {
        f"Predicted cosine on {split} ({len(pair[0]):,} pairs)": {series: pair} for split, pair in predictions.items()
    }
    return plot_predictions(
        plots,
        f"label ({label_transform} of the human score)",
        {series: {"color": STRONG, "lw": 2, "marker": "o"}},
        [series],
    )


def plot_run_losses(losses: Mapping[str, FloatArray]) -> Figure:
    """Plot the distributions of the (P,) squared errors of one compressor by split."""
    named = {split: f"{split}: mean {values.mean():.4f}" for split, values in losses.items()}
    plot = {named[split]: values for split, values in losses.items()}
    styles = {name: SPLIT_STYLES[split] for split, name in named.items()}
    return plot_pair_losses({"Squared errors of pairs": plot}, styles)


def set_epoch_axis(axes: Axes) -> None:
    """Set whole epochs on the x axis."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def share_y(axes_list: Sequence[Axes]) -> None:
    """Give all panels the y axis that fits all of them."""
    low, high = zip(*(axes.get_ylim() for axes in axes_list), strict=True)
    for axes in axes_list:
        axes.set_ylim(min(low), max(high))


def set_log_ticks(axis: Axis, locator: LogLocator | None = None, labels: str = "{x:g}") -> None:
    """Set plain-text ticks: matplotlib's own are mathtext, which is slow to parse."""
    axis.set_major_locator(locator or LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(labels)


def panels(count: int, *, height: float = 3.8, legend: Sequence[str] = ()) -> tuple[Figure, list[Axes]]:
    """A figure of a row of panels of `height` inches, with room for the names of a legend below."""
    width = max(6.0, PANEL_WIDTH * count)
    below = LEGEND_LINE * -(-len(legend) // _legend_columns(legend, width))
    total = height + below
    figure = Figure(figsize=(width, total), dpi=110)
    # Margins are fixed, since matplotlib's constrained layout doubles the time.
    figure.subplots_adjust(
        left=LEFT / width, right=1 - RIGHT / width, bottom=(BOTTOM + below) / total, top=1 - TOP / total,
        wspace=COLUMN_GAP * count / (width - LEFT - RIGHT - COLUMN_GAP * (count - 1)),
    )  # fmt: skip
    row = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, row


def draw_legend(figure: Figure, names: Sequence[str]) -> None:
    """Draw a legend of all panels below them, in the order of `names`."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = {escape_mathtext(name): handles[name] for name in names if name in handles}
    columns = _legend_columns(list(shown), figure.get_figwidth())
    style = {"frameon": False, "fontsize": "small", "handlelength": 3}
    figure.legend(shown.values(), shown, loc="lower center", ncols=columns, **style)


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Columns of a legend that fit into a width in inches, with rows of about the same length."""
    longest = max(map(len, names), default=0)
    fitting = max(int(width / (LEGEND_LETTER * longest + LEGEND_KEY)), 1)
    rows = max(-(-len(names) // fitting), 1)
    return max(-(-len(names) // rows), 1)
