"""Paths as users name them."""

import os
from pathlib import Path


def local_path(given: str | Path) -> Path:
    """The path that a user named; a `~name` of nobody stays as it is, and is not there."""
    return Path(os.path.expanduser(given))  # noqa: PTH111 - Path.expanduser raises for nobody


def is_folder(path: Path) -> bool:
    """Whether a folder is there; what the system can't look up, such as too long a name, is not."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for what it can't look up


def is_file(path: Path) -> bool:
    """As `is_folder`, of a file."""
    return os.path.isfile(path)  # noqa: PTH113 - as above
