"""The figures of ablation tables, drawn from the artifacts and metrics of their runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from twinsqueeze.errors import InputError
from twinsqueeze.reporting import ablation_plots, run_loader, search_table
from twinsqueeze.reporting.ablation_table import EVALUATED_SPLITS, AblationTable, Row
from twinsqueeze.reporting.formats import ReportFigure, Section
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.utils import console
from twinsqueeze.utils.signals import check_interrupted

# Compressors of a table with figures of their own; those with most runs come first.
MAX_FAMILIES = 12
LOSSES = {"noisy": "train/loss", "clean": "train/clean_loss"}
# Train losses of a row by metric: a row per epoch, a column per seed.
Curves = Mapping[str, pd.DataFrame]


def build_sections(tables: Sequence[AblationTable]) -> list[Section]:
    """Draw the figures of all tables. Curves and predictions are read from the tracking store."""
    families = [_families_to_plot(table) for table in tables]
    curves = _read_curves([row for group in families for rows in group.values() for row in rows])
    sections = []
    for table, group in zip(tables, families, strict=True):
        figures = [*_quality_figures(tables, table), *_dim_figures(table)]
        for name, rows in group.items():
            prefix = "" if len(table.families()) == 1 else f"{name.replace(', ', '-').replace(' ', '')}-"
            own = _family_figures(table, rows, [curves[row.runs[0].run_id] for row in rows])
            figures += [replace(f, name=f"{prefix}{f.name}", caption=f"{name}. {f.caption}") for f in own]
        sections.append(Section(table, figures))
    return sections


def _families_to_plot(table: AblationTable) -> Mapping[str, Sequence[Row]]:
    """Families with several alphas, those with most runs first."""
    families = {name: rows for name, rows in table.families().items() if len(rows) > 1}
    ordered = sorted(families, key=lambda name: -sum(len(row.runs) for row in families[name]))
    if len(ordered) > MAX_FAMILIES:
        console.info(f"{table.title}: figures for the {MAX_FAMILIES} compressors with most runs, of {len(ordered)}")
    return {name: families[name] for name in ordered[:MAX_FAMILIES]}


def _read_curves(rows: Sequence[Row]) -> dict[str, Curves]:
    """Curves by the id of each row's first run, at the epochs that all its runs share."""
    curves: dict[str, Curves] = {}
    total, done = sum(len(row.runs) for row in rows), 0
    with console.progress("reading", "run") as advance:
        for row in rows:
            check_interrupted()
            curves[row.runs[0].run_id] = {
                metric: pd.concat([run_loader.read_curve(run, metric) for run in row.runs], axis=1, join="inner")
                for metric in LOSSES.values()
            }
            done += len(row.runs)
            advance(done, total, {})
    return curves


def _family_figures(table: AblationTable, rows: Sequence[Row], curves: Sequence[Curves]) -> list[ReportFigure]:
    """Figures of rows that differ by alpha alone; the first has the lowest alpha."""
    splits = [split for split in EVALUATED_SPLITS if all(row.values(f"{split}/spearman") for row in rows)]
    points = {row.recipe.alpha: row.scores for row in rows}
    split = splits[-1]
    scores = {f"{split} mean squared error": f"{split}/mse", f"{split} Spearman": f"{split}/spearman"}
    return [
        ReportFigure(
            "training_loss",
            "Train loss with noise (the training objective) and without; mean of the seeds in a band from the lowest "
            "to the highest seed.",
            ablation_plots.plot_train_losses(
                {label: dict(zip(points, (c[metric] for c in curves), strict=True)) for label, metric in LOSSES.items()}
            ),
        ),
        ReportFigure(
            "spearman_against_alpha",
            "Spearman against alpha with 95% intervals of the mean over seeds; baselines (no labels) as horizontal "
            "lines.",
            ablation_plots.plot_spearman(
                "alpha", {rows[0].name: points}, _reference_scores(table, splits, (None, rows[0].recipe.dim))
            ),
        ),
        *_pair_figures(rows, splits),
        ReportFigure(
            f"train_against_{split}",
            f"{split} scores against the final train loss, means and 95% intervals over seeds. If a higher train loss "
            "meant better generalization, the error would fall and Spearman rise from left to right.",
            ablation_plots.plot_scores_vs_train_losses(points, LOSSES, scores),
        ),
    ]


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
    """Figures of the pairs of the last split that all runs predicted, for the first seed of every alpha."""
    try:
        tables = {row.recipe.alpha: run_loader.read_predictions(row.runs[0]) for row in rows}
        train_losses = {row.recipe.alpha: run_loader.read_train_losses(row.runs[0]) for row in rows}
    except InputError as error:
        console.warn(f"figures of pairs can't be drawn: {error}")
        return []
    split = next(s for s in reversed(splits) if all((table["split"] == s).any() for table in tables.values()))
    predictions = {alpha: table[table["split"] == split] for alpha, table in tables.items()}
    losses = {
        alpha: {"train": train_losses[alpha], split: table["squared_error"].to_numpy()}
        for alpha, table in predictions.items()
    }
    shown = f"seed {rows[0].runs[0].recipe.seed}: each alpha beside alpha {rows[0].recipe.alpha:g}"
    sample = min(ablation_plots.SAMPLE_SIZE, len(next(iter(predictions.values()))))
    return [
        ReportFigure(
            "predicted_against_label",
            f"Predicted cosine against the label for {sample} {split} pairs, {shown}, and all together.",
            ablation_plots.plot_predictions(predictions),
        ),
        ReportFigure(
            "pair_losses",
            f"Squared errors of train and {split} pairs on log scales, {shown}.",
            ablation_plots.plot_pair_losses(losses),
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
            lines.setdefault(f"alpha {row.recipe.alpha:g}", {})[row.recipe.dim] = row.scores
            rows.append(row)
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return []
    splits = [split for split in EVALUATED_SPLITS if all(row.values(f"{split}/spearman") for row in rows)]
    for baseline in table.score_baselines:
        if baseline.dim is not None:
            lines.setdefault(baseline.family, {})[baseline.dim] = baseline.scores
    return [
        ReportFigure(
            "spearman_against_dim",
            "Spearman against the output dimension, with 95% intervals of the mean over seeds.",
            ablation_plots.plot_spearman("dim", lines, _reference_scores(table, splits, (None,))),
        )
    ]
