"""Figures from arrays. They know neither files nor MLflow.

Colours are those of Okabe and Ito (2008), told apart by the colour-blind; lines differ in dash as well, for print.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
SPLIT_STYLES = {"train": (BLUE, "-"), "dev": (ORANGE, "--"), "test": (VERMILION, "-.")}
# Losses below this are drawn at it: a pair predicted exactly has no logarithm.
SMALLEST_LOSS = 1e-8


def loss_curves(loss: FloatArray, clean_loss: FloatArray, dev: Mapping[str, FloatArray]) -> Figure:
    """Losses against epochs, and beside them the correlations on dev.

    Args:
        loss: (T,) noisy train loss.
        clean_loss: (T,) train loss without noise; NaN where it was not measured.
        dev: (T,) curves mse, pearson and spearman.
    """
    figure, (left, right) = _panels(2)
    epochs = np.arange(1, len(loss) + 1)
    measured = np.isfinite(clean_loss)
    marker = "o" if len(loss) == 1 else None
    left.plot(epochs, loss, color=BLUE, marker=marker, label="train, with noise")
    left.plot(epochs[measured], clean_loss[measured], color=GREEN, ls=":", marker=marker, label="train, clean")
    left.plot(epochs, dev["mse"], color=ORANGE, ls="--", marker=marker, label="dev")
    left.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
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
    figure, panels = _panels(len(labels))
    low = min(-0.05, *(float(np.min(values)) for values in predicted.values()))
    for axes, name in zip(panels, labels, strict=True):
        colour = SPLIT_STYLES[name][0]
        axes.plot([0, 1], [0, 1], color=GREY, lw=1)
        axes.scatter(labels[name], predicted[name], s=8, alpha=0.35, lw=0, color=colour, rasterized=True)
        axes.set(
            title=f"{name}: {len(labels[name]):,} pairs",
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
    figure, (axes,) = _panels(1)
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
    axes.legend(frameon=False, loc="upper left")
    return figure


def spearman_against_alpha(
    alphas: FloatArray,
    means: Mapping[str, FloatArray],
    intervals: Mapping[str, FloatArray],
    references: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Spearman's correlation against the strength of noise, a panel a split, what needs no labels as lines.

    Args:
        alphas: (A,) in rising order.
        means: (A,) means over seeds of each split.
        intervals: (2, A) lower and upper ends of each split's 95% intervals.
        references: For each split the Spearman of each baseline, by name.
    """
    figure, panels = _panels(len(means))
    for axes, split in zip(panels, means, strict=True):
        low, high = intervals[split]
        errors = np.stack([means[split] - low, high - means[split]])
        axes.errorbar(
            alphas, means[split], errors, color=BLUE, marker="o", ms=4, capsize=3, label="trained, mean of seeds"
        )
        for (name, value), dash in zip(references[split].items(), ("-", "--", "-.", ":"), strict=False):
            axes.axhline(value, color=GREY, ls=dash, lw=1, label=name)
        axes.set(title=split, xlabel="alpha", ylabel="Spearman")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize="small")
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(6.0, 4.4 * count), 3.8), dpi=110, layout="constrained")
    panels = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, panels
