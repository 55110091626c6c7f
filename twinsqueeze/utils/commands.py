"""Commands to show to users, such that they work in the working directory."""

import shlex
import sys
from pathlib import Path

# The folder that has the package, which is a project of `mlflow run` unless the package is installed.
SOURCE_DIR = Path(__file__).parents[2]


def own_command(*arguments: str) -> str:
    """Return the command that started this program, with other arguments."""
    if Path(sys.argv[0]).stem == "twinsqueeze":
        return shlex.join(["twinsqueeze", *arguments])
    command = shlex.join(["python", "-m", "twinsqueeze", *arguments])
    if Path.cwd() == SOURCE_DIR or str(SOURCE_DIR) in sys.path[1:]:  # the first entry is where the program started
        return command
    return f"PYTHONPATH={shlex.quote(str(SOURCE_DIR))} {command}"
