"""How long a server is waited for: the times, and MLflow's own waiting held to them."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from twinsqueeze.errors import InputError

# Until a server that is asked whether it is there counts as gone.
SERVER_SECONDS = 25.0
# Of one request while a record is sent, and of one that carries files. MLflow's own 120 with seven retries would be no
# answer for minutes, and its retries make a run twice where only the answer was lost.
REQUEST_SECONDS = 10
UPLOAD_SECONDS = 30
# Between attempts to send: the first pause, and what it doubles up to.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
# Whoever has stopped a command, or has an error to read, does not wait for longer than that.
STOP_SECONDS = 5.0
PATIENCE = "TWINSQUEEZE_PATIENCE"
PATIENCE_SECONDS = 60.0


def flush_timeout() -> float:
    """Seconds that a command waits at its end for a server that does not answer: `TWINSQUEEZE_PATIENCE`, else 60.

    Raises:
        InputError: If that is no number of seconds.
    """
    text = os.environ.get(PATIENCE, str(PATIENCE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"{PATIENCE} must be a number of seconds, 0 or more, not {text!r}")
    return seconds


_lock = threading.Lock()


_inside = 0


_before: dict[str, str | None] = {}


@contextmanager
def request_timeout(seconds: int = REQUEST_SECONDS) -> Iterator[None]:
    """MLflow's requests are sent once, and answered in so many seconds or not at all.

    It reads that from the environment, which all threads share: while one is inside, it holds for the others too.
    """
    global _inside  # noqa: PLW0603 - the environment is one for all as well
    settings = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    with _lock:
        if not _inside:
            _before.update({name: os.environ.get(name) for name in settings})
        _inside += 1
        os.environ.update(settings)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for name, value in _before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
