"""How long users wait for commands: `python -m benchmarks.commands --dataset stsb`.

Cold: in an empty working directory with an empty cache. Warm: once more with another seed, so that the sentences and
the scores of the baselines are cached. Each is a process of its own, imports included.
"""

import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import click

from benchmarks.results import report

ROOT = Path(__file__).parent.parent
MAIN = [sys.executable, "-m", "twinsqueeze", "main"]
BEST = [sys.executable, "-m", "twinsqueeze", "best"]
RUN = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", "-P", "epochs=1"]


@click.command()
@click.option("--dataset", default="auto", show_default=True, help="As for `twinsqueeze main`.")
@click.option("--rounds", default=5, show_default=True, help="Repetitions of each command.")
def main(dataset: str, rounds: int) -> None:
    """Prints seconds as medians over rounds."""
    path = Path(dataset)
    dataset = str(path.resolve()) if path.exists() else dataset
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(i)) for i in range(rounds)]
        report("`main`, cold", [_seconds([*MAIN, "--dataset", dataset], place) for place in places], "s", 1)
        seeds = count(1)
        for what, command, options in (
            ("`main`, warm", MAIN, ["--dataset", dataset, "--seed"]),
            ("`mlflow run` of one epoch, warm", RUN, ["-P", f"dataset={dataset}", "-P"]),
            ("`best`, cold but for the sentences of the dataset", BEST, ["--dataset", dataset, "--seed"]),
            ("`best`, warm", BEST, ["--dataset", dataset, "--seed"]),
        ):
            seconds = []
            for place in places:
                seed = str(next(seeds))
                seconds.append(_seconds([*command, *options, f"seed={seed}" if command is RUN else seed], place))
            report(what, seconds, "s", 1)


def _seconds(command: list[str], place: Path) -> float:
    """Runs a command in a working directory with a cache of its own."""
    place.mkdir(exist_ok=True)
    variables = {"TWINSQUEEZE_CACHE": str(place / "cache"), "TWINSQUEEZE_STATE": str(place / "state")}
    variables |= {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run(command, cwd=place, env=os.environ | variables, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
