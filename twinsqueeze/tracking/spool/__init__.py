"""Stores runs on disk first and uploads them in the background, so that a failing tracking store loses nothing."""

from twinsqueeze.tracking.spool.journal import Operation, RunSpool, pending_runs, records_dir
from twinsqueeze.tracking.spool.replay import RunReplayer
from twinsqueeze.tracking.spool.timeouts import EXIT_TIMEOUT, SERVER_TIMEOUT, flush_timeout, request_timeout
from twinsqueeze.tracking.spool.uploader import StoreFailedError, Uploader, upload_pending

__all__ = [
    "EXIT_TIMEOUT",
    "SERVER_TIMEOUT",
    "Operation",
    "RunReplayer",
    "RunSpool",
    "StoreFailedError",
    "Uploader",
    "flush_timeout",
    "pending_runs",
    "records_dir",
    "request_timeout",
    "upload_pending",
]
