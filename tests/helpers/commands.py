"""The command line, in this process or in one of its own, with a tracking store and a cache of the test's own."""

import io
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import projects

from tests.helpers import shortcuts
from tests.helpers.forks import SET_BY_IMPORTS, ForkedProcess
from twinsqueeze import cli
from twinsqueeze.utils import signals

ROOT = Path(__file__).parents[2]
PROJECT = projects.utils.load_project(str(ROOT))


@dataclass(frozen=True)
class Workplace:
    """Where commands are run: a working directory, which gets mlflow.db, and the environment."""

    folder: Path
    cache: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        return kept | {
            "TWINSQUEEZE_CACHE": str(self.cache),
            "TWINSQUEEZE_STATE": str(self.folder / "state"),
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": self.uri,
            "PYTHONPATH": str(ROOT),
        }

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.uri)

    def download(self, run_id: str, path: str) -> Path:
        """A run's artifact."""
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, tracking_uri=self.uri))

    def model(self, run: mlflow.entities.Run) -> Path:
        """The folder of a run's model."""
        logged = self.client.get_logged_model(run.outputs.model_outputs[0].model_id)
        return Path(mlflow.artifacts.download_artifacts(logged.artifact_location))

    def checkpoint(self, run: mlflow.entities.Run) -> Path:
        """The file with the weights of a run's model."""
        (file,) = self.model(run).rglob("*.safetensors")
        return file

    def command(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in this process, which saves the seconds of the imports; `variables` of the environment."""
        environment = self.environment | variables
        output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
            for name in set(os.environ) - set(environment) - set(SET_BY_IMPORTS):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            if shortcuts.DRAW_FIGURES not in environment:
                shortcuts.skip_drawing(patch)
            patch.setattr(sys, "argv", ["twinsqueeze", *arguments])
            patch.setattr(signals, "raise_on_signals", lambda: None)
            patch.setattr(sys, "excepthook", sys.excepthook)
            patch.setattr(cli, "exit_without_threads", sys.exit)
            try:
                cli.run()
                code = 0
            except SystemExit as exit_:
                code = exit_.code
        printed = (stream.buffer.getvalue().decode() for stream in (output, errors))
        return subprocess.CompletedProcess(arguments, code, *printed)

    def project_run(self, experiment_id: str, entry_point: str, **parameters: str) -> subprocess.CompletedProcess[str]:
        """Makes a run as `mlflow run` does, and runs its command, parsed as a shell would, in this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.uri)
            run = projects.utils._create_run(str(ROOT), experiment_id, str(ROOT), None, entry_point, parameters)
        command = PROJECT.get_entry_point(entry_point).compute_command(parameters, None)
        return self.command(*shlex.split(command)[3:], MLFLOW_RUN_ID=run.info.run_id)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as `command` does, which must succeed."""
        done = self.command(*arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done

    def start(self, *arguments: str, module: str = "twinsqueeze", **variables: str) -> ForkedProcess:
        """Starts a command in a session of its own, so that signals reach only whom they are sent to."""
        return ForkedProcess(["-m", module, *arguments], self.environment | variables, self.folder)

    def copy_to(self, folder: Path, *, artifacts: bool = False) -> "Workplace":
        """A workplace whose store begins as this one; its runs keep their artifacts here unless `artifacts`."""
        shutil.copy(self.folder / "mlflow.db", folder)
        locations = {"experiments": "artifact_location"}
        if artifacts:
            shutil.copytree(self.folder / "mlruns", folder / "mlruns")
            locations |= {"runs": "artifact_uri", "logged_models": "artifact_location"}
        with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
            for table, location in locations.items():
                new = f"replace({location}, '{self.folder}', '{folder}')"
                database.execute(f"UPDATE {table} SET {location} = {new}")
        return Workplace(folder, self.cache)

    def runs(self, kind: str | None = None) -> list[mlflow.entities.Run]:
        """All runs or those of a kind, the newest first."""
        return list(self.client.search_runs(["0"], f"tags.twinsqueeze.kind = '{kind}'" if kind else ""))


def together(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], folder: Path) -> list[str]:
    """Lets Python programs (-c) begin at once and waits for them; what they printed.

    They print a line when they are ready, and wait for one before they begin.
    """
    with ExitStack() as stack:
        started = [
            stack.enter_context(ForkedProcess(command, environment, folder, stdin=True))
            for command, environment in zip(commands, environments, strict=True)
        ]
        for process in started:
            stack.callback(process.kill)
            process.stdout.readline()
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        finished = [process.finish() for process in started]
    assert not [errors for _, errors in finished if "Traceback" in errors]
    return [output for output, _ in finished]
