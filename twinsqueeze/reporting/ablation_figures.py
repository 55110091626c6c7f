"""The figures of an ablation's tables, drawn from what their runs have recorded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from twinsqueeze.errors import InputError
from twinsqueeze.reporting import ablation_plots, run_loader, search_table
from twinsqueeze.reporting.ablation_plots import PointsWithCI, SeedCurves
from twinsqueeze.reporting.ablation_table import EVALUATED_SPLITS, AblationTable, BaselineRow, Row, TrainedRun
from twinsqueeze.reporting.formats import ReportFigure, Section
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.utils import console
from twinsqueeze.utils.signals import check_interrupted

# Of a table, since every one of them has figures of its own; the largest come first.
MOST_FAMILIES = 12
Advance = Callable[[int], None]


def build_sections(tables: Sequence[AblationTable]) -> list[Section]:
    """The tables with their figures, for which curves and predictions are read from the runs."""
    families = [_families(table) for table in tables]
    total = sum(len(row.runs) for members in families for rows in members.values() for row in rows)
    done = 0
    sections = []
    with console.progress("reading", "run") as advance:

        def read(runs: int) -> None:
            nonlocal done
            check_interrupted()
            done += runs
            advance(done, max(total, 1), {})

        for table, members in zip(tables, families, strict=True):
            shown = [picture for name, rows in members.items() for picture in _of_family(table, name, rows, read)]
            sections.append(Section(table, [*_quality(tables, table), *_against_dim(table), *shown]))
    return sections


def _families(table: AblationTable) -> Mapping[str, Sequence[Row]]:
    """Families of several strengths of noise, the largest first."""
    found = {name: rows for name, rows in table.families().items() if len(rows) > 1}
    ordered = sorted(found, key=lambda name: -sum(len(row.runs) for row in found[name]))
    if len(ordered) > MOST_FAMILIES:
        console.info(
            f"{table.title}: figures are drawn for {MOST_FAMILIES} of {len(ordered)} compressors, those with most runs"
        )
    return {name: found[name] for name in ordered[:MOST_FAMILIES]}


def _of_family(table: AblationTable, name: str, rows: Sequence[Row], read: Advance) -> list[ReportFigure]:
    """The figures of rows that differ by alpha alone; the first has the least noise."""
    splits = [split for split in EVALUATED_SPLITS if all(row.values(f"{split}/spearman") for row in rows)]
    shown = [
        _training_loss(rows, read),
        _against_alpha(table, name, rows, splits),
        *_pair_figures(rows, splits),
        _train_against(rows, splits[-1]),
    ]
    stem = "" if len(table.families()) == 1 else f"{name.replace(', ', '-').replace(' ', '')}-"
    return [replace(one, name=f"{stem}{one.name}", caption=f"{name}. {one.caption}") for one in shown]


def _training_loss(rows: Sequence[Row], read: Advance) -> ReportFigure:
    curves: dict[str, dict[float, SeedCurves]] = {"train/loss": {}, "train/clean_loss": {}}
    for row in rows:
        for metric, of_alpha in curves.items():
            of_alpha[row.recipe.alpha] = _curves(row.runs, metric)
        read(len(row.runs))
    return ReportFigure(
        "training_loss",
        "Train loss with noise, as trained on, and without; the mean of the seeds in a band from the lowest to the "
        "highest.",
        ablation_plots.training_losses(*curves.values()),
    )


def _against_alpha(table: AblationTable, name: str, rows: Sequence[Row], splits: Sequence[str]) -> ReportFigure:
    points = {split: _points(row.scores[f"{split}/spearman"] for row in rows) for split in splits}
    lines = {name: ([row.recipe.alpha for row in rows], points)}
    return ReportFigure(
        "spearman_against_alpha",
        "Spearman against alpha with 95% intervals of the mean over seeds; what needs no labels as lines.",
        ablation_plots.spearman_against("alpha", lines, _lines(table, splits, rows[0])),
    )


def _pair_figures(rows: Sequence[Row], splits: Sequence[str]) -> list[ReportFigure]:
    """Figures of pairs, for one seed of every alpha; on test, or on dev where the runs did not predict test."""
    base, seed = f"alpha {rows[0].recipe.alpha:g}", rows[0].runs[0].recipe.seed
    try:
        tables = {row.recipe.alpha: run_loader.read_predictions(row.runs[0]) for row in rows}
        on_train = {row.recipe.alpha: run_loader.read_train_losses(row.runs[0]) for row in rows}
    except InputError as error:
        console.warn(f"figures of pairs can't be drawn: {error}")
        return []
    split = next(s for s in reversed(splits) if all((frame["split"] == s).any() for frame in tables.values()))
    frames = {alpha: frame[frame["split"] == split] for alpha, frame in tables.items()}
    return [
        ReportFigure(
            "predicted_against_label",
            f"Predicted cosine against the label for {ablation_plots.SAMPLE} pairs of {split}, seed {seed}: each "
            f"alpha beside {base}, and all together.",
            ablation_plots.predicted_against_label(
                next(iter(frames.values()))["label"].to_numpy(),
                {alpha: frame["predicted"].to_numpy() for alpha, frame in frames.items()},
            ),
        ),
        ReportFigure(
            "pair_losses",
            f"Squared errors of train and {split} pairs on log scales, seed {seed}: each alpha beside {base}.",
            ablation_plots.pair_losses(
                {
                    alpha: {"train": on_train[alpha], split: frame["squared_error"].to_numpy()}
                    for alpha, frame in frames.items()
                }
            ),
        ),
    ]


def _train_against(rows: Sequence[Row], split: str) -> ReportFigure:
    losses = {"with noise": "train/loss", "without noise": "train/clean_loss"}
    measures = {"mean squared error": f"{split}/mse", "Spearman": f"{split}/spearman"}
    return ReportFigure(
        f"train_against_{split}",
        f"Final train loss against {split}, means and 95% intervals over seeds. If a higher train loss went with "
        "better generalisation, the error would fall and Spearman rise from left to right.",
        ablation_plots.train_against_test(
            [row.recipe.alpha for row in rows],
            {name: _points(row.scores[metric] for row in rows) for name, metric in losses.items()},
            {name: _points(row.scores[metric] for row in rows) for name, metric in measures.items()},
            split,
        ),
    )


def _quality(tables: Sequence[AblationTable], table: AblationTable) -> list[ReportFigure]:
    """What vectors keep, of a table and all others on the same data: these scores know no labels and no objective."""
    alike = [other for other in tables if other.kind[:3] == table.kind[:3] and other is not table]
    rows = search_table.rows_from_tables([table, *alike])
    beside = " Compressors of the other tables on these data stand beside." if alike else ""
    return [
        ReportFigure(
            "quality_against_bytes",
            "What is kept against the bytes of a vector: Spearman, neighbours, and partners among the ten nearest. "
            f"Ours with each compressor's best alpha by Spearman on dev; hollow squares are at int8.{beside}",
            search_table.picture(rows)(),
        ),
        ReportFigure(
            "similarity_against_neighbours",
            "Spearman against the share of a sentence's ten nearest neighbours that are kept, on dev and test, and "
            f"the upper right of both again, larger. The numbers are bytes a vector.{beside}",
            search_table.pareto_figure(rows),
        ),
    ]


def _against_dim(table: AblationTable) -> list[ReportFigure]:
    """Spearman against dim, a line an alpha, where families differ in dim."""
    of_alpha: dict[float, dict[int, Row]] = {}
    for row in table.rows:
        if row.family.model_copy(update={"dim": 32}) == table.best.family.model_copy(update={"dim": 32}):
            of_alpha.setdefault(row.recipe.alpha, {})[row.recipe.dim] = row
    of_alpha = {alpha: dict(sorted(rows.items())) for alpha, rows in sorted(of_alpha.items()) if len(rows) > 1}
    splits = [
        split
        for split in EVALUATED_SPLITS
        if all(row.values(f"{split}/spearman") for rows in of_alpha.values() for row in rows.values())
    ]
    if not of_alpha:
        return []
    lines: dict[str, tuple[Sequence[float], Mapping[str, PointsWithCI]]] = {
        f"alpha {alpha:g}": (
            list(rows),
            {split: _points(row.scores[f"{split}/spearman"] for row in rows.values()) for split in splits},
        )
        for alpha, rows in of_alpha.items()
    }
    methods: dict[str, list[BaselineRow]] = {}
    for baseline in table.plain_baselines:
        if baseline.dim is not None:
            methods.setdefault(baseline.family, []).append(baseline)
    for method, found in methods.items():
        points = {split: _points(baseline.scores[f"{split}/spearman"] for baseline in found) for split in splits}
        lines[method] = [baseline.dim or 0 for baseline in found], points
    level = {
        split: {b.name: b.scores[f"{split}/spearman"].mean for b in table.plain_baselines if b.dim is None}
        for split in splits
    }
    return [
        ReportFigure(
            "spearman_against_dim",
            "Spearman against the numbers in a compressed vector, with 95% intervals of the mean over seeds.",
            ablation_plots.spearman_against("dim", lines, level),
        )
    ]


def _lines(table: AblationTable, splits: Sequence[str], row: Row) -> dict[str, dict[str, float]]:
    """Spearman of what needs no labels, at the dim of a row."""
    return {
        split: {
            baseline.name: baseline.scores[f"{split}/spearman"].mean
            for baseline in table.plain_baselines
            if baseline.dim in (None, row.recipe.dim) and f"{split}/spearman" in baseline.scores
        }
        for split in splits
    }


def _points(spreads: Iterable[SeedStats]) -> PointsWithCI:
    collected = list(spreads)
    low, high = zip(*(spread.interval for spread in collected), strict=True)
    return PointsWithCI(np.array([spread.mean for spread in collected]), np.array(low), np.array(high))


def _curves(runs: Sequence[TrainedRun], metric: str) -> SeedCurves:
    """The curve of every run at the epochs that all of them have."""
    read = [run_loader.read_curve(run, metric) for run in runs]
    epochs = np.array(sorted(set.intersection(*(set(steps) for steps, _ in read))))
    return SeedCurves(epochs, np.stack([values[np.isin(steps, epochs)] for steps, values in read]))
