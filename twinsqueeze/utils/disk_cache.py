"""A cache of arrays on disk whose files carry a checksum."""

import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs


class DiskCache:
    """Bytes by key, each file headed by the SHA-256 of what follows.

    Args:
        folder: Made when first written to. Default: `TWINSQUEEZE_CACHE`, else the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache_dir()
        self.trouble: list[str] = []

    def path(self, key: str) -> Path:
        """The file that holds, or would hold, the bytes of a key."""
        return self.folder / key

    def get(self, key: str) -> bytes | None:
        """What was put under the key, or None if nothing was, or it is damaged."""
        path = self.path(key)
        try:
            return read_verified(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.trouble.append(f"the cache can't be read, so the result is made again: {error}")
            return None
        except ChecksumError:
            self.trouble.append(f"a cached file is damaged, so the result is made again: {path}")
            return None

    def put(self, key: str, payload: bytes) -> None:
        """Keeps bytes; a folder that can't be written to is noted and otherwise ignored."""
        try:
            write_atomic(self.path(key), payload)
        except OSError as error:
            self.trouble.append(f"the cache can't be written, so the next run starts afresh: {error}")


def default_cache_dir() -> Path:
    """`TWINSQUEEZE_CACHE`, else the folder that the system has for caches, such as ~/.cache/twinsqueeze."""
    named = os.environ.get("TWINSQUEEZE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("twinsqueeze")


DIGEST_LENGTH = 64
# What a file is called until it is whole; a process that is killed may leave one.
UNFINISHED = ".part"


class ChecksumError(ValueError):
    """A file's bytes are not those that were written."""


def read_verified(path: Path) -> bytes:
    """What `write_atomic` wrote.

    Raises:
        OSError: If the file can't be read.
        DamagedError: If it was cut off or changed.
    """
    content = path.read_bytes()
    digest, payload = content[:DIGEST_LENGTH], content[DIGEST_LENGTH:]
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise ChecksumError(f"{path} is damaged")
    return payload


def write_atomic(path: Path, payload: bytes) -> None:
    """Writes bytes to a file in whose place, at any moment and for any reader, stands the old one or the new one.

    Args:
        path: In a folder that is made if need be.
        payload: Any bytes.

    Raises:
        OSError: If it can't be written; the old one stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=UNFINISHED)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(payload).hexdigest().encode())
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # a cache may be shared by users; mkstemp keeps it to one
        Path(temporary).replace(path)
    finally:
        if temporary:  # gone already if all went well
            Path(temporary).unlink(missing_ok=True)
