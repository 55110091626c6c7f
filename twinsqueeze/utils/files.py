"""Paths, digests of files, and the state directory."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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


def public_name(name: str) -> str:
    """Return how to show a dataset or an encoder to others: a folder by its own name, a Hub id unchanged."""
    path = os.path.abspath(expand_user(name))  # noqa: PTH100 - Path.resolve raises for paths that the system rejects
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or is_dir(Path(path))
    return Path(path).name if is_path else name


def check_writable(folder: Path) -> None:
    """Raise an `OSError` if no file can be created in a folder, or in its nearest existing parent."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    tempfile.TemporaryFile(dir=existing).close()


@contextmanager
def make_dir(folder: Path) -> Iterator[None]:
    """Create a folder and its parents; remove those of them that are empty when the context is left."""
    created = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for path in created:
                path.rmdir()


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
