"""The figures of ablation tables with their captions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from operator import attrgetter

import numpy as np

from twinsqueeze.errors import InputError
from twinsqueeze.reporting import ablation_plots, method_plots, run_loader, run_plots, search_table
from twinsqueeze.reporting.ablation_plots import alpha_label
from twinsqueeze.reporting.ablation_table import (
    COLUMN_NAMES,
    EVALUATED_SPLITS,
    AblationTable,
    BaselineRow,
    Row,
    capitalized_name,
    selection_metric,
)
from twinsqueeze.reporting.report import ReportFigure, Section
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.task import SIMILARITY, Task
from twinsqueeze.utils import console

MAX_FAMILIES = 12  # compressors with figures of their own; those with most runs come first
MAX_ALPHAS = 7  # lines of a panel, which may have one more for the labels


def build_sections(tables: Sequence[AblationTable]) -> list[Section]:
    """Draw the figures of all tables. Curves and predictions are read from the tracking store."""
    sections = [(table, table_figures(tables, table)) for table in tables]
    families = [
        (table, figures, name, rows)
        for table, figures in sections
        for name, rows in table.families().items()
        if len(rows) > 1 and rows[0].recipe.epochs  # without epochs there are no curves, and alpha does nothing
    ]
    if len(families) > MAX_FAMILIES:
        console.info(f"figures for the {MAX_FAMILIES} compressors with most runs, of {len(families)}")
    largest = nlargest(MAX_FAMILIES, families, key=lambda family: sum(len(row.runs) for row in family[-1]))
    with console.progress("drawing", "compressor") as advance:
        for done, (table, figures, name, rows) in enumerate(largest, 1):
            for figure in (*score_figures(table, rows), *_run_figures(rows)):
                full_name = f"{family_prefix(table, name)}{figure.name}"
                figures.append(replace(figure, name=full_name, caption=f"{name}. {figure.caption}"))
            advance(done, len(largest), {})
    return sections


def family_prefix(table: AblationTable, name: str) -> str:
    """The prefix of the file names of a family's figures; none if the table has no other family."""
    return "" if len(table.families()) == 1 else f"{name.replace(', ', '-').replace(' ', '')}-"


def score_figures(table: AblationTable, rows: Sequence[Row]) -> list[ReportFigure]:
    """Figures of the scores of rows that differ by alpha alone; the first has the lowest alpha."""
    best, score = _best(rows), table.task.selection
    baselines = _series_baselines(table.score_baselines, {None, rows[0].recipe.dim}, table.task)
    lines = {rows[0].name: {row.recipe.alpha: row.scores for row in rows}}
    titles = {
        split: f"{title}: {best.gains[split].mean:+.4f} at alpha {best.recipe.alpha:g}"
        if split in best.gains
        else title
        for split, title in _split_titles(rows).items()
    }
    last = list(titles)[-1]
    effects = (
        "the error would fall and Spearman rise" if table.task == SIMILARITY else f"{COLUMN_NAMES[score]} would rise"
    )
    return [
        ReportFigure(
            f"{score}_against_alpha",
            f"{capitalized_name(score)} against alpha with 95% intervals of the mean over seeds. Horizontal lines: "
            "baselines, of each method the best on dev.",
            ablation_plots.plot_score(score, "alpha", lines, list(baselines.values()), titles),
        ),
        ReportFigure(
            f"train_against_{last}",
            f"Scores on {last} against the final train loss, means and 95% intervals over seeds; numbers are "
            f"alphas. If a higher train loss meant better generalization, {effects} from left to right.",
            ablation_plots.plot_scores_vs_train_losses(rows, last),
        ),
    ]


def _run_figures(rows: Sequence[Row]) -> list[ReportFigure]:
    """Figures of the curves and pairs of rows that differ by alpha alone, read from the tracking store."""
    best = _best(rows)
    shown = shown_alphas(rows, best)
    note = f" Of {len(rows)} alphas, {len(shown)} are drawn." if len(shown) < len(rows) else ""
    return [
        ReportFigure(
            "training_loss",
            "Train loss with noise (the training objective) and without; mean of the seeds in a band from the lowest "
            f"to the highest seed. The best alpha on dev is in color.{note}",
            ablation_plots.plot_train_losses(shown, best),
        ),
        *(_pair_figures(shown, best, _measured_splits(rows), note) if best.task == SIMILARITY else []),
    ]


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=attrgetter("dev_score"))


def _measured_splits(rows: Sequence[Row]) -> list[str]:
    return [split for split in EVALUATED_SPLITS if all(row.seeds(split) for row in rows)]


def _split_titles(rows: Sequence[Row]) -> dict[str, str]:
    """Titles of panels by measured split, such as "Spearman on dev"."""
    return {split: f"{capitalized_name(rows[0].task.selection)} on {split}" for split in _measured_splits(rows)}


def shown_alphas(rows: Sequence[Row], best: Row) -> list[Row]:
    """At most `MAX_ALPHAS` of the rows: the lowest, the highest, the best, and others at equal distances."""
    if len(rows) <= MAX_ALPHAS:
        return list(rows)
    places = np.linspace(0, len(rows) - 1, MAX_ALPHAS - 1).round().astype(int)
    return [row for i, row in enumerate(rows) if i in places or row is best]


