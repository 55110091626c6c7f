"""The figures of ablation tables, drawn from the artifacts and metrics of their runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from twinsqueeze.errors import InputError
from twinsqueeze.reporting import ablation_plots, run_loader, search_table
from twinsqueeze.reporting.ablation_plots import Line, SeedCurves
from twinsqueeze.reporting.ablation_table import EVALUATED_SPLITS, AblationTable, BaselineRow, Row, TrainedRun
from twinsqueeze.reporting.formats import ReportFigure, Section
from twinsqueeze.utils import console
from twinsqueeze.utils.signals import check_interrupted

# Compressors of a table with figures of their own; those with most runs come first.
MAX_FAMILIES = 12
LOSSES = {"noisy": "train/loss", "clean": "train/clean_loss"}


def build_sections(tables: Sequence[AblationTable]) -> list[Section]:
    """Draws the figures of all tables. Curves and predictions are read from the tracking store."""
    families = [_families_to_plot(table) for table in tables]
    total = sum(len(row.runs) for group in families for rows in group.values() for row in rows)
    done = 0
    sections = []
    with console.progress("reading", "run") as advance:

        def on_read(runs: int) -> None:
            nonlocal done
            check_interrupted()
            done += runs
            advance(done, max(total, 1), {})

        for table, group in zip(tables, families, strict=True):
            figures = [*_quality_figures(tables, table), *_dim_figures(table)]
            for name, rows in group.items():
                figures += _family_figures(table, name, rows, on_read)
            sections.append(Section(table, figures))
    return sections


def _families_to_plot(table: AblationTable) -> Mapping[str, Sequence[Row]]:
    """Families with several alphas, those with most runs first."""
    families = {name: rows for name, rows in table.families().items() if len(rows) > 1}
    ordered = sorted(families, key=lambda name: -sum(len(row.runs) for row in families[name]))
    if len(ordered) > MAX_FAMILIES:
        console.info(f"{table.title}: figures for the {MAX_FAMILIES} compressors with most runs, of {len(ordered)}")
    return {name: families[name] for name in ordered[:MAX_FAMILIES]}


def _family_figures(
    table: AblationTable, name: str, rows: Sequence[Row], on_read: Callable[[int], None]
) -> list[ReportFigure]:
    """Figures of rows that differ by alpha alone; the first has the lowest alpha."""
    splits = [split for split in EVALUATED_SPLITS if all(row.values(f"{split}/spearman") for row in rows)]
    figures = [
        _loss_figure(rows, on_read),
        _alpha_figure(table, name, rows, splits),
        *_pair_figures(rows, splits),
        _correlation_figure(rows, splits[-1]),
    ]
    prefix = "" if len(table.families()) == 1 else f"{name.replace(', ', '-').replace(' ', '')}-"
    return [replace(f, name=f"{prefix}{f.name}", caption=f"{name}. {f.caption}") for f in figures]


def _loss_figure(rows: Sequence[Row], on_read: Callable[[int], None]) -> ReportFigure:
    curves: dict[str, dict[float, SeedCurves]] = {metric: {} for metric in LOSSES.values()}
    for row in rows:
        for metric, by_alpha in curves.items():
            by_alpha[row.recipe.alpha] = _read_curves(row.runs, metric)
        on_read(len(row.runs))
    return ReportFigure(
        "training_loss",
        "Train loss with noise (the training objective) and without; mean of the seeds in a band from the lowest to "
        "the highest seed.",
        ablation_plots.plot_train_losses(*curves.values()),
    )


def _read_curves(runs: Sequence[TrainedRun], metric: str) -> SeedCurves:
    """The curves of all runs at the epochs that they share."""
    curves = [run_loader.read_curve(run, metric) for run in runs]
    epochs = np.array(sorted(set.intersection(*(set(steps) for steps, _ in curves))))
    return SeedCurves(epochs, np.stack([values[np.isin(steps, epochs)] for steps, values in curves]))


def _alpha_figure(table: AblationTable, name: str, rows: Sequence[Row], splits: Sequence[str]) -> ReportFigure:
    line = _spearman_line([row.recipe.alpha for row in rows], rows, splits)
    references = _reference_scores(table, splits, (None, rows[0].recipe.dim))
    return ReportFigure(
        "spearman_against_alpha",
        "Spearman against alpha with 95% intervals of the mean over seeds; baselines (no labels) as horizontal lines.",
        ablation_plots.plot_spearman("alpha", {name: line}, references),
    )


def _spearman_line(x: Sequence[float], rows: Sequence[Row] | Sequence[BaselineRow], splits: Sequence[str]) -> Line:
    return Line(x, {split: [row.scores[f"{split}/spearman"] for row in rows] for split in splits})


def _reference_scores(
    table: AblationTable, splits: Sequence[str], dims: Sequence[int | None]
) -> dict[str, dict[str, float]]:
    """By split, Spearman of the baselines of some dims."""
    baselines = [baseline for baseline in table.score_baselines if baseline.dim in dims]
    return {
        split: {b.name: b.scores[metric].mean for b in baselines if (metric := f"{split}/spearman") in b.scores}
        for split in splits
    }


def _pair_figures(rows: Sequence[Row], splits: Sequence[str]) -> list[ReportFigure]:
    """Figures of the pairs of the last split that all runs predicted, for one seed of every alpha."""
    base, seed = f"alpha {rows[0].recipe.alpha:g}", rows[0].runs[0].recipe.seed
    try:
        tables = {row.recipe.alpha: run_loader.read_predictions(row.runs[0]) for row in rows}
        train_losses = {row.recipe.alpha: run_loader.read_train_losses(row.runs[0]) for row in rows}
    except InputError as error:
        console.warn(f"figures of pairs can't be drawn: {error}")
        return []
    split = next(s for s in reversed(splits) if all((table["split"] == s).any() for table in tables.values()))
    predictions = {alpha: table[table["split"] == split] for alpha, table in tables.items()}
    labels = predictions[rows[0].recipe.alpha]["label"].to_numpy()
    predicted = {alpha: table["predicted"].to_numpy() for alpha, table in predictions.items()}
    losses = {
        alpha: {"train": train_losses[alpha], split: table["squared_error"].to_numpy()}
        for alpha, table in predictions.items()
    }
    return [
        ReportFigure(
            "predicted_against_label",
            f"Predicted cosine against the label for {ablation_plots.SAMPLE_SIZE} {split} pairs, seed {seed}: each "
            f"alpha beside {base}, and all together.",
            ablation_plots.plot_predictions(labels, predicted),
        ),
        ReportFigure(
            "pair_losses",
            f"Squared errors of train and {split} pairs on log scales, seed {seed}: each alpha beside {base}.",
            ablation_plots.plot_pair_losses(losses),
        ),
    ]


def _correlation_figure(rows: Sequence[Row], split: str) -> ReportFigure:
    scores = {f"{split} mean squared error": f"{split}/mse", f"{split} Spearman": f"{split}/spearman"}
    figure = ablation_plots.plot_scores_vs_train_losses(
        [row.recipe.alpha for row in rows],
        {label: [row.scores[metric] for row in rows] for label, metric in LOSSES.items()},
        {label: [row.scores[metric] for row in rows] for label, metric in scores.items()},
    )
    return ReportFigure(
        f"train_against_{split}",
        f"{split} scores against the final train loss, means and 95% intervals over seeds. If a higher train loss "
        "meant better generalization, the error would fall and Spearman rise from left to right.",
        figure,
    )


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
    by_alpha: dict[float, list[Row]] = {}
    for row in sorted(table.rows, key=lambda row: (row.recipe.alpha, row.recipe.dim)):
        if row.family.model_copy(update={"dim": table.best.recipe.dim}) == table.best.family:
            by_alpha.setdefault(row.recipe.alpha, []).append(row)
    by_alpha = {alpha: rows for alpha, rows in by_alpha.items() if len(rows) > 1}
    if not by_alpha:
        return []
    all_rows = [row for rows in by_alpha.values() for row in rows]
    splits = [split for split in EVALUATED_SPLITS if all(row.values(f"{split}/spearman") for row in all_rows)]
    lines = {
        f"alpha {alpha:g}": _spearman_line([row.recipe.dim for row in rows], rows, splits)
        for alpha, rows in by_alpha.items()
    }
    families: dict[str, list[BaselineRow]] = {}
    for baseline in table.score_baselines:
        if baseline.dim is not None:
            families.setdefault(baseline.family, []).append(baseline)
    for name, baselines in families.items():
        lines[name] = _spearman_line([baseline.dim or 0 for baseline in baselines], baselines, splits)
    return [
        ReportFigure(
            "spearman_against_dim",
            "Spearman against the output dimension, with 95% intervals of the mean over seeds.",
            ablation_plots.plot_spearman("dim", lines, _reference_scores(table, splits, (None,))),
        )
    ]
