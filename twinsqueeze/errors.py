"""Errors that a user can fix, and how they are worded."""

import errno
import os
import re
import reprlib
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


def describe_storage_error(error: BaseException) -> str | None:
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


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line: what was given, why it can't be used, and the way out. Commands print it as it is and exit
    with 2; every other exception is a fault of ours and keeps its traceback.
    """


def one_line(error: object, limit: int = 300) -> str:
    """An error's text on one line of at most `limit` characters; its type's name where it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def truncate_repr(value: object, limit: int = 100) -> str:
    """A value as Python writes it, of at most `limit` characters; of a nested one only the outer parts."""
    shown = reprlib.Repr()
    # A file of a few lines can nest values that would fill the memory as text.
    shown.maxlevel, shown.maxstring, shown.maxother, shown.maxlong = 3, limit, limit, limit
    try:
        text = shown.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
