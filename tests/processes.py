"""Real processes of the command line, each with a tracking store and a cache of the test's own."""

import io
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from twinsqueeze import cli
from twinsqueeze.utils import signals

ROOT = Path(__file__).parent.parent
SUBJECTS = [
    "a cat",
    "the old man",
    "my sister",
    "a small dog",
    "the teacher",
    "our neighbour",
    "a tired nurse",
    "the cook",
]
VERBS = ["is eating", "carries", "has lost", "wants to buy", "is painting", "throws away"]
OBJECTS = ["an apple", "a red chair", "the newspaper", "a box of nails", "some bread", "the kitchen table"]


def write_pairs(folder: Path, *, train: int = 60, dev: int = 24, test: int = 24) -> Path:
    """A folder of small splits, scored by how many of three parts agree."""
    folder.mkdir(parents=True)
    number = 0
    for split, count in (("train", train), ("dev", dev), ("test", test)):
        lines = ["sentence1,sentence2,score"]
        for _ in range(count):
            a = (number % 8, number // 8 % 6, number // 3 % 6)
            same = number % 4
            b = tuple(x if i < same else (x + 1 + number % 3) % 6 for i, x in enumerate(a))
            first, second = (f"{SUBJECTS[i]} {VERBS[j]} {OBJECTS[k]} in {split}" for i, j, k in (a, b))
            lines.append(f"{first},{second},{same * 5 / 3:.2f}")
            number += 1
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


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

    def command(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in this process, which saves the seconds of the imports; `variables` of the environment."""
        environment = self.environment | variables
        output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
            for name in set(os.environ) - set(environment):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["twinsqueeze", *arguments])
            patch.setattr(signals, "raise_on_signals", lambda: None)
            patch.setattr(sys, "excepthook", sys.excepthook)
            try:
                cli.run()
                code = 0
            except SystemExit as exit_:
                code = exit_.code
        printed = (stream.buffer.getvalue().decode() for stream in (output, errors))
        return subprocess.CompletedProcess(arguments, code, *printed)

    def process(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `python -m twinsqueeze` with the arguments, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "twinsqueeze", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *arguments: str, module: str = "twinsqueeze", cwd: Path | None = None) -> subprocess.Popen[str]:
        """Starts a command in a session of its own, so that signals reach only whom they are sent to."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=cwd or self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def runs(self) -> list[mlflow.entities.Run]:
        """All runs, the newest first."""
        return list(self.client.search_runs(["0"]))


def together(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], cwd: Path) -> list[str]:
    """Starts commands of Python's at once and waits for them; what they printed.

    Those that are programs (-c) print a line when they are ready, and wait for one before they begin.
    """
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    said = []
    try:
        if commands[0][0] == "-c":
            for process in started:
                process.stdout.readline()
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in started:
            out, err = process.communicate()
            assert process.returncode == 0, err
            assert "Traceback" not in err
            said.append(out)
    finally:
        for process in started:
            process.kill()
    return said


def wait_until_healthy(port: int) -> None:
    """Waits for an MLflow server on loopback."""
    for _ in range(240):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server does not answer")
