"""The figures of ablation tables, drawn from the metrics and artifacts of their runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from twinsqueeze.errors import InputError
from twinsqueeze.reporting import run_loader, run_plots, search_table
from twinsqueeze.reporting.ablation_table import EVALUATED_SPLITS, AblationTable, BaselineRow, Row
from twinsqueeze.reporting.formats import ReportFigure, Section
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.types import FloatArray
from twinsqueeze.utils import console
from twinsqueeze.utils.signals import check_interrupted
from twinsqueeze.utils.text import escape_mathtext

MAX_FAMILIES = 12  # compressors with figures of their own; those with most runs come first
LOSSES = {"noisy": "train/loss", "clean": "train/clean_loss"}
SAMPLE_SIZE = 300
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_COLORS = (run_plots.BLUE, run_plots.VERMILION, *run_plots.BASELINE_COLORS)


def build_sections(tables: Sequence[AblationTable]) -> list[Section]:
    """Draw the figures of all tables. Curves and predictions are read from the tracking store."""
    sections = [(table, [*_quality_figures(tables, table), *_dim_figures(table)]) for table in tables]
    families = [
        (table, figures, name, rows)
        for table, figures in sections
        for name, rows in table.families().items()
        if len(rows) > 1
    ]
    if len(families) > MAX_FAMILIES:
        console.info(f"figures for the {MAX_FAMILIES} compressors with most runs, of {len(families)}")
    largest = nlargest(MAX_FAMILIES, families, key=lambda family: sum(len(row.runs) for row in family[-1]))
    with console.progress("drawing", "compressor") as advance:
        for done, (table, figures, name, rows) in enumerate(largest, 1):
            prefix = "" if len(table.families()) == 1 else f"{name.replace(', ', '-').replace(' ', '')}-"
            for figure in _family_figures(table, rows):
                figures.append(replace(figure, name=f"{prefix}{figure.name}", caption=f"{name}. {figure.caption}"))
            advance(done, len(largest), {})
    return sections


def _family_figures(table: AblationTable, rows: Sequence[Row]) -> list[ReportFigure]:
    """Figures of rows that differ by alpha alone; the first has the lowest alpha."""
    splits = _measured_splits(rows)
    points = {row.recipe.alpha: row.scores for row in rows}
    references = [b for b in table.score_baselines if b.dim in {None, rows[0].recipe.dim}]
    return [
        ReportFigure(
            "training_loss",
            "Train loss with noise (the training objective) and without; mean of the seeds in a band from the lowest "
            "to the highest seed.",
            _plot_train_losses(rows),
        ),
        ReportFigure(
            "spearman_against_alpha",
            "Spearman against alpha with 95% intervals of the mean over seeds; baselines (no labels) as horizontal "
            "lines.",
            _plot_spearman("alpha", {rows[0].name: points}, splits, references),
        ),
        *_pair_figures(rows, splits),
        ReportFigure(
            f"train_against_{splits[-1]}",
            f"{splits[-1]} scores against the final train loss, means and 95% intervals over seeds. If a higher train "
            "loss meant better generalization, the error would fall and Spearman rise from left to right.",
            _plot_scores_vs_train_losses(rows, splits[-1]),
        ),
    ]


def _measured_splits(rows: Sequence[Row]) -> list[str]:
    return [split for split in EVALUATED_SPLITS if all(row.values(f"{split}/spearman") for row in rows)]


def _pair_figures(rows: Sequence[Row], splits: Sequence[str]) -> list[ReportFigure]:
    """Figures of the pairs of the last split that all runs predicted, for the first seed of every alpha."""
    runs = {_alpha_label(row): row.runs[0] for row in rows}
    try:
        tables = {name: run_loader.read_predictions(run.run_id) for name, run in runs.items()}
        train_losses = {name: run_loader.read_train_losses(run.run_id) for name, run in runs.items()}
    except InputError as error:
        console.warn(f"figures of pairs can't be drawn: {error}")
        return []
    split = next(s for s in reversed(splits) if all((table["split"] == s).any() for table in tables.values()))
    pairs = {name: table[table["split"] == split] for name, table in tables.items()}
    losses = {"train": train_losses, split: {name: table["squared_error"].to_numpy() for name, table in pairs.items()}}
    base, *others = runs
    size = min(SAMPLE_SIZE, len(pairs[base]))
    sample = {name: table.sample(size, random_state=0) for name, table in pairs.items()}
    points = {name: (table["label"].to_numpy(), table["predicted"].to_numpy()) for name, table in sample.items()}
    predictions = {f"{name} and {base}": {base: points[base], name: points[name]} for name in others}
    histograms = {f"{s}, {name}": {base: losses[s][base], name: losses[s][name]} for name in others for s in losses}
    shown = f"seed {runs[base].recipe.seed}: each alpha beside {base}"
    return [
        ReportFigure(
            "predicted_against_label",
            f"Predicted cosine against the label for {size} {split} pairs, {shown}.",
            run_plots.plot_predictions(predictions, "label", columns=3),
        ),
        ReportFigure(
            "pair_losses",
            f"Squared errors of train and {split} pairs on log scales, {shown}.",
            run_plots.plot_pair_losses(histograms, columns=2),
        ),
    ]


def _quality_figures(tables: Sequence[AblationTable], table: AblationTable) -> list[ReportFigure]:
    """Search quality of a table and of all others on the same data, which need not share labels and loss."""
    comparable = [t for t in tables if t.comparison_key[:3] == table.comparison_key[:3] and t is not table]
    rows = search_table.rows_from_tables([table, *comparable])
    note = " Includes the compressors of the other tables on these data." if comparable else ""
    return [
        ReportFigure(
            "quality_against_bytes",
            "Spearman, neighbor recall and recall@10 against bytes per vector. Each trained compressor is shown at its "
            f"best alpha by Spearman on dev; the others are baselines (no labels).{note}",
            search_table.quality_figure(rows)(),
        ),
        ReportFigure(
            "spearman_against_neighbor_recall",
            "Spearman against neighbor recall on dev and test; the second row enlarges the upper right. Numbers are "
            f"bytes per vector.{note}",
            search_table.pareto_figure(rows),
        ),
    ]


def _dim_figures(table: AblationTable) -> list[ReportFigure]:
    """Spearman against dim, a line per alpha, if the best compressor was trained at several dims."""
    lines: dict[str, dict[float, Mapping[str, SeedStats]]] = {}
    rows = []
    for row in sorted(table.rows, key=lambda row: (row.recipe.alpha, row.recipe.dim)):
        if row.family.model_copy(update={"dim": table.best.recipe.dim}) == table.best.family:
            lines.setdefault(_alpha_label(row), {})[row.recipe.dim] = row.scores
            rows.append(row)
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return []
    for baseline in table.score_baselines:
        if baseline.dim is not None:
            lines.setdefault(baseline.family, {})[baseline.dim] = baseline.scores
    references = [baseline for baseline in table.score_baselines if baseline.dim is None]
    figure = _plot_spearman("dim", lines, _measured_splits(rows), references)
    for axes in figure.axes:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
    caption = "Spearman against the output dimension, with 95% intervals of the mean over seeds."
    return [ReportFigure("spearman_against_dim", caption, figure)]


def _plot_train_losses(rows: Sequence[Row]) -> Figure:
    """Losses over the epochs that all seeds of a row share."""
    figure, axes_list = run_plots.panels(len(LOSSES), legend=[_alpha_label(row) for row in rows])
    for axes, (title, metric) in zip(axes_list, LOSSES.items(), strict=True):
        for row, color, dash in zip(rows, _alpha_colors(len(rows)), cycle(DASHES), strict=False):
            check_interrupted()
            seeds = pd.concat([run_loader.read_curve(run, metric) for run in row.runs], axis=1, join="inner")
            axes.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=color, alpha=0.2, lw=0)
            axes.plot(seeds.index, seeds.mean(axis=1), color=color, ls=dash, lw=1.3, label=_alpha_label(row))
        axes.set(title=f"train loss, {title}", xlabel="epoch", ylabel="loss", yscale="log")
        run_plots.set_log_ticks(axes.yaxis)
    run_plots.draw_legend(figure)
    return figure


def _plot_spearman(
    hyperparameter: str,
    lines: Mapping[str, Mapping[float, Mapping[str, SeedStats]]],
    splits: Sequence[str],
    references: Sequence[BaselineRow],
) -> Figure:
    """Spearman with 95% intervals, by name and value of the hyperparameter; references are horizontal lines."""
    figure, axes_list = run_plots.panels(len(splits), legend=[*lines, *(baseline.name for baseline in references)])
    for axes, split in zip(axes_list, splits, strict=True):
        metric = f"{split}/spearman"
        for (name, points), color, marker in zip(lines.items(), cycle(LINE_COLORS), cycle(MARKERS), strict=False):
            y, errors = _error_bars([scores[metric] for scores in points.values()])
            label = escape_mathtext(name)
            axes.errorbar(list(points), y, errors, color=color, marker=marker, ms=4, capsize=3, label=label)
        measured = {b.name: b.scores[metric].mean for b in references if metric in b.scores}
        styles = zip(cycle(run_plots.BASELINE_COLORS), cycle(DASHES), strict=False)
        for (name, value), (color, dash) in zip(measured.items(), styles, strict=False):
            axes.axhline(value, color=color, ls=dash, lw=1.1, label=escape_mathtext(name))
        axes.set(title=split, xlabel=hyperparameter, ylabel="Spearman")
    run_plots.draw_legend(figure)
    return figure


def _plot_scores_vs_train_losses(rows: Sequence[Row], split: str) -> Figure:
    """Scores against final train losses, a panel per pair and a point per alpha with 95% intervals."""
    scores = {f"{split} mean squared error": f"{split}/mse", f"{split} Spearman": f"{split}/spearman"}
    names = [_alpha_label(row) for row in rows]
    figure, axes_list = run_plots.panels(len(scores) * len(LOSSES), columns=len(LOSSES), legend=names)
    cells = [(*score, *loss) for score in scores.items() for loss in LOSSES.items()]
    for axes, (score, score_metric, loss, loss_metric) in zip(axes_list, cells, strict=True):
        x, x_errors = _error_bars([row.scores[loss_metric] for row in rows])
        y, y_errors = _error_bars([row.scores[score_metric] for row in rows])
        axes.plot(x, y, color=run_plots.GRAY, lw=0.8)
        for i, (color, marker) in enumerate(zip(_alpha_colors(len(rows)), cycle(MARKERS), strict=False)):
            errors = y_errors[:, [i]], x_errors[:, [i]]
            axes.errorbar(x[i], y[i], *errors, color=color, marker=marker, ms=6, capsize=2, lw=1, label=names[i])
        axes.set(xlabel=f"final train loss, {loss}", ylabel=score, xscale="log")
        run_plots.set_log_ticks(axes.xaxis)
    run_plots.draw_legend(figure)
    return figure


def _error_bars(stats: Sequence[SeedStats]) -> tuple[FloatArray, FloatArray]:
    """(A,) means, and (2, A) lengths of the 95% intervals below and above them."""
    means = np.array([s.mean for s in stats])
    low, high = np.array([s.interval for s in stats]).T
    return means, np.stack([means - low, high - means])


def _alpha_label(row: Row) -> str:
    return f"alpha {row.recipe.alpha:g}"


def _alpha_colors(count: int) -> list[Any]:
    """Colors from dark to light, which color-blind readers and grayscale prints can order; without the lightest."""
    return [colormaps["cividis"](place) for place in np.linspace(0, 0.88, count)]
