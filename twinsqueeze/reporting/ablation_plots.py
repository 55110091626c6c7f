"""Figures of an ablation, from arrays.

Alpha runs from dark to light in the colormap cividis, which color-blind readers and grayscale prints can order.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from twinsqueeze.reporting.run_plots import BLUE, GRAY, GREEN, MIN_LOSS, ORANGE, VERMILION, panels
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
LEGEND = {"frameon": False, "fontsize": "small"}


class SeedCurves(NamedTuple):
    """A metric over the epochs of several seeds.

    Attributes:
        epochs: (T,) epochs.
        values: (S, T) values, a row per seed.
    """

    epochs: FloatArray
    values: FloatArray


class Line(NamedTuple):
    """A line with error bars in every panel.

    Attributes:
        x: Values of a hyperparameter.
        y: Statistics over seeds at each of them, by split.
    """

    x: Sequence[float]
    y: Mapping[str, Sequence[SeedStats]]


def plot_train_losses(noisy: Mapping[float, SeedCurves], clean: Mapping[float, SeedCurves]) -> Figure:
    """Plots the train loss of every alpha: the mean of the seeds in a band from the lowest to the highest seed.

    Args:
        noisy: Losses with noise, by alpha.
        clean: Losses without noise, by alpha.
    """
    figure, axes_list = panels(2)
    for axes, curves, title in zip(axes_list, (noisy, clean), ("noisy", "clean"), strict=True):
        for (alpha, (epochs, values)), color, dash in zip(
            curves.items(), _alpha_colors(curves), cycle(DASHES), strict=False
        ):
            axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
            axes.plot(epochs, values.mean(0), color=color, ls=dash, lw=1.3, label=f"alpha {alpha:g}")
        axes.set(title=f"train loss, {title}", xlabel="epoch", ylabel="loss", yscale="log")
    _add_legend_below(figure)
    return figure


def plot_spearman(
    hyperparameter: str, lines: Mapping[str, Line], references: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Plots Spearman against a hyperparameter with 95% intervals, a panel per split.

    Args:
        hyperparameter: Name of the hyperparameter, such as "alpha".
        lines: Lines by name.
        references: By split, Spearman of baselines by name, drawn as horizontal lines.
    """
    figure, axes_list = panels(len(references))
    colors = (BLUE, VERMILION, *_alpha_colors(list(lines)[2:]))
    for axes, (split, levels) in zip(axes_list, references.items(), strict=True):
        for (name, line), color, marker in zip(lines.items(), colors, cycle(MARKERS), strict=False):
            means, errors = _error_bars(line.y[split])
            axes.errorbar(
                line.x, means, errors, color=color, marker=marker, ms=4, capsize=3, label=escape_mathtext(name)
            )
        for (name, value), color, dash in zip(levels.items(), cycle(REFERENCE_COLORS), cycle(DASHES), strict=False):
            axes.axhline(value, color=color, ls=dash, lw=1.1, label=escape_mathtext(name))
        axes.set(title=split, xlabel=hyperparameter, ylabel="Spearman")
        if hyperparameter == "dim":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:.0f}")
    _add_legend_below(figure)
    return figure


def plot_predictions(labels: FloatArray, predicted: Mapping[float, FloatArray]) -> Figure:
    """Plots predicted cosines of a sample of pairs against their labels: each alpha beside the first, and all together.

    Args:
        labels: (P,) labels, 0 to 1.
        predicted: (P,) cosines by alpha.
    """
    sample = np.random.default_rng(0).permutation(len(labels))[:SAMPLE_SIZE]
    base, *others = predicted
    figure, axes_list = panels(len(others) + 1, columns=3)
    for axes, alpha in zip(axes_list, others, strict=False):
        for shown, color, marker in ((base, VERMILION, "o"), (alpha, BLUE, "^")):
            axes.scatter(
                labels[sample], predicted[shown][sample], s=10, alpha=0.5, lw=0, color=color, marker=marker,
                label=f"alpha {shown:g}",
            )  # fmt: skip
        axes.legend(loc="lower right", **LEGEND)
        axes.set_title(f"alpha {alpha:g} and {base:g}")
    together = axes_list[-1]
    for (alpha, values), color, marker in zip(
        predicted.items(), _alpha_colors(predicted), cycle(MARKERS), strict=False
    ):
        together.scatter(
            labels[sample], values[sample], s=8, alpha=0.5, lw=0, color=color, marker=marker, label=f"{alpha:g}"
        )
    together.set_title("all alphas")
    together.legend(loc="lower right", ncols=2, title="alpha", **LEGEND)
    low = min(-0.05, *(float(values[sample].min()) for values in predicted.values()))
    for axes in axes_list:
        axes.plot([0, 1], [0, 1], color=GRAY, lw=1)
        axes.set(xlabel="label", ylabel="predicted cosine", xlim=(-0.02, 1.02), ylim=(low, 1.05))
    return figure


def plot_pair_losses(losses: Mapping[float, Mapping[str, FloatArray]]) -> Figure:
    """Plots histograms of squared errors on log scales, a row per alpha and a column per split, beside the first alpha.

    Args:
        losses: (P,) squared errors by alpha and split.
    """
    base, *others = losses
    splits = list(losses[base])
    figure, axes_list = panels(len(others) * len(splits), columns=len(splits), height=2.7)
    largest = max(float(values.max()) for by_split in losses.values() for values in by_split.values())
    bins = np.geomspace(MIN_LOSS, max(largest, 10 * MIN_LOSS), 50).tolist()
    for axes, (alpha, split) in zip(axes_list, ((a, s) for a in others for s in splits), strict=True):
        for shown, color, dash in ((base, VERMILION, "--"), (alpha, BLUE, "-")):
            values = losses[shown][split]
            axes.hist(
                np.maximum(values, MIN_LOSS), bins=bins, weights=np.full(len(values), 1 / len(values)),
                histtype="step", color=color, ls=dash, lw=1.4, label=f"alpha {shown:g}: mean {values.mean():.4f}",
            )  # fmt: skip
        axes.set(title=f"{split}, alpha {alpha:g}", xscale="log", xlabel="squared error of a pair")
        axes.set(ylabel="share of pairs", ylim=(0, 1.3 * axes.get_ylim()[1]))  # room for the legend
        axes.legend(loc="upper left", **LEGEND)
    return figure


def plot_scores_vs_train_losses(
    alphas: Sequence[float],
    losses: Mapping[str, Sequence[SeedStats]],
    scores: Mapping[str, Sequence[SeedStats]],
) -> Figure:
    """Plots each score against each final train loss, a point per alpha with 95% intervals.

    Args:
        alphas: (A,) values of alpha in rising order.
        losses: (A,) statistics of train losses by label.
        scores: (A,) statistics of scores by label.
    """
    figure, axes_list = panels(len(losses) * len(scores), columns=len(losses))
    cells = ((score, loss) for score in scores for loss in losses)
    for axes, (score, loss) in zip(axes_list, cells, strict=True):
        (x, x_errors), (y, y_errors) = _error_bars(losses[loss]), _error_bars(scores[score])
        axes.plot(x, y, color=GRAY, lw=0.8)
        for i, (color, marker) in enumerate(zip(_alpha_colors(alphas), cycle(MARKERS), strict=False)):
            axes.errorbar(
                x[i], y[i], y_errors[:, i : i + 1], x_errors[:, i : i + 1],
                color=color, marker=marker, ms=6, capsize=2, lw=1, label=f"alpha {alphas[i]:g}",
            )  # fmt: skip
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
