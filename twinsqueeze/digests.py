"""SHA-256 of files: whether they are still what they were."""

import hashlib
from collections.abc import Mapping
from pathlib import Path


def file_sha256(path: Path) -> str:
    """64 hex digits over a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, leave_out: str) -> dict[str, str]:
    """The digests of all files of a folder by their paths in it, but for those of one name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != leave_out)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def first_difference(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What is not as it was, in words; None if all is."""
    for name in sorted(then.keys() | now.keys()):
        if name not in now:
            return f"{name} is missing"
        if name not in then:
            return f"{name} was not there"
        if then[name] != now[name]:
            return f"{name} has changed (SHA-256 {now[name][:16]}..., then {then[name][:16]}...)"
    return None