def _pair_figures(rows: Sequence[Row], best: Row, splits: Sequence[str], note: str) -> list[ReportFigure]:
    """Figures of the pairs of the last split that all runs predicted, for the first seed of every alpha."""
    runs = {alpha_label(row): row.runs[0] for row in rows}
    try:
        tables = {name: run_loader.read_predictions(run.run_id) for name, run in runs.items()}
        train_losses = {name: run_loader.read_train_losses(run.run_id) for name, run in runs.items()}
    except InputError as error:
        console.warn(f"figures of pairs can't be drawn: {error}")
        return []
    split = next(s for s in reversed(splits) if all((table["split"] == s).any() for table in tables.values()))
    pairs = {name: table[table["split"] == split] for name, table in tables.items()}
    losses = {name: table["squared_error"].to_numpy() for name, table in pairs.items()}
    predictions = {name: (table["label"].to_numpy(), table["predicted"].to_numpy()) for name, table in pairs.items()}
    styles = ablation_plots.alpha_styles(rows, best)
    seed, count = rows[0].recipe.seed, len(pairs[alpha_label(best)])
    label = f"label ({best.recipe.label_transform} of the human score)"
    title = f"Predicted cosine on {split} ({count:,} pairs)"
    return [
        ReportFigure(
            "predicted_against_label",
            f"Mean predicted cosine of all {split} pairs by label, seed {seed}; the bands hold the middle 80% of the "
            f"pairs.{note}",
            run_plots.plot_predictions({title: predictions}, label, styles, [alpha_label(best)]),
        ),
        ReportFigure(
            "pair_losses",
            f"Distribution of the squared errors of all train and {split} pairs, seed {seed}.{note}",
            run_plots.plot_pair_losses(
                {"Squared errors on train": train_losses, f"Squared errors on {split}": losses}, styles
            ),
        ),
    ]


def table_figures(tables: Sequence[AblationTable], table: AblationTable) -> list[ReportFigure]:
    """Figures of all compressors of a table."""
    return [*_quality_figures(tables, table), *_dim_figures(table)]


def _quality_figures(tables: Sequence[AblationTable], table: AblationTable) -> list[ReportFigure]:
    """Search quality of a table and of all others on the same data, which need not share labels and loss."""
    task, key = table.task, table.comparison_key
    comparable = [t for t in tables if t.comparison_key[:3] == key[:3] and t.task == task and t is not table]
    rows = search_table.rows_from_tables([table, *comparable])
    note = " Includes the compressors of the other tables on these data." if comparable else ""
    queries = "Queries and documents are stored alike." if task == SIMILARITY else "Queries are floats."
    stored = f"{queries} Dots are ways to store vectors."
    name, both = capitalized_name(task.selection), task.selection != "neighbor_recall"
    figures = [
        ReportFigure(
            "quality_against_bytes",
            f"{name}{' and neighbor recall' * both} against bytes per vector. {stored} Lines join the best of every "
            "size on dev, without sizes worse than smaller ones. TwinSqueeze: each compressor at its best alpha on "
            f"dev; the others are baselines.{note}",
            search_table.quality_figure(rows)(),
        )
    ]
    if both:
        caption = (
            f"{name} against neighbor recall; numbers are bytes per vector. {stored} Lines join what no other of the "
            f"same method and size or less exceeds on dev in both.{note}"
        )
        figure = search_table.pareto_figure(rows)
        figures.append(ReportFigure(f"{task.selection}_against_neighbor_recall", caption, figure))
    return figures


def _dim_figures(table: AblationTable) -> list[ReportFigure]:
    """The selection score against dim, a line per alpha, if the best compressor was trained at several dims."""
    rows = [
        row
        for row in sorted(table.rows, key=lambda row: (row.recipe.alpha, row.recipe.dim))
        if row.family.model_copy(update={"dim": table.best.recipe.dim}) == table.best.family
    ]
    alphas = {row.recipe.alpha: row for row in rows if row.recipe.dim == table.best.recipe.dim}
    lines: dict[str, dict[float, Mapping[str, SeedStats]]] = {
        alpha_label(row): {r.recipe.dim: r.scores for r in rows if r.recipe.alpha == row.recipe.alpha}
        for row in sorted(shown_alphas(list(alphas.values()), table.best), key=lambda row: row is not table.best)
    }
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return []
    for dim in sorted({baseline.dim for baseline in table.score_baselines if baseline.dim is not None}):
        for label, baseline in _series_baselines(table.score_baselines, {dim}, table.task).items():
            lines.setdefault(label, {})[dim] = baseline.scores
    score = table.task.selection
    references = list(_series_baselines(table.score_baselines, {None}, table.task).values())
    figure = ablation_plots.plot_score(score, "dim", lines, references, _split_titles(rows))
    for axes in figure.axes:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
    caption = (
        f"{capitalized_name(score)} against the output dimension, with 95% intervals of the mean over seeds. PCA: the "
        "better on dev of plain and whitened PCA."
    )
    return [ReportFigure(f"{score}_against_dim", caption, figure)]


def _series_baselines(baselines: Iterable[BaselineRow], dims: set[int | None], task: Task) -> dict[str, BaselineRow]:
    """The best baseline on dev of every series of figures, among those of some dims; None: of no dim."""
    metric = selection_metric(task)
    found = [row for row in baselines if row.dim in dims and metric in row.scores]
    found.sort(key=lambda row: row.scores[metric].mean)
    return {label: row for row in found if (label := method_plots.find_series(row.family))}
