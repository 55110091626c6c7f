"""Plots of rows of ablation tables."""

from collections.abc import Mapping, Sequence
from itertools import chain, cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from twinsqueeze.reporting import run_loader, run_plots
from twinsqueeze.reporting.ablation_table import COLUMN_NAMES, BaselineRow, Row, capitalized_name, metric_name
from twinsqueeze.reporting.method_plots import SERIES, find_series
from twinsqueeze.reporting.run_plots import Style
from twinsqueeze.reporting.statistics import NO_VALUES, SeedStats
from twinsqueeze.task import SIMILARITY
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.signals import check_interrupted

LOSSES = {"noisy": "train/loss", "clean": "train/clean_loss"}
DASHES = ("-", "--", "-.", ":")

Points = Mapping[float, Mapping[str, SeedStats]]  # scores by value of a hyperparameter


def plot_train_losses(rows: Sequence[Row], best: Row) -> Figure:
    """Losses over the epochs that all seeds of a row share."""
    styles = alpha_styles(rows, best)
    figure, axes_list = run_plots.panels(len(LOSSES), legend=list(styles))
    for axes, (title, metric) in zip(axes_list, LOSSES.items(), strict=True):
        for row, (name, style) in zip(rows, styles.items(), strict=True):
            check_interrupted()
            seeds = pd.concat([run_loader.read_curve(run, metric) for run in row.runs], axis=1, join="inner")
            axes.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=style["color"], alpha=0.2, lw=0)
            axes.plot(seeds.index, seeds.mean(axis=1), label=name, **style)
        axes.set(title=f"Train loss, {title}", ylabel=run_plots.LOSS_NAMES[rows[0].recipe.loss], yscale="log")
        run_plots.set_epoch_axis(axes)
        run_plots.set_log_ticks(axes.yaxis)
    run_plots.share_y(axes_list)
    run_plots.draw_legend(figure, list(styles))
    return figure


def plot_score(
    score: str,
    hyperparameter: str,
    lines: Mapping[str, Points],
    references: Sequence[BaselineRow],
    titles: Mapping[str, str],
) -> Figure:
    """A score with 95% intervals, by name and value of the hyperparameter; references are horizontal lines.

    There is a panel for every split in `titles`.
    """
    names = [*lines, *(baseline.name for baseline in references)]
    figure, axes_list = run_plots.panels(len(titles), legend=names)
    for axes, (split, title) in zip(axes_list, titles.items(), strict=True):
        metric = metric_name(split, score)
        styles = chain([{}], cycle({"ls": dash, "mfc": "white"} for dash in DASHES[1:]))  # the first is the best
        for name, points in lines.items():
            y, errors = _error_bars([scores[metric] for scores in points.values()])
            style = SERIES[name].style if name in SERIES else {**SERIES["TwinSqueeze"].style, **next(styles)}
            axes.errorbar(list(points), y, errors, ms=4, capsize=3, label=name, **style)
        for baseline in references:
            style = SERIES[str(find_series(baseline.family))].style
            mean = baseline.scores.get(metric, NO_VALUES).mean
            axes.axhline(mean, color=style["color"], ls=style["ls"], lw=1.1, label=baseline.name)
        axes.set(title=title, xlabel=hyperparameter, ylabel=COLUMN_NAMES[score])
    run_plots.share_y(axes_list)
    run_plots.draw_legend(figure, names)
    return figure


def plot_scores_vs_train_losses(rows: Sequence[Row], split: str) -> Figure:
    """Scores against final train losses, a panel per score and a point per alpha with 95% intervals."""
    scores = {"mse": "mean squared error"} if rows[0].task == SIMILARITY else {}
    scores[rows[0].task.selection] = COLUMN_NAMES[rows[0].task.selection]
    colors = dict(zip(LOSSES, (run_plots.LIGHT, run_plots.STRONG), strict=True))
    figure, axes_list = run_plots.panels(len(scores), legend=list(LOSSES))
    for axes, (score, label) in zip(axes_list, scores.items(), strict=True):
        y, y_errors = _error_bars([row.scores[metric_name(split, score)] for row in rows])
        for loss, loss_metric in LOSSES.items():
            x, x_errors = _error_bars([row.scores[loss_metric] for row in rows])
            axes.errorbar(x, y, y_errors, x_errors, color=colors[loss], marker="o", ms=4, capsize=2, lw=1, label=loss)
        _label_alphas(axes, rows, x, y)
        title = f"{label.capitalize() if score == 'mse' else capitalized_name(score)} on {split} against train loss"
        axes.set(title=title, xlabel="final train loss", ylabel=label, xscale="log")
        run_plots.set_log_ticks(axes.xaxis, LogLocator(subs=(1, 3)))
    run_plots.draw_legend(figure, list(LOSSES))
    return figure


def _label_alphas(axes: Axes, rows: Sequence[Row], x: FloatArray, y: FloatArray) -> None:
    for row, *point in zip(rows, x, y, strict=True):
        text = f"{row.recipe.alpha:g}"
        axes.annotate(text, (point[0], point[1]), xytext=(5, 5), textcoords="offset points", fontsize=7)


def _error_bars(stats: Sequence[SeedStats]) -> tuple[FloatArray, FloatArray]:
    """(A,) means, and (2, A) lengths of the 95% intervals below and above them."""
    means = np.array([s.mean for s in stats])
    low, high = np.array([s.interval for s in stats]).T
    return means, np.stack([means - low, high - means])


def alpha_label(row: Row) -> str:
    """The name of a row among those that differ by alpha alone."""
    return f"alpha {row.recipe.alpha:g}"


def alpha_styles(rows: Sequence[Row], best: Row) -> dict[str, Style]:
    """Line styles by alpha: a strong color for the best, and from dark to light gray for the others."""
    grays = np.linspace(0.1, 0.75, len(rows))
    return {
        alpha_label(row): {"color": run_plots.STRONG, "lw": 2, "ls": "-", "zorder": 3}
        if row is best
        else {"color": f"{gray:.2f}", "lw": 1.2, "ls": dash}
        for row, gray, dash in zip(rows, grays, cycle(DASHES), strict=False)
    }
