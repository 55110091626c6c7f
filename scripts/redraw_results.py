"""Redraws the figures of scored pairs that need only the table.csv of `compare`, after a change of the plots.

    python scripts/redraw_results.py experiments/results/neftune

Figures of single runs, such as training_loss.png, need the tracking store: `compare --output` draws them.
"""

import re
from collections import defaultdict
from collections.abc import Hashable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pandas as pd

from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.ablation_figures import family_prefix, score_figures, table_figures
from twinsqueeze.reporting.ablation_table import AblationTable, BaselineRow, ComparisonKey, Row, TrainedRun
from twinsqueeze.reporting.statistics import MeanDifference, SeedStats

COMPRESSOR = re.compile(
    r"(?P<architecture>mlp|linear)(?P<dim>\d+)(-product(?P<subvector_dim>\d+)(x(?P<codes_per_subvector>\d+))?|(?P<sign>-sign))?"
)

SEARCH_ONLY = re.compile("FAISS|int8|, signs|float queries")  # rows of the search table alone


def read_recipe(record: dict[Hashable, Any]) -> Recipe:
    """Returns the recipe of a row as far as its name and columns tell."""
    name, *fields = record["model"].split(", ")
    found = COMPRESSOR.fullmatch(name)
    assert found, record["model"]
    values = {field: text for field, text in found.groupdict().items() if text and field != "sign"}
    values["quantizer"] = "product" if found["subvector_dim"] else "sign" if found["sign"] else "none"
    values |= {field: record[field] for field in ("alpha", "epochs", "batch_size", "lr")}
    return Recipe.parse(values | dict(field.split() for field in fields))


def read_row(record: dict[Hashable, Any], scores: dict[str, SeedStats], key: ComparisonKey) -> Row:
    """Returns the row of a compressor; its runs have no metrics of their own."""
    recipe = read_recipe(record)
    runs = [
        TrainedRun(run_id, "", datetime.now(UTC), recipe, key, "", None, {}) for run_id in str(record["runs"]).split()
    ]
    gains = {
        split: MeanDifference(*(record[f"{split}/spearman_gain{end}"] for end in ("", "_low", "_high")))
        for split in ("dev", "test")
        if pd.notna(record.get(f"{split}/spearman_gain"))
    }
    return Row(record["model"], recipe.model_copy(update={"alpha": 0.0}), runs, gains, scores)


def read_tables(frame: pd.DataFrame) -> list[AblationTable]:
    """Returns the tables of a table.csv, as far as figures need them."""
    metrics = [column.removesuffix("_sd") for column in map(str, frame) if column.endswith("_sd")]
    rows, baselines = defaultdict(list), defaultdict(list)
    for record in frame.to_dict("records"):
        loss = record["data"].rpartition(" ")[2]
        key = ComparisonKey(record["dataset_digest"], None, "", record["data"].rpartition("labels ")[2], loss)
        trained = pd.notna(record["seeds"])
        scores = {
            metric: SeedStats(record[metric], record[f"{metric}_sd"], int(record["seeds"]) if trained else 1)
            for metric in metrics
            if trained or pd.notna(record[metric])
        }
        if trained:
            rows[record["data"], key].append(read_row(record, scores, key))
        else:
            dim = int(record["dim"]) if pd.notna(record["dim"]) else None
            name = record["model"]
            baselines[record["data"], key].append(
                BaselineRow(name, dim, int(record["bytes"]), scores, bool(SEARCH_ONLY.search(name)))
            )
    return [AblationTable(key, data, None, rows[data, key], baselines[data, key], ()) for data, key in rows]


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """Redraws the figures that are in each folder from its table.csv."""
    for folder in folders:
        frame = pd.read_csv(folder / "table.csv")
        tables = read_tables(frame) if "dev/spearman" in frame and "data" in frame else []
        for i, table in enumerate(tables, 1):
            figures = {figure.name: figure for figure in table_figures(tables, table)}
            for name, rows in table.families().items():
                if len(rows) > 1:
                    for figure in score_figures(table, rows):
                        figures[f"{family_prefix(table, name)}{figure.name}"] = figure
            for name, figure in figures.items():
                path = folder / f"{f'{i}-' if len(tables) > 1 else ''}{name}.png"
                if path.exists():
                    path.write_bytes(figure.png)
                    print(path)


if __name__ == "__main__":
    main()
