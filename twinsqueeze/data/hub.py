"""Downloads from the Hugging Face Hub; the local cache is used as soon as the Hub is found not to answer."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from twinsqueeze.errors import InputError
from twinsqueeze.utils.text import describe_error, redact_credentials

PROBE_PATH = "/api/datasets/sentence-transformers/stsb"
PROBE_TIMEOUT = 4.5  # seconds


@cache
def hub_unavailable_reason() -> str | None:
    """Return why the Hub cannot be used, or None if it can: decided within 5 seconds, once per process."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")  # read when huggingface_hub is imported, which is later
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with ThreadPool(1) as pool:  # a thread can be abandoned, and no timeout of a socket covers name resolution
            pool.apply_async(urlopen, [endpoint + PROBE_PATH], {"timeout": PROBE_TIMEOUT}).get(PROBE_TIMEOUT)
    except (OSError, ValueError, multiprocessing.TimeoutError) as error:
        if not isinstance(error, HTTPError) or error.code >= 500:
            reason = getattr(getattr(error, "reason", error), "strerror", None)  # without urllib's own words around it
            return f"{redact_credentials(endpoint)} does not answer ({reason or describe_error(error)})"
    return None


@contextmanager
def _hub_errors(what: str, advice: str) -> Iterator[bool]:
    """Yield whether only the local cache can be used; errors inside become an `InputError`."""
    unavailable = hub_unavailable_reason()
    try:
        yield unavailable is not None
    except Exception as error:  # the client's errors have no common base class
        reason = unavailable or describe_error(error)
        raise InputError(f"{what} cannot be loaded from the Hub or its cache ({reason}): {advice}") from error


@cache
def fetch_dataset(name: str) -> Any:
    """Return all splits of a dataset as a `datasets.DatasetDict`; raise `InputError` if it cannot be loaded.

    The splits are memory-mapped, and fetched once per process.
    """
    with _hub_errors(f"dataset {name!r}", "pass demo, or a folder with train, dev and test") as offline:
        import datasets  # noqa: PLC0415 - takes a second

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        datasets.config.HF_HUB_OFFLINE = offline
        return datasets.load_dataset(name)


def fetch_model(name: str, patterns: Sequence[str]) -> Path:
    """Return the local folder with a model's files that match glob patterns; raise `InputError` on failure."""
    repository = name if "/" in name else f"sentence-transformers/{name}"
    with _hub_errors(f"encoder {name!r}", "pass all-MiniLM-L6-v2, which is installed, or a folder") as offline:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for encoders from the Hub

        return Path(snapshot_download(repository, allow_patterns=list(patterns), local_files_only=offline))
