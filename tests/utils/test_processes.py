"""Where `mlflow run` was started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from tests.helpers.commands import ROOT
from tests.helpers.forks import has_ended
from twinsqueeze.utils.processes import ProcessIdentity

# What the command of an entry point does first.
COMMAND = """
import os
from twinsqueeze.utils import processes
child = processes.find_mlflow_run_child(os.environ["MLFLOW_RUN_ID"])
processes.enter_dir_of_parent(child)
print(os.getcwd())
"""
# `mlflow run` starts a shell in the project's folder, which starts the command or becomes it.
STARTER = """
import os, subprocess, sys
shell, project, command = sys.argv[1:]
environment = os.environ | {"MLFLOW_RUN_ID": "0123", "COMMAND": command, "PYTHON": sys.executable}
subprocess.run(["bash", "-c", shell], cwd=project, env=environment, check=True)
"""


@pytest.mark.parametrize("shell", ['"$PYTHON" -c "$COMMAND"', 'true && "$PYTHON" -c "$COMMAND"; true'])
@pytest.mark.parametrize("name", ["a folder", "project"])
def test_a_command_of_mlflow_run_works_where_it_was_started(tmp_path, shell, name):
    folder, project = tmp_path / name, tmp_path / "project"
    for path in {folder, project}:
        path.mkdir()
    (project / "MLproject").touch()
    done = subprocess.run(
        [sys.executable, "-c", STARTER, shell, str(project), COMMAND],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{folder}\n", done.stderr


# The command of an entry point, which trains for an hour, and the process that starts it.
WATCHING = """
import os, time
import psutil
from twinsqueeze.utils import processes
processes.exit_with_parent(psutil.Process())
print(os.getpid(), flush=True)
time.sleep(3600)
"""
STARTING = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_command_ends_with_the_process_that_started_it():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", STARTING, WATCHING], stdout=subprocess.PIPE, env=environment
    ) as starter:
        command = psutil.Process(int(starter.stdout.readline()))
        starter.send_signal(signal.SIGKILL)
    while not has_ended(command):
        time.sleep(0.02)


def test_a_process_of_another_user_or_host_is_not_known_to_be_dead(monkeypatch):
    identity = ProcessIdentity.current()
    assert identity.state == "alive"
    monkeypatch.setattr(psutil.Process, "create_time", Mock(side_effect=psutil.AccessDenied))
    assert identity.state == "alive"
    monkeypatch.setattr(Path, "readlink", Mock(side_effect=OSError))  # as outside of Linux
    assert identity.state == "remote"
