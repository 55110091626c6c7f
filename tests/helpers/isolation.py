"""Programs that run where some packages can't be imported."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# The option -I alone does not hide a package that is installed in development mode.
BLOCKED = """
import sys
import numpy as np
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCK:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""


def run_without(
    packages: Sequence[str], program: str, *arguments: str, folder: Path, environment: Mapping[str, str]
) -> str:
    """Runs a program that knows NumPy as np and can't import the packages; what it printed."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"BLOCK = {tuple(packages)!r}{BLOCKED}{program}", *arguments],
        cwd=folder,
        env={name: value for name, value in environment.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
