"""Figures of an ablation, from arrays and statistics over seeds.

Alpha runs from dark to light in the colormap cividis, which color-blind readers and grayscale prints can order.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from twinsqueeze.reporting.run_plots import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    VERMILION,
    draw_loss_histogram,
    loss_bins,
    panels,
)
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.text import escape_mathtext

DASHES = ("-", "--", "-.", ":")
# Okabe and Ito's colors, in an order in which lines of the same dash differ clearly.
REFERENCE_COLORS = (GRAY, GREEN, ORANGE, VERMILION, "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SAMPLE_SIZE = 300
PANEL_WIDTH = 55  # letters of a legend
LEGEND_COLUMNS = 5
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": "small"}


def plot_train_losses(curves: Mapping[str, Mapping[float, pd.DataFrame]]) -> Figure:
    """Plot train losses over epochs: the mean of the seeds in a band from the lowest to the highest seed.

    Args:
        curves: By loss and alpha, a row per epoch and a column per seed.
    """
    figure, axes_list = panels(len(curves))
    for axes, (title, by_alpha) in zip(axes_list, curves.items(), strict=True):
        styles = zip(_alpha_colors(by_alpha), cycle(DASHES), strict=False)
        for (alpha, curve), (color, dash) in zip(by_alpha.items(), styles, strict=False):
            axes.fill_between(curve.index, curve.min(axis=1), curve.max(axis=1), color=color, alpha=0.2, lw=0)
            axes.plot(curve.index, curve.mean(axis=1), color=color, ls=dash, lw=1.3, label=f"alpha {alpha:g}")
        axes.set(title=f"train loss, {title}", xlabel="epoch", ylabel="loss", yscale="log")
    _add_legend_below(figure)
    return figure


def plot_spearman(
    hyperparameter: str,
    lines: Mapping[str, Mapping[float, Mapping[str, SeedStats]]],
    references: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Plot Spearman against a hyperparameter with 95% intervals, a panel per split.

    Args:
        hyperparameter: Name of the hyperparameter, such as "alpha".
        lines: By name and value of the hyperparameter, statistics by metric.
        references: By split and name, Spearman of baselines, drawn as horizontal lines.
    """
    figure, axes_list = panels(len(references))
    colors = (BLUE, VERMILION, *_alpha_colors(list(lines)[2:]))
    for axes, (split, levels) in zip(axes_list, references.items(), strict=True):
        for (name, points), color, marker in zip(lines.items(), colors, cycle(MARKERS), strict=False):
            y, errors = _error_bars([scores[f"{split}/spearman"] for scores in points.values()])
            label = escape_mathtext(name)
            axes.errorbar(list(points), y, errors, color=color, marker=marker, ms=4, capsize=3, label=label)
        for (name, value), color, dash in zip(levels.items(), cycle(REFERENCE_COLORS), cycle(DASHES), strict=False):
            axes.axhline(value, color=color, ls=dash, lw=1.1, label=escape_mathtext(name))
        axes.set(title=split, xlabel=hyperparameter, ylabel="Spearman")
        if hyperparameter == "dim":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:.0f}")
    _add_legend_below(figure)
    return figure


def plot_predictions(predictions: Mapping[float, pd.DataFrame]) -> Figure:
    """Plot predicted cosines against labels for a sample of pairs: each alpha beside the first, and all together.

    Args:
        predictions: By alpha, columns label and predicted of the same pairs.
    """
    base, *others = predictions
    sample = np.random.default_rng(0).permutation(len(predictions[base]))[:SAMPLE_SIZE]
    frames = {alpha: frame.iloc[sample] for alpha, frame in predictions.items()}
    low = min(-0.05, *(frame["predicted"].min() for frame in frames.values()))
    titles = [*(f"alpha {alpha:g} and {base:g}" for alpha in others), "all alphas"]
    styles = [[(base, VERMILION, "o"), (alpha, BLUE, "^")] for alpha in others]
    styles.append(list(zip(frames, _alpha_colors(frames), cycle(MARKERS), strict=False)))
    figure, axes_list = panels(len(titles), columns=3)
    for axes, title, style in zip(axes_list, titles, styles, strict=True):
        for alpha, color, marker in style:
            x, y, label = frames[alpha]["label"], frames[alpha]["predicted"], f"alpha {alpha:g}"
            axes.scatter(x, y, s=9, alpha=0.5, lw=0, color=color, marker=marker, label=label)
        axes.plot([0, 1], [0, 1], color=GRAY, lw=1)
        axes.set(title=title, xlabel="label", ylabel="predicted cosine", xlim=(-0.02, 1.02), ylim=(low, 1.05))
        axes.legend(loc="lower right", **LEGEND)
    return figure


