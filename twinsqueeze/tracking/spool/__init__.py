"""Stores runs on disk first and uploads them in the background, so that a failing tracking store loses nothing."""

from twinsqueeze.tracking.spool.journal import Operation, RunSpool, pending_runs, records_dir
from twinsqueeze.tracking.spool.replay import RunReplayer, request_timeout
from twinsqueeze.tracking.spool.uploader import EXIT_TIMEOUT, Uploader, flush_timeout, notify, upload_pending

__all__ = [
    "EXIT_TIMEOUT",
    "Operation",
    "RunReplayer",
    "RunSpool",
    "Uploader",
    "flush_timeout",
    "notify",
    "pending_runs",
    "records_dir",
    "request_timeout",
    "upload_pending",
]
