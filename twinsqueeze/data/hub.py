"""The Hugging Face Hub: whether it answers, and what it has.

Its client reads `HF_HUB_OFFLINE` when it is imported, and retries for minutes when a server hangs. So the Hub is asked
once, by plain HTTP with a time limit, before the client is imported; one that does not answer is not asked again.
"""

import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.utils.text import describe_error, redact_credentials

ANSWER_SECONDS = 4.5
FETCH_SECONDS = 300.0
PROBE = "api/datasets/sentence-transformers/stsb"


T = TypeVar("T")


def endpoint() -> str:
    """The Hub's address, without a slash at its end."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def check_hub_available() -> str | None:
    """Decides within 5 seconds whether the Hub can be used, and sets its client to what was found.

    Returns:
        None if it answers, else why it does not. What was downloaded before can be loaded either way.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    # Shorter than the client's own, which would wait 10 seconds for every file that a server hangs on.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    reason = _probe()
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"
        for module, name in (
            ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
            ("datasets.config", "HF_HUB_OFFLINE"),
            ("datasets.config", "HF_DATASETS_OFFLINE"),
        ):
            if module in sys.modules:  # imported before us, and has read the variable already
                setattr(sys.modules[module], name, True)
    return reason


def _probe() -> str | None:
    def ask() -> str | None:
        try:
            # The user's own address, and nothing of what it answers is kept.
            with urllib.request.urlopen(f"{endpoint()}/{PROBE}", timeout=ANSWER_SECONDS) as answer:  # noqa: S310
                answer.read(1)
        except urllib.error.HTTPError as error:
            return None if error.code < 500 else f"{redact_credentials(endpoint())} answers with {error.code}"
        except (OSError, ValueError) as error:
            return redact_credentials(f"{endpoint()} does not answer: {one_line(getattr(error, 'reason', error))}")
        return None

    try:
        return run_with_timeout(ANSWER_SECONDS, ask)
    except TimeoutError:  # hangs in a way that the socket's own limit does not see, such as a byte every second
        return f"{redact_credentials(endpoint())} does not answer within 5 seconds"


def run_with_timeout(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises.

    Raises:
        TimeoutError: If it takes longer than `seconds`; it goes on in a thread that does not keep the process alive.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:  # handed to the caller
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no end within {seconds:g} seconds")
    if "error" in outcome:
        raise outcome["error"]
    value: T = outcome["value"]
    return value


def fetch_dataset(name: str, folder: Path | None = None) -> Any:
    """A dataset of the Hub, all its splits, from the cache where the Hub does not answer.

    Args:
        name: Such as sentence-transformers/stsb.
        folder: The cache; None for the user's.

    Returns:
        A `datasets.DatasetDict`.

    Raises:
        InputError: If it can't be had.
    """
    offline = check_hub_available()

    def load() -> Any:
        import datasets  # noqa: PLC0415 - only once the Hub has been asked

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        return datasets.load_dataset(name, cache_dir=folder and str(folder))

    try:
        return run_with_timeout(FETCH_SECONDS, load)
    except Exception as error:  # the client has no common base for what can go wrong
        reason = f"{offline}, and it has not been downloaded before" if offline else describe_error(error)
        raise InputError(
            f"dataset {name!r} can't be had from the Hub ({reason}): give demo, or a folder with train, dev and test"
        ) from error


def fetch_model(name: str, patterns: Sequence[str]) -> Path:
    """A folder with a model's files, from the cache where the Hub does not answer.

    Args:
        name: With its owner, or without for one of sentence-transformers.
        patterns: Which files, such as *.json.

    Raises:
        InputError: If it can't be had.
    """
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"encoder {name!r} is no folder that is here")
    offline = check_hub_available()

    def load() -> str:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - only once the Hub has been asked

        full = name if "/" in name else f"sentence-transformers/{name}"
        return str(snapshot_download(full, allow_patterns=list(patterns), local_files_only=bool(offline)))

    try:
        return Path(load())
    except Exception as error:  # as above
        reason = f"{offline}, and it has not been downloaded before" if offline else describe_error(error)
        raise InputError(
            f"encoder {name!r} can't be had ({reason}): give all-MiniLM-L6-v2, which is installed, or a folder"
        ) from error
