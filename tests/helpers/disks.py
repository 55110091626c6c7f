"""Commands on a small disk of their own."""

from pathlib import Path

import pytest

from tests.helpers.commands import Workplace
from tests.helpers.forks import ForkedProcess

# A disk in a namespace of its own: its size and options, its folder, what is copied to it, and the command. The start
# is the parent of a forked process, since a namespace is given to a process of one thread.
PROGRAM = """
import ctypes, os, subprocess, sys
size, options, folder, source, *sys.argv[1:] = sys.argv[1:]
user, group = os.getuid(), os.getgid()
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS):
    sys.exit(99)
for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(content)
os.makedirs(folder, exist_ok=True)
if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
    sys.exit(99)
if source:
    subprocess.run(["cp", "-a", source, folder], check=True)
if options:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
from twinsqueeze import cli
try:
    cli.run()
finally:
    sys.stdout.flush()
    subprocess.run(["find", folder, "-mindepth", "1", "-printf", "\\nLEFT %P"])
"""


def on_a_disk(
    place: Workplace, folder: Path, *command: str, size: str, options: str = "", source: Path | None = None, **more: str
) -> tuple[int, str, str, list[str]]:
    """Runs a command where a folder is a disk of its own; `more` are variables of the environment.

    Returns:
        Its exit code, what it printed on both streams, and the files that it left on the disk.
    """
    program = ["-c", PROGRAM, size, options, str(folder), str(source or ""), *command]
    with ForkedProcess(program, place.environment | more, place.folder) as process:
        output, errors = process.communicate()
    code = process.wait()
    if code == 99:
        pytest.skip("no namespaces here")
    out, *left = output.split("\nLEFT ")
    return code, out, errors, left
