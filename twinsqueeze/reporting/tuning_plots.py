"""Figures of a study: its trials, what matters, and the trade-off of two scores."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from twinsqueeze.reporting.method_plots import pareto_front
from twinsqueeze.reporting.run_plots import DARK, LIGHT, MEDIUM, STRONG, TITLE_Y, draw_legend, panels
from twinsqueeze.utils.text import escape_mathtext

# Columns of a table of trials besides scores; it has one row per trial, by number.
NUMBER, STATE, VALUE = "trial", "state", "value"
WIDE_LEFT = 0.17  # of the figure, for ticks of four decimals


def plot_trials(trials: pd.DataFrame, score: str, start: float) -> Figure:
    """Plot the value of every trial and the best so far, beside the value of the start recipe; NaN without one."""
    names = ["best so far", "complete", "pruned", "start recipe"]
    figure, (axes,) = panels(1, legend=names)
    complete, pruned = (trials[trials[STATE] == state] for state in ("complete", "pruned"))
    axes.plot(complete[NUMBER], complete[VALUE], ls="none", marker="o", ms=5, color=MEDIUM, label="complete")
    if len(pruned):
        axes.plot(pruned[NUMBER], pruned[VALUE], ls="none", marker="x", ms=5, color=LIGHT, label="pruned")
    best = complete.set_index(NUMBER)[VALUE].cummax().reindex(trials[NUMBER], method="ffill")
    axes.step(best.index, best, where="post", color=STRONG, lw=2, label="best so far", zorder=3)
    if np.isfinite(start):
        axes.axhline(start, color=DARK, ls=":", label="start recipe")
    values = complete[VALUE]
    if np.ptp(values):  # pruned trials may be far below
        margin = 0.15 * np.ptp(values)
        axes.set_ylim(values.min() - margin, values.max() + margin)
    figure.subplots_adjust(left=WIDE_LEFT)
    axes.set(xlabel="trial", ylabel=f"{score} on dev")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title(f"{len(trials)} trials: {score} on dev", y=TITLE_Y)
    draw_legend(figure, names)
    return figure


def plot_importances(importances: Mapping[str, float], score: str) -> Figure:
    """Plot the share of the variance of the score that each parameter explains, as a bar per parameter."""
    figure, (axes,) = panels(1)
    ordered = sorted(importances.items(), key=lambda item: item[1])
    names = [escape_mathtext(name) for name, _ in ordered]
    colors = [MEDIUM] * (len(ordered) - 1) + [STRONG]
    axes.barh(names, [value for _, value in ordered], color=colors)
    for i, (_, value) in enumerate(ordered):
        axes.annotate(f"{value:.2f}", (value, i), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    figure.subplots_adjust(left=0.3)
    axes.set_xlim(0, 1.1 * max(importances.values()))
    axes.set(xlabel="share of the variance explained (fANOVA)")
    axes.set_title(f"What {score} on dev depends on", y=TITLE_Y)
    return figure


def plot_trade_off(trials: pd.DataFrame, x: tuple[str, str], y: tuple[str, str], chosen: int) -> Figure:
    """Plot two columns of complete trials, each (column, name), and the trials that no other exceeds in both."""
    names = ["Pareto front", "other trials", "start recipe", "chosen trial"]
    figure, (axes,) = panels(1, height=4.2, legend=names)
    points = trials[[x[0], y[0]]].to_numpy(float)
    front = sorted(pareto_front(points), key=lambda i: points[i, 0])
    axes.plot(*points.T, ls="none", marker="o", ms=5, color=LIGHT, label="other trials")
    axes.plot(*points[front].T, color=STRONG, marker="o", lw=2, label="Pareto front", zorder=3)
    marks = {0: ("start recipe", "s", DARK), chosen: ("chosen trial", "*", DARK)}
    for number, (name, marker, color) in marks.items():
        marked = trials[trials[NUMBER] == number]
        axes.plot(
            marked[x[0]], marked[y[0]], ls="none", marker=marker, ms=10, mfc="none", mec=color, label=name, zorder=4
        )
    figure.subplots_adjust(left=WIDE_LEFT)
    axes.set(xlabel=f"{x[1]} on dev", ylabel=f"{y[1]} on dev")
    axes.set_title(f"{y[1]} and {x[1]} of complete trials", y=TITLE_Y)
    draw_legend(figure, names)
    return figure
