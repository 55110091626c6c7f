"""Where `mlflow run` was started."""

import os
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

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
# `mlflow run` starts a shell in the project's folder, which starts the command of the entry point or becomes it.
STARTER = """
import os, subprocess, sys
shell, project, command = sys.argv[1:]
environment = os.environ | {"MLFLOW_RUN_ID": "0123", "COMMAND": command, "PYTHON": sys.executable}
subprocess.run(["bash", "-c", shell], cwd=project, env=environment, check=True)
"""


BECOMES, STARTS = '"$PYTHON" -c "$COMMAND"', 'true && "$PYTHON" -c "$COMMAND"; true'


@pytest.mark.parametrize(("name", "shell"), [("a folder", BECOMES), ("a folder", STARTS), ("project", BECOMES)])
def test_a_command_of_mlflow_run_works_where_it_was_started(tmp_path, name, shell):
    command = """
import os
from twinsqueeze.utils import processes
processes.enter_dir_of_parent(processes.find_mlflow_run_child(os.environ["MLFLOW_RUN_ID"]))
print(os.getcwd())
"""
    folder, project = tmp_path / name, tmp_path / "project"
    for path in {folder, project}:
        path.mkdir()
    (project / "MLproject").touch()
    arguments = [sys.executable, "-c", STARTER, shell, str(project), command]
    done = subprocess.run(arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stdout == f"{folder}\n", done.stderr


def test_a_command_ends_with_the_process_that_started_it():
    command = """
import os, time
import psutil
from twinsqueeze.utils import processes
processes.exit_with_parent(psutil.Process())
print(os.getpid(), flush=True)
time.sleep(3600)
"""
    starting = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    arguments = [sys.executable, "-c", starting, command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=ENVIRONMENT) as starter:
        started = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    while not has_ended(started):
        time.sleep(0.02)


def test_a_process_of_another_user_or_host_is_not_known_to_be_dead(monkeypatch):
    identity = ProcessIdentity.current()
    assert identity.state == "alive"
    monkeypatch.setattr(psutil.Process, "create_time", Mock(side_effect=psutil.AccessDenied))
    assert identity.state == "alive"
    monkeypatch.setattr(Path, "readlink", Mock(side_effect=OSError))  # as outside of Linux
    assert identity.state == "remote"
