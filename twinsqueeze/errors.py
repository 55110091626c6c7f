"""Errors that users can fix, and short texts of errors and values."""

import errno
import os
import re
import reprlib
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

# Errors of disks and databases that the user can fix.
STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
SQLITE_ERRORS = tuple(f"SQLITE_{n}" for n in ("FULL", "READONLY", "IOERR", "CORRUPT", "NOTADB", "CANTOPEN", "BUSY"))
# Libraries written in other languages put the number into the message.
ERRNO_IN_MESSAGE = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)


class InputError(ValueError):
    """Something that the user passed cannot be used.

    The message is one line: what was passed, what was expected, what to do. Commands print it without a traceback and
    exit with 2. Every other exception is a bug and keeps its traceback.
    """


def describe_storage_error(error: BaseException) -> str | None:
    """Describe the failure of a disk or a database that caused an error; None if there was none."""
    for cause in _error_chain(error):
        if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
            path = f": {os.fsdecode(cause.filename)}" if isinstance(cause.filename, str | bytes) else ""
            return f"{cause.strerror or cause}{path}"
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorname", "").startswith(SQLITE_ERRORS):
            return f"the database can't be used: {cause}"
        if (found := ERRNO_IN_MESSAGE.search(str(cause))) and int(found[1] or found[2]) in STORAGE_ERRNOS:
            return os.strerror(int(found[1] or found[2]))
    return None


def describe_connection_error(error: BaseException) -> str | None:
    """Describe why an HTTP request got no answer, without the chain of the HTTP libraries; None for other errors."""
    if "Max retries exceeded" not in str(error):  # urllib3
        return None
    for cause in _error_chain(error):
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, ConnectionError | socket.gaierror):
            return (cause.strerror or str(cause)).lower()
    return None


def _error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, all its causes and contexts, and the errors in their arguments, each once."""
    pending, seen = [error], set()
    while pending:
        current = pending.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            causes = (current.__context__, current.__cause__, *current.args)
            pending += [cause for cause in causes if isinstance(cause, BaseException)]


def one_line(error: object, limit: int = 300) -> str:
    """Return an error's message on one line of at most `limit` characters; its type's name if it has no message."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def truncate_repr(value: object, limit: int = 100) -> str:
    """Return the repr of a value, cut to `limit` characters and three levels of nesting."""
    shortener = reprlib.Repr()
    # The full repr of nested aliases in a short YAML file can fill the memory.
    shortener.maxlevel, shortener.maxstring, shortener.maxother, shortener.maxlong = 3, limit, limit, limit
    try:
        text = shortener.repr(value)
    except ValueError:  # Python refuses to print an integer of over 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def suggest(given: object, possible: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" with the possible value that is closest to a mistyped one, or nothing."""
    close = get_close_matches(str(given), possible, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
