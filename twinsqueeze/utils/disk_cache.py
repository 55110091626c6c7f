"""A cache on disk, and files that are written atomically with a checksum."""

import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs


class ChecksumError(ValueError):
    """A file's content does not match its checksum."""


class DiskCache:
    """Bytes by key, with a checksum. Failures to read or write are collected in `warnings` and otherwise ignored."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache_dir()
        self.warnings: list[str] = []

    def get(self, key: str) -> bytes | None:
        """Return the bytes stored under a key, or None if there are none or they are damaged."""
        try:
            return read_verified(self.folder / key)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warnings.append(f"the cache can't be read, so the result is computed again: {error}")
        except ChecksumError:
            self.warnings.append(f"a cached file is damaged, so the result is computed again: {self.folder / key}")
        return None

    def put(self, key: str, payload: bytes) -> None:
        """Store bytes under a key."""
        try:
            write_atomic(self.folder / key, payload)
        except OSError as error:
            self.warnings.append(f"the cache can't be written, so the next run computes the result again: {error}")


def default_cache_dir() -> Path:
    """Return `TWINSQUEEZE_CACHE`, or the platform's cache directory, such as ~/.cache/twinsqueeze."""
    configured = os.environ.get("TWINSQUEEZE_CACHE")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("twinsqueeze")


def read_verified(path: Path) -> bytes:
    """Return the payload of a file that `write_atomic` wrote; raise `ChecksumError` if it was truncated or changed."""
    content = path.read_bytes()
    digest, payload = content[:64], content[64:]
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise ChecksumError(f"{path} is damaged")
    return payload


def write_atomic(path: Path, payload: bytes) -> None:
    """Replace a file by a SHA-256 and the payload; readers see the old file or the new one, even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A killed process leaves this file.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(payload).hexdigest().encode())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes files private, but users may share a cache
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
