"""Runs the benchmarks one after the other and writes experiments/results/speed.csv: `python -m benchmarks.all`.

Takes about 40 minutes, on a machine that does nothing else. A benchmark that fails leaves its rows as they were.
"""

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.results import FILE
from twinsqueeze.utils.compute import describe_cpu

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "experiments" / "results" / "speed.csv"
TITLES = ("what", "measured", "rounds", "command", "machine", "commit")
# The arguments of each; {} is the dataset.
BENCHMARKS = {
    "training": "--dataset {}",
    "encoding": "--dataset {}",
    "commands": "--dataset {}",
    "compress": "",
    "comparison": "",
    "checkpointing": "--dataset {}",
    "own_vectors": "--dataset {}",
    "ablation": "--dataset {}",
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--dataset", default="stsb", show_default=True, help="As for `twinsqueeze main`.")
def main(names: tuple[str, ...], dataset: str) -> None:
    """Runs the benchmarks NAMES, by default all, and replaces their rows of the table."""
    git = shutil.which("git") or "git"
    commit = subprocess.check_output([git, "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    for name in names or BENCHMARKS:
        shown = f"`python -m benchmarks.{name} {BENCHMARKS[name].format('stsb')}".rstrip() + "`"
        command = [sys.executable, "-m", f"benchmarks.{name}", *BENCHMARKS[name].format(dataset).split()]
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "rows.csv")
            if subprocess.run(command, cwd=ROOT, env=os.environ | {FILE: str(file)}, check=False).returncode:
                print(f"{name} failed", file=sys.stderr)
                continue
            with file.open(encoding="utf-8", newline="") as rows:
                _replace_rows(shown, [[*row, shown, describe_cpu(), commit] for row in csv.reader(rows)])


def _replace_rows(command: str, rows: list[list[str]]) -> None:
    with TABLE.open(encoding="utf-8", newline="") as file:
        _, *before = csv.reader(file)
    others = [row for row in before if row[TITLES.index("command")] != command]
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([TITLES, *others, *rows])


if __name__ == "__main__":
    main()