def plot_pair_losses(losses: Mapping[float, Mapping[str, FloatArray]]) -> Figure:
    """Plot histograms of squared errors, a row per alpha and a column per split, each beside the first alpha.

    Args:
        losses: (P,) squared errors by alpha and split.
    """
    base, *others = losses
    splits = list(losses[base])
    figure, axes_list = panels(len(others) * len(splits), columns=len(splits), height=2.7)
    bins = loss_bins([values for by_split in losses.values() for values in by_split.values()], 50)
    for axes, (alpha, split) in zip(axes_list, ((a, s) for a in others for s in splits), strict=True):
        for shown, color, dash in ((base, VERMILION, "--"), (alpha, BLUE, "-")):
            values = losses[shown][split]
            draw_loss_histogram(axes, values, bins, (color, dash), f"alpha {shown:g}: mean {values.mean():.4f}")
        axes.set(title=f"{split}, alpha {alpha:g}", ylim=(0, 1.3 * axes.get_ylim()[1]))  # room for the legend
        axes.legend(loc="upper left", **LEGEND)
    return figure


def plot_scores_vs_train_losses(
    points: Mapping[float, Mapping[str, SeedStats]], losses: Mapping[str, str], scores: Mapping[str, str]
) -> Figure:
    """Plot scores against final train losses, a panel per pair and a point per alpha with 95% intervals.

    Args:
        points: By alpha, in rising order, statistics by metric.
        losses: Metrics of the columns by label.
        scores: Metrics of the rows by label.
    """
    figure, axes_list = panels(len(losses) * len(scores), columns=len(losses))
    cells = [(score, loss) for score in scores.items() for loss in losses.items()]
    for axes, ((score, score_metric), (loss, loss_metric)) in zip(axes_list, cells, strict=True):
        x, x_errors = _error_bars([stats[loss_metric] for stats in points.values()])
        y, y_errors = _error_bars([stats[score_metric] for stats in points.values()])
        axes.plot(x, y, color=GRAY, lw=0.8)
        for i, (alpha, color, marker) in enumerate(zip(points, _alpha_colors(points), cycle(MARKERS), strict=False)):
            errors, label = (y_errors[:, [i]], x_errors[:, [i]]), f"alpha {alpha:g}"
            axes.errorbar(x[i], y[i], *errors, color=color, marker=marker, ms=6, capsize=2, lw=1, label=label)
        axes.set(xlabel=f"final train loss, {loss}", ylabel=score, xscale="log")
        axes.tick_params(axis="x", which="both", labelsize="small", labelrotation=35)
    _add_legend_below(figure)
    return figure


def _error_bars(stats: Sequence[SeedStats]) -> tuple[FloatArray, FloatArray]:
    """(A,) means, and (2, A) lengths of the 95% intervals below and above them."""
    means = np.array([s.mean for s in stats])
    low, high = np.array([s.interval for s in stats]).T
    return means, np.stack([means - low, high - means])


def _alpha_colors(alphas: Iterable[object]) -> list[Any]:
    """Colors from dark to light; the lightest of cividis are not visible on white."""
    return [colormaps["cividis"](place) for place in np.linspace(0, 0.88, max(len(list(alphas)), 1))]


def _add_legend_below(figure: Figure) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    fitting = int(PANEL_WIDTH * len(figure.axes) / max(map(len, names)))
    columns = min(len(names), LEGEND_COLUMNS, max(fitting, 1))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, **LEGEND)
