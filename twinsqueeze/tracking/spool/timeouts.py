"""How long commands wait for a tracking server."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from twinsqueeze.errors import InputError

# Seconds until a server that a command needs at its start counts as unreachable.
SERVER_TIMEOUT = 25.0
# Seconds that a command waits for uploads after an error or a signal.
EXIT_TIMEOUT = 5.0
# Seconds for one HTTP request inside `request_timeout`.
REQUEST_TIMEOUT = 30
FLUSH_TIMEOUT_VARIABLE = "TWINSQUEEZE_FLUSH_TIMEOUT"

# MLflow reads these from the environment: its defaults are 7 retries and 120 seconds.
_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
_OUTSIDE = {name: os.environ.setdefault(name, value) for name, value in _DEFAULTS.items()}
_INSIDE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_TIMEOUT)}
_lock = threading.Lock()
_num_inside = 0


def flush_timeout() -> float:
    """Seconds that a command waits at its end for a failing server: `TWINSQUEEZE_FLUSH_TIMEOUT`, 60 by default.

    Raises:
        InputError: If the variable is not a number of seconds.
    """
    text = os.environ.get(FLUSH_TIMEOUT_VARIABLE, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"{FLUSH_TIMEOUT_VARIABLE} must be a number of seconds, 0 or more, not {text!r}")
    return seconds


@contextmanager
def request_timeout() -> Iterator[None]:
    """Have MLflow send each request once, with a timeout of 30 seconds, while any thread is inside.

    MLflow's own retries create a run twice if only the server's answer was lost.
    """
    _count_inside(1)
    try:
        yield
    finally:
        _count_inside(-1)


def _count_inside(change: int) -> None:
    global _num_inside  # noqa: PLW0603 - the environment is global as well
    with _lock:
        _num_inside += change
        os.environ.update(_INSIDE if _num_inside else _OUTSIDE)
