"""Commands on a small disk of their own."""

import re
from pathlib import Path

import pytest

from tests.helpers.commands import Workplace
from tests.helpers.forks import ForkedProcess

# A disk in a namespace of its own: its size and options, its folder, what is copied to it, and the command. A namespace
# is given to a process of one thread, as a forked one is.
PROGRAM = """
import ctypes, os, subprocess, sys
from pathlib import Path
size, options, folder, source, *sys.argv[1:] = sys.argv[1:]
user, group = os.getuid(), os.getgid()
unshare = getattr(ctypes.CDLL(None), "unshare", None)
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
try:  # the system may lack namespaces, or forbid them, or what is done in them
    if not unshare or unshare(CLONE_NEWUSER | CLONE_NEWNS):
        sys.exit(99)
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(content)
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
except (OSError, subprocess.CalledProcessError):
    sys.exit(99)
if source:
    subprocess.run(["cp", "-a", source, folder], check=True)
if options:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
from twinsqueeze import cli
try:
    cli.run()
finally:
    for path in Path(folder).rglob("*"):
        print("\\nLEFT", path.relative_to(folder), end="")
"""


def on_a_disk(
    place: Workplace, folder: Path, *command: str, size: str, options: str = "", source: Path | None = None, **more: str
) -> tuple[int, str, list[str]]:
    """Runs a command where a folder is a disk of its own; `more` are variables of the environment.

    Returns:
        Its exit code, its standard error, and the files that it left on the disk.
    """
    program = ["-c", PROGRAM, size, options, str(folder), str(source or ""), *command]
    with ForkedProcess(program, place.environment | more, place.folder) as process:
        output, errors = process.communicate()
    if process.returncode == 99:
        pytest.skip("no namespaces here")
    return process.returncode, errors, output.split("\nLEFT ")[1:]


def stopped_by_a_disk(
    place: Workplace, folder: Path, *command: str, reason: str = r"No space left|disk is full|disk I/O|disk has", **disk
) -> tuple[str, list[str]]:
    """Runs a command as `on_a_disk` does, which ends with a line of the reason; its standard error, and the files."""
    code, errors, left = on_a_disk(place, folder, *command, **disk)
    assert code == 2, errors
    assert "Traceback" not in errors
    assert re.match(rf"twinsqueeze: .*({reason})", errors.splitlines()[-1]), errors
    return errors, left
