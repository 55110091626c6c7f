"""Disks and databases that are full, read-only or damaged, as one line instead of a traceback.

They fail anywhere, in whatever library writes at that moment, so they are known by what the system said at the bottom.
"""

import errno
import os
import re
import sqlite3
from collections.abc import Iterator

# What the user can mend, and no program.
ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
SQLITE = (
    "SQLITE_FULL",
    "SQLITE_READONLY",
    "SQLITE_IOERR",
    "SQLITE_CORRUPT",
    "SQLITE_NOTADB",
    "SQLITE_CANTOPEN",
    "SQLITE_BUSY",
)
# As libraries in other languages write the number into their texts.
WRITTEN = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)


def storage_trouble(error: BaseException) -> str | None:
    """What is wrong with a disk or a database, if that is why an error was raised; None if it is not."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in ERRNOS:
            where = f": {os.fsdecode(cause.filename)}" if isinstance(cause.filename, str | bytes) else ""
            return f"{cause.strerror or cause}{where}"
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorname", "").startswith(SQLITE):
            return f"the database can't be used: {cause}"
        if (found := WRITTEN.search(str(cause))) and int(found[1] or found[2]) in ERRNOS:
            return os.strerror(int(found[1] or found[2]))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised for or after, each once."""
    left, seen = [error], set()
    while left:
        this = left.pop()
        if id(this) not in seen:
            seen.add(id(this))
            yield this
            left += [cause for cause in (this.__context__, this.__cause__) if cause]
