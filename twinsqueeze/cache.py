"""A folder of results that cost time, found by what they were made from.

Files appear whole or not at all, so any number of processes may read and write. Whatever is wrong with the folder costs
time and never a result: reading gives None, writing gives up, and `trouble` says why.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

DIGEST_LENGTH = 64


class Cache:
    """Bytes by key, each file headed by the SHA-256 of what follows.

    Args:
        folder: Made when first written to. Default: `TWINSQUEEZE_CACHE`, else the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self.trouble: list[str] = []

    def path(self, key: str) -> Path:
        """The file that holds, or would hold, the bytes of a key."""
        return self.folder / key

    def get(self, key: str) -> bytes | None:
        """What was put under the key, or None if nothing was, or it is damaged."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.trouble.append(f"the cache can't be read, so the result is made again: {error}")
            return None
        digest, payload = content[:DIGEST_LENGTH], content[DIGEST_LENGTH:]
        if hashlib.sha256(payload).hexdigest().encode() != digest:
            self.trouble.append(f"a cached file is damaged, so the result is made again: {path}")
            return None
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Keeps bytes; a folder that can't be written to is noted and otherwise ignored."""
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(payload).hexdigest().encode())
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)  # a cache may be shared by users; mkstemp keeps it to one
            Path(temporary).replace(self.path(key))
        except OSError as error:
            self.trouble.append(f"the cache can't be written, so the next run starts afresh: {error}")
        finally:
            if temporary:  # gone already if all went well
                Path(temporary).unlink(missing_ok=True)


def default_folder() -> Path:
    """`TWINSQUEEZE_CACHE`, else the folder that the system has for caches, such as ~/.cache/twinsqueeze."""
    named = os.environ.get("TWINSQUEEZE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("twinsqueeze")
