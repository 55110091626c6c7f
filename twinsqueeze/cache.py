"""A folder of results that cost time, found by what they were made from.

Files appear whole or not at all, so any number of processes may read and write. Whatever is wrong with the folder costs
time and never a result: reading gives None, writing gives up, and `trouble` says why.
"""

import os
from pathlib import Path

import platformdirs

from twinsqueeze.checked import DamagedError, read_checked, write_checked


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
            return read_checked(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.trouble.append(f"the cache can't be read, so the result is made again: {error}")
            return None
        except DamagedError:
            self.trouble.append(f"a cached file is damaged, so the result is made again: {path}")
            return None

    def put(self, key: str, payload: bytes) -> None:
        """Keeps bytes; a folder that can't be written to is noted and otherwise ignored."""
        try:
            write_checked(self.path(key), payload)
        except OSError as error:
            self.trouble.append(f"the cache can't be written, so the next run starts afresh: {error}")


def default_folder() -> Path:
    """`TWINSQUEEZE_CACHE`, else the folder that the system has for caches, such as ~/.cache/twinsqueeze."""
    named = os.environ.get("TWINSQUEEZE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("twinsqueeze")
