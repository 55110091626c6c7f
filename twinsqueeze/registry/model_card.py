"""Renders the model card: use, training data, recipe, scores next to baselines, license and limitations."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from math import isnan, nan

from jinja2 import Environment

from twinsqueeze.model.checkpoint import CheckpointMetadata
from twinsqueeze.model.sentence_transformer import TextModelInfo
from twinsqueeze.recipe import FLOAT_QUERIES, Recipe, bytes_per_vector
from twinsqueeze.reporting.ablation_table import (
    ASYMMETRIC,
    COLUMN_NAMES,
    EVALUATED_SPLITS,
    PRECISIONS,
    BaselineRow,
    Row,
    TrainedRun,
    metric_name,
    num_digits,
)
from twinsqueeze.reporting.formats import markdown_table
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.task import NO_ENCODER, TASKS, Task
from twinsqueeze.utils.files import public_name
from twinsqueeze.utils.text import escape_markdown

NAMES = ("encoder", "dataset")  # fields that may be local paths


def metric_sign(metric: str) -> int:
    """Return -1 for metrics where lower is better, such as "dev/mse", else 1."""
    return -1 if metric.partition("/")[2] in {"mse", "mae"} else 1


@dataclass(frozen=True)
class ModelSelection:
    """The best run of an experiment: the best seed of the best recipe by a metric, such as "dev/spearman"."""

    metric: str
    row: Row  # all seeds of the recipe
    run: TrainedRun
    dev_digest: str
    num_recipes: int
    baselines: Sequence[BaselineRow]  # measured on the same data
    comparison: str = ""  # a sentence on the champion

    @property
    def summary(self) -> str:
        """One sentence on the selected recipe and seed."""
        score = self.row.scores[self.metric]
        recipes = "The only recipe" if self.num_recipes == 1 else f"Best of {self.num_recipes} recipes"
        seeds = "one seed" if score.count == 1 else f"{score.count} seeds"
        return (
            f"{recipes} by mean {self.metric}: {score.format()} over {seeds}; best seed {self.run.recipe.seed}, "
            f"run {self.run.run_id}."
        )

    @property
    def same_dim_baselines(self) -> list[BaselineRow]:
        """The baselines that have the model's dimension or none."""
        return [baseline for baseline in self.baselines if baseline.dim in {None, self.row.recipe.dim}]

    @property
    def better_baselines(self) -> list[BaselineRow]:
        """The baselines that beat the recipe's mean in at most as many bytes."""
        sign, mean = metric_sign(self.metric), self.row.scores[self.metric].mean
        small = [baseline for baseline in self.same_dim_baselines if baseline.bytes <= self.row.recipe.bytes_per_vector]
        return [b for b in small if self.metric in b.scores and sign * b.scores[self.metric].mean > sign * mean]


def render_model_card(
    metadata: CheckpointMetadata,
    input_dim: int,
    text_model: TextModelInfo | None,
    *,
    run_id: str | None = None,
    selection: ModelSelection | None = None,
) -> str:
    """Render a model card, Markdown. It leaves out what is None: without a selection, also the scores."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # noqa: S701 - no HTML
    environment.filters |= {"md": escape_markdown, "quote": partial(json.dumps, ensure_ascii=False)}
    template = environment.from_string(files(__package__).joinpath("model_card.md.jinja").read_text(encoding="utf-8"))
    task = TASKS[metadata.task]
    intervals = (task.selection, *(score for score in reversed(task.interval_scores) if score != task.selection))
    return template.render(
        metadata=metadata,
        task=task,
        has_encoder=metadata.recipe.encoder != NO_ENCODER,
        encoder=public_name(metadata.recipe.encoder),
        fields=metadata.recipe.model_dump() | {name: public_name(getattr(metadata.recipe, name)) for name in NAMES},
        run_id=run_id,
        input_dim=input_dim,
        input_bytes=f"{bytes_per_vector('float32', input_dim):,}",
        sizes=vector_sizes(metadata.recipe),
        float_queries=FLOAT_QUERIES,
        text_model=text_model,
        selection=selection,
        scores_table=selection and _scores_table(selection),
        precision_table=selection and precision_table(selection.row),
        interval_columns=[(f"{s} {COLUMN_NAMES[n]}", f"{s}_{n}") for s in EVALUATED_SPLITS for n in intervals],
    )


def vector_sizes(recipe: Recipe) -> dict[str, int]:
    """Return the bytes of a compressed vector by precision: as trained first, then as float32, int8 and binary."""
    return {recipe.precision: recipe.bytes_per_vector} | {p: bytes_per_vector(p, recipe.dim) for p in PRECISIONS}


def _scores_table(selection: ModelSelection) -> str:
    row, run, size = selection.row, selection.run, selection.run.recipe.bytes_per_vector
    rows = [(f"this model, seed {run.recipe.seed}", size, run.metrics)]
    if len(row.runs) > 1:
        rows.append((f"its recipe, mean of {len(row.runs)} seeds", size, _means(row)))
    rows += [(b.name, b.bytes, _means(b)) for b in selection.same_dim_baselines if not b.search_only]
    return _format_table("", run.task, run.task.main_scores, rows)


def precision_table(row: Row) -> str | None:
    """Render the mean scores of a recipe's vectors at other precisions; None if these were not measured."""
    names = {precision: (precision, bytes_per_vector(precision, row.recipe.dim)) for precision in PRECISIONS[1:]}
    names[ASYMMETRIC] = f"{row.recipe.precision}, {FLOAT_QUERIES}", row.recipe.bytes_per_vector
    scores = tuple(dict.fromkeys((row.task.selection, "neighbor_recall")))
    rows = []
    for precision, (name, size) in names.items():
        stats = {f"{s}/{n}": row.scores.get(metric_name(s, n, precision)) for s in EVALUATED_SPLITS for n in scores}
        means = {metric: found.mean for metric, found in stats.items() if found}
        if not isnan(means.get(f"dev/{row.task.selection}", nan)):
            rows.append((name, size, means))
    return _format_table("its recipe as", row.task, scores, rows) if rows else None


def _means(row: Row | BaselineRow) -> dict[str, float]:
    return {metric: score.mean for metric, score in row.scores.items()}


def _format_table(
    title: str, task: Task, scores: Iterable[str], rows: Iterable[tuple[str, int, Mapping[str, float]]]
) -> str:
    """Render rows of name, bytes per vector and metrics, with a column for each split and score."""
    columns = [(split, score) for split in EVALUATED_SPLITS for score in scores]
    cells = []
    for name, size, metrics in rows:
        values = [
            SeedStats.of([metrics.get(f"{split}/{score}", nan)]).format(num_digits(task, score))
            for split, score in columns
        ]
        cells.append([name, f"{size:,}", *values])
    return markdown_table([title, "bytes", *(f"{split} {COLUMN_NAMES[score]}" for split, score in columns)], cells)
