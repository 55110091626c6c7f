"""Where `mlflow run` was started."""

import os
import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT

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
