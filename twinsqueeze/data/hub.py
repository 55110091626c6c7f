"""Downloads from the Hugging Face Hub; the local cache is used as soon as the Hub is found not to answer."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from twinsqueeze.errors import InputError
from twinsqueeze.utils.text import describe_error, redact_credentials

PROBE_PATH = "/api/datasets/sentence-transformers/stsb"
PROBE_TIMEOUT, DATASET_TIMEOUT = 4.5, 300.0  # seconds; the client alone retries for longer while a server hangs


@cache
def hub_unavailable_reason() -> str | None:
    """Return why the Hub cannot be used, or None if it can: decided within 5 seconds, once per process."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")  # read when huggingface_hub is imported, which is later
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        _run_with_timeout(lambda: urlopen(endpoint + PROBE_PATH, timeout=PROBE_TIMEOUT), PROBE_TIMEOUT)  # noqa: S310
    except (OSError, ValueError) as error:
        if not isinstance(error, HTTPError) or error.code >= 500:
            return f"{redact_credentials(endpoint)} does not answer ({describe_error(error)})"
    return None


def _run_with_timeout(function: Callable[[], Any], seconds: float) -> Any:
    """Call a function in a thread that can be abandoned: no socket timeout covers name resolution or slow answers."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # handed to the caller
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(seconds)


def fetch_dataset(name: str) -> Any:
    """Return all splits of a dataset as a `datasets.DatasetDict`; raise `InputError` if it cannot be loaded."""
    unavailable = hub_unavailable_reason()
    import datasets  # noqa: PLC0415 - takes a second

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_HUB_OFFLINE = unavailable is not None
    try:
        return _run_with_timeout(lambda: datasets.load_dataset(name), DATASET_TIMEOUT)
    except Exception as error:  # the client's errors have no common base class
        raise InputError(
            f"dataset {name!r} cannot be loaded from the Hub or its cache ({unavailable or describe_error(error)}): "
            "pass demo, or a folder with train, dev and test"
        ) from error


def fetch_model(name: str, patterns: Sequence[str]) -> Path:
    """Return the local folder with a model's files that match glob patterns; raise `InputError` on failure."""
    unavailable = hub_unavailable_reason()
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for encoders from the Hub

    repository = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), local_files_only=bool(unavailable)))
    except Exception as error:  # as above
        raise InputError(
            f"encoder {name!r} cannot be loaded from the Hub or its cache ({unavailable or describe_error(error)}): "
            "pass all-MiniLM-L6-v2, which is installed, or a folder"
        ) from error
