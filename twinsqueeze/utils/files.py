"""Paths, digests of files, and the state directory."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

import platformdirs

# Name of a compressor's safetensors file, in whatever folder the model is stored.
CHECKPOINT_FILE = "compressor.safetensors"


def expand_user(path: str | Path) -> Path:
    """Return a path with ~ expanded, or the path of a file:/ URI.

    Unlike with `Path.expanduser`, an unknown ~user stays unexpanded.
    """
    if uri := re.match(r"file:(?=/(?!/))|file://(?:localhost)?(?=/)", str(path)):
        return Path(unquote(str(path)[uri.end() :]))
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def is_dir(path: Path) -> bool:
    """Return whether a directory exists; False for paths that the system rejects, such as names that are too long."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for paths that the system rejects


def is_file(path: Path) -> bool:
    """Return whether a file exists; False for paths that the system rejects."""
    return os.path.isfile(path)  # noqa: PTH113 - as above


def state_dir() -> Path:
    """Return `TWINSQUEEZE_STATE`, or the platform's state directory, such as ~/.local/state/twinsqueeze."""
    configured = os.environ.get("TWINSQUEEZE_STATE")
    return Path(configured).expanduser() if configured else platformdirs.user_state_path("twinsqueeze")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dir_sha256(folder: Path, exclude: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder by relative path, without names that match a glob pattern."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(fnmatchcase(path.name, pattern) for pattern in exclude)
    }


def describe_change(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """Describe the first difference between two results of `dir_sha256`; None if they are equal."""
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            return f"{name} is missing"
        if name not in before:
            return f"{name} was added"
        if before[name] != after[name]:
            return describe_file_change(name, before[name], after[name])
    return None


def describe_file_change(name: str, before: str, after: str) -> str | None:
    """Describe the change of a file's SHA-256; None if it did not change."""
    return f"{name} has changed (SHA-256 was {before[:16]}..., is {after[:16]}...)" if before != after else None
