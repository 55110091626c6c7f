"""Files that appear whole or not at all, each headed by the SHA-256 of what follows."""

import hashlib
import os
import tempfile
from pathlib import Path

DIGEST_LENGTH = 64
# What a file is called until it is whole; a process that is killed may leave one.
UNFINISHED = ".part"


class DamagedError(ValueError):
    """A file's bytes are not those that were written."""


def read_checked(path: Path) -> bytes:
    """What `write_checked` wrote.

    Raises:
        OSError: If the file can't be read.
        DamagedError: If it was cut off or changed.
    """
    content = path.read_bytes()
    digest, payload = content[:DIGEST_LENGTH], content[DIGEST_LENGTH:]
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise DamagedError(f"{path} is damaged")
    return payload


def write_checked(path: Path, payload: bytes) -> None:
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
