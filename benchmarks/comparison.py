"""How long `compare` takes over many runs: `python -m benchmarks.comparison`.

A small grid is trained on the demo, and its runs are copied with other seeds until there are as many as asked for. What
is timed is the command as users start it, imports included: to the table, and to the end with figures and report. The
ratio is to reading the same runs with one call of `mlflow.search_runs`, imports included as well.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import mlflow
from mlflow.entities import Metric, Param, RunTag
from tqdm import tqdm

from benchmarks.results import report

ROOT = Path(__file__).parent.parent
SEARCH = "import mlflow; print(len(mlflow.search_runs(['0'])))"


@click.command()
@click.option("--runs", default=1000, show_default=True, help="Finished runs to compare.")
@click.option("--rounds", default=5, show_default=True, help="Rounds, in which both are timed in turn.")
def main(runs: int, rounds: int) -> None:
    """Prints the time to the table and to the end, relative to reading the runs alone."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
        module = [sys.executable, "-m", "twinsqueeze"]
        grid = ["ablation", "--grid", str(ROOT / "experiments" / "quick.yaml")]
        subprocess.run([*module, *grid], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        _copy(mlflow.MlflowClient(uri), runs)

        searches: list[float] = []
        tables: list[float] = []
        wholes: list[float] = []
        for _ in range(rounds):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", SEARCH], cwd=folder, env=environment, check=True)
            search = time.perf_counter() - start
            start = time.perf_counter()
            with subprocess.Popen(
                [*module, "compare"],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as process:
                assert process.stdout
                process.stdout.readline()
                table = time.perf_counter() - start
                process.stdout.read()
            whole = time.perf_counter() - start
            searches.append(search)
            tables.append(table / search)
            wholes.append(whole / search)
    unit = "times the time of `mlflow.search_runs`"
    report(f"`mlflow.search_runs` over {runs:,} runs on sqlite", searches, "s")
    report(f"`compare` over {runs:,} runs, to the table", tables, unit)
    report(f"`compare` over {runs:,} runs, to the end", wholes, unit)


def _copy(client: mlflow.MlflowClient, wanted: int) -> None:
    trained = client.search_runs(["0"], "tags.`twinsqueeze.kind` = 'train'")
    for number in tqdm(range(wanted - len(trained)), desc="copying runs"):
        source = trained[number % len(trained)]
        run = client.create_run("0", run_name=source.info.run_name)
        seed = 2 + number
        params = [Param(k, str(seed) if k == "seed" else v) for k, v in source.data.params.items()]
        metrics = [Metric(k, v + 1e-6 * seed, 0, 0) for k, v in source.data.metrics.items()]
        tags = [RunTag(k, v) for k, v in source.data.tags.items() if k.startswith("twinsqueeze")]
        client.log_batch(run.info.run_id, metrics, params, tags)
        client.set_terminated(run.info.run_id)


if __name__ == "__main__":
    main()
