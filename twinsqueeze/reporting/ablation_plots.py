"""Figures of an ablation, from arrays. They know neither files nor MLflow.

Strengths of noise run from dark to light of cividis, which the colour-blind and grey print keep in order; dashes and
markers differ too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from twinsqueeze.reporting.run_plots import BLUE, GREEN, GREY, ORANGE, SMALLEST_LOSS, VERMILION, panels
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.text import escape_mathtext

DASHES = ("-", "--", "-.", ":")
# Okabe and Ito's, in an order in which no pair that shares a dash is alike.
LEVELS = (GREY, GREEN, ORANGE, VERMILION, "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SAMPLE = 300
# A panel is as wide as so many letters of the legend beside their lines.
MOST_LETTERS = 55
LEGEND_COLUMNS = 5


@dataclass(frozen=True)
class SeedCurves:
    """A curve of every seed.

    Attributes:
        epochs: (T,).
        values: (S, T).
    """

    epochs: FloatArray
    values: FloatArray


@dataclass(frozen=True)
class PointsWithCI:
    """A figure's points with their errors, one a strength of noise.

    Attributes:
        means: (A,).
        low: (A,) lower ends, NaN where there is none.
        high: (A,) upper ends.
    """

    means: FloatArray
    low: FloatArray
    high: FloatArray

    @property
    def errors(self) -> FloatArray:
        """(2, A) lengths below and above the means."""
        return np.stack([self.means - self.low, self.high - self.means])


def training_losses(noisy: Mapping[float, SeedCurves], clean: Mapping[float, SeedCurves]) -> Figure:
    """Train loss of every alpha, the mean of its seeds in a band from the lowest to the highest seed.

    Args:
        noisy: With noise, as it was trained on.
        clean: Without.
    """
    figure, (left, right) = panels(2)
    for axes, curves_of, title in ((left, noisy, "with noise"), (right, clean, "without noise")):
        for alpha, colour, dash in zip(curves_of, _colours(len(curves_of)), cycle(DASHES), strict=False):
            curves = curves_of[alpha]
            axes.fill_between(curves.epochs, curves.values.min(0), curves.values.max(0), color=colour, alpha=0.2, lw=0)
            axes.plot(curves.epochs, curves.values.mean(0), color=colour, ls=dash, lw=1.3, label=f"alpha {alpha:g}")
        axes.set(title=f"train loss {title}", xlabel="epoch", yscale="log")
    left.set_ylabel("mean squared error")
    _legend_below(figure)
    return figure


def spearman_against(
    what: str,
    lines: Mapping[str, tuple[Sequence[float], Mapping[str, PointsWithCI]]],
    references: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Spearman's correlation against a hyperparameter, a panel a split.

    Args:
        what: The hyperparameter, such as "alpha".
        lines: By name, where the points lie and for each split the points with their 95% intervals.
        references: For each split the Spearman of what needs no labels, by name, drawn as level lines.
    """
    splits = list(next(iter(lines.values()))[1])
    figure, axes_of = panels(len(splits))
    colours = (BLUE, VERMILION, *(_colours(max(0, len(lines) - 2))))
    for axes, split in zip(axes_of, splits, strict=True):
        for (name, (places, points)), colour, marker in zip(lines.items(), colours, cycle(MARKERS), strict=False):
            axes.errorbar(
                places, points[split].means, points[split].errors,
                color=colour, marker=marker, ms=4, capsize=3, label=escape_mathtext(name),
            )  # fmt: skip
        for (name, value), colour, dash in zip(references[split].items(), cycle(LEVELS), cycle(DASHES), strict=False):
            axes.axhline(value, color=colour, ls=dash, lw=1.1, label=escape_mathtext(name))
        axes.set(title=split, xlabel=what, ylabel="Spearman")
    if what == "dim":
        for axes in axes_of:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:.0f}")
    _legend_below(figure)
    return figure


