"""Paths, digests and the state directory."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import platformdirs

# Name of a compressor's safetensors file, in whatever folder the model is stored.
CHECKPOINT_FILE = "compressor.safetensors"


def expand_user(given: str | Path) -> Path:
    """The path that a user named; a `~name` of nobody stays as it is, and is not there."""
    return Path(os.path.expanduser(given))  # noqa: PTH111 - Path.expanduser raises for nobody


def is_dir(path: Path) -> bool:
    """Whether a folder is there; what the system can't look up, such as too long a name, is not."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for what it can't look up


def is_file(path: Path) -> bool:
    """As `is_dir`, of a file."""
    return os.path.isfile(path)  # noqa: PTH113 - as above


def state_dir() -> Path:
    """`TWINSQUEEZE_STATE`, else the folder that the system has for state, such as ~/.local/state/twinsqueeze."""
    named = os.environ.get("TWINSQUEEZE_STATE")
    return Path(named).expanduser() if named else platformdirs.user_state_path("twinsqueeze")


def file_sha256(path: Path) -> str:
    """64 hex digits over a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_sha256(content: bytes) -> str:
    """As `file_sha256`, of bytes."""
    return hashlib.sha256(content).hexdigest()


def dir_sha256(folder: Path, leave_out: Sequence[str]) -> dict[str, str]:
    """The digests of all files of a folder by their paths in it, but for those whose names match a pattern."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = [path for path in files if not any(fnmatchcase(path.name, pattern) for pattern in leave_out)]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in kept}


def describe_change(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What is not as it was, in words; None if all is."""
    for name in sorted(then.keys() | now.keys()):
        if name not in now:
            return f"{name} is missing"
        if name not in then:
            return f"{name} was not there"
        if found := describe_file_change(name, then[name], now[name]):
            return found
    return None


def describe_file_change(name: str, then: str, now: str) -> str | None:
    """As `describe_change`, of one file."""
    return f"{name} has changed (SHA-256 {now[:16]}..., then {then[:16]}...)" if then != now else None
