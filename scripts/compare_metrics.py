"""Compares the metrics of the trainings of two tracking stores, to show that a change keeps every digit.

Run the same commands in two checkouts, each with a tracking store of its own, then:

    python scripts/compare_metrics.py sqlite:///before.db sqlite:///after.db
"""

import re
import sys

import click
import mlflow
from mlflow.entities import Run

# Patterns of metrics that were renamed, with their replacements.
RENAMED = (
    ("neighbours_kept", "neighbor_recall"),
    ("search_cost/bytes_a_vector", "search/bytes_per_vector"),
    (r"^(train|dev|test)/(recall_at_\d+|mrr|\w+_(?:int8|binary|asymmetric))$", r"search/\1_\2"),
)


def trainings(uri: str) -> list[Run]:
    """Returns the finished trainings of the default experiment, in the order of their start."""
    client = mlflow.MlflowClient(uri)
    found = client.search_runs(["0"], "tags.`twinsqueeze.kind` = 'train' and attributes.status = 'FINISHED'")
    return sorted(found, key=lambda run: run.info.start_time)


def metrics(run: Run) -> dict[str, float]:
    """Returns a run's metrics under their new names, except times."""
    values = {}
    for name, value in run.data.metrics.items():
        for old, new in RENAMED:
            name = re.sub(old, new, name)  # noqa: PLW2901 - renamed step by step
        if not name.startswith("time/"):
            values[name] = value
    return values


@click.command()
@click.argument("before")
@click.argument("after")
def main(before: str, after: str) -> None:
    """Prints dev and test Spearman of both stores, and every metric that differs. Exits with 1 if any does."""
    pairs = list(zip(trainings(before), trainings(after), strict=True))
    differing = 0
    for old_run, new_run in pairs:
        old, new = metrics(old_run), metrics(new_run)
        print(f"{old_run.info.run_name} | {new_run.info.run_name}: {len(old)} and {len(new)} metrics")
        for name in ("dev/spearman", "test/spearman"):
            print(f"  {name:40} {old[name]!r:24} {new[name]!r}")
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                differing += 1
                print(f"  DIFFERENT {name:30} {old.get(name)!r:24} {new.get(name)!r}")
    print(f"{len(pairs)} trainings, {differing} different metrics")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