def predicted_against_label(labels: FloatArray, predicted: Mapping[float, FloatArray]) -> Figure:
    """Predicted cosines of a sample of pairs against their labels: each alpha beside no noise, and all together.

    Args:
        labels: (P,) 0 to 1.
        predicted: (P,) cosines by alpha; the first is what the others are drawn beside.
    """
    sample = np.random.default_rng(0).permutation(len(labels))[:SAMPLE]
    (base, *others), colours = list(predicted), _colours(len(predicted))
    figure, axes_of = panels(len(others) + 1, columns=3)
    for axes, alpha in zip(axes_of, others, strict=False):
        for which, colour, marker in ((base, VERMILION, "o"), (alpha, BLUE, "^")):
            axes.scatter(
                labels[sample], predicted[which][sample], s=10, alpha=0.5, lw=0, color=colour, marker=marker,
                label=f"alpha {which:g}",
            )  # fmt: skip
        axes.legend(frameon=False, fontsize="small", loc="lower right")
        axes.set_title(f"alpha {alpha:g} and {base:g}")
    together = axes_of[-1]
    for alpha, colour, marker in zip(predicted, colours, cycle(MARKERS), strict=False):
        together.scatter(
            labels[sample], predicted[alpha][sample], s=8, alpha=0.5, lw=0, color=colour, marker=marker,
            label=f"{alpha:g}",
        )  # fmt: skip
    together.set_title("every alpha")
    together.legend(frameon=False, fontsize="small", loc="lower right", ncols=2, title="alpha")
    low = min(-0.05, *(float(values[sample].min()) for values in predicted.values()))
    for axes in axes_of:
        axes.plot([0, 1], [0, 1], color=GREY, lw=1)
        axes.set(xlabel="label", ylabel="predicted cosine", xlim=(-0.02, 1.02), ylim=(low, 1.05))
    return figure


def pair_losses(losses: Mapping[float, Mapping[str, FloatArray]]) -> Figure:
    """Squared errors of pairs on log scales, a row an alpha and a column a split, outlined beside those without noise.

    Args:
        losses: (P,) by alpha and split; the first alpha is what the others are drawn beside.
    """
    base, *others = losses
    splits = list(losses[base])
    figure, axes_of = panels(len(others) * len(splits), columns=len(splits), height=2.7)
    largest = max(float(values.max()) for of_alpha in losses.values() for values in of_alpha.values())
    bins = np.geomspace(SMALLEST_LOSS, max(largest, 10 * SMALLEST_LOSS), 50).tolist()
    for axes, (alpha, split) in zip(axes_of, ((a, s) for a in others for s in splits), strict=True):
        for which, colour, dash in ((base, VERMILION, "--"), (alpha, BLUE, "-")):
            values = np.maximum(losses[which][split], SMALLEST_LOSS)
            axes.hist(
                values, bins=bins, weights=np.full(len(values), 1 / len(values)), histtype="step", color=colour,
                ls=dash, lw=1.4, label=f"alpha {which:g}: mean {losses[which][split].mean():.4f}",
            )  # fmt: skip
        axes.set(title=f"{split}, alpha {alpha:g}", xscale="log", xlabel="squared error of a pair")
        axes.set(ylabel="share of the pairs", ylim=(0, 1.3 * axes.get_ylim()[1]))  # room for the legend
        axes.legend(frameon=False, fontsize="small", loc="upper left")
    return figure


def train_against_test(
    alphas: Sequence[float], train: Mapping[str, PointsWithCI], test: Mapping[str, PointsWithCI], split: str
) -> Figure:
    """Whether a higher train loss goes with a better test: a row a measure of test, a column a train loss.

    Args:
        alphas: (A,) the strengths of noise, in rising order, joined by a line.
        train: Final train losses by name.
        test: Measures on the split by name.
        split: What the split is called.
    """
    figure, axes_of = panels(len(train) * len(test), columns=len(train))
    cells = ((measure, loss) for measure in test for loss in train)
    for axes, (measure, loss) in zip(axes_of, cells, strict=True):
        x, y = train[loss], test[measure]
        axes.plot(x.means, y.means, color=GREY, lw=0.8)
        for i, (colour, marker) in enumerate(zip(_colours(len(alphas)), cycle(MARKERS), strict=False)):
            axes.errorbar(
                x.means[i], y.means[i], y.errors[:, i : i + 1], x.errors[:, i : i + 1],
                color=colour, marker=marker, ms=6, capsize=2, lw=1, label=f"alpha {alphas[i]:g}",
            )  # fmt: skip
        axes.set(xlabel=f"final train loss, {loss}", ylabel=f"{measure} on {split}", xscale="log")
        axes.tick_params(axis="x", which="both", labelsize="small", labelrotation=35)
    _legend_below(figure)
    return figure


def _colours(count: int) -> list[Any]:
    """Colours from dark to light; the lightest of cividis is left out, since it is lost on white paper."""
    return [colormaps["cividis"](place) for place in np.linspace(0, 0.88, max(count, 1))]


def _legend_below(figure: Figure) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    that_fit = int(MOST_LETTERS * len(figure.axes) / max(map(len, names)))
    columns = min(len(names), LEGEND_COLUMNS, max(that_fit, 1))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
