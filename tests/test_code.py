"""The checks that are part of the test command: style, types, and which room may import which."""

import subprocess
import sys

import pytest

from tests.processes import ROOT

IMPORT_LINTER = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "ruff", "check"],
        ["-m", "ruff", "format", "--check"],
        ["-m", "mypy"],
        ["-c", IMPORT_LINTER, "--no-cache"],
    ],
    ids=["ruff check", "ruff format", "mypy", "import-linter"],
)
def test_checks_are_clean(arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_model_from_code_imports_nothing_of_ours():
    """It runs where this package is not installed."""
    lines = (ROOT / "twinsqueeze" / "tracking" / "pyfunc" / "compressor.py").read_text().splitlines()
    assert not [line for line in lines if line.lstrip().startswith(("import ", "from ")) and "twinsqueeze" in line]
