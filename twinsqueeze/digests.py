"""SHA-256 of files: whether they are still what they were."""

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path


def file_sha256(path: Path) -> str:
    """64 hex digits over a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_sha256(content: bytes) -> str:
    """As `file_sha256`, of bytes."""
    return hashlib.sha256(content).hexdigest()


def folder_sha256(folder: Path, leave_out: Sequence[str]) -> dict[str, str]:
    """The digests of all files of a folder by their paths in it, but for those whose names match a pattern."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = [path for path in files if not any(fnmatchcase(path.name, pattern) for pattern in leave_out)]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in kept}


def first_difference(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What is not as it was, in words; None if all is."""
    for name in sorted(then.keys() | now.keys()):
        if name not in now:
            return f"{name} is missing"
        if name not in then:
            return f"{name} was not there"
        if found := difference(name, then[name], now[name]):
            return found
    return None


def difference(name: str, then: str, now: str) -> str | None:
    """As `first_difference`, of one file."""
    return f"{name} has changed (SHA-256 {now[:16]}..., then {then[:16]}...)" if then != now else None
