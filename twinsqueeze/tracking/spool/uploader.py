"""Sends the operations of runs from a background thread, in order, and retries failures."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from tqdm import tqdm

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.links import describe_store
from twinsqueeze.tracking.spool.journal import Operation, RecordLockedError, RunSpool, records_dir
from twinsqueeze.tracking.spool.replay import RefusedError, RunReplayer
from twinsqueeze.tracking.spool.timeouts import REQUEST_TIMEOUT
from twinsqueeze.utils.text import describe_error, escape_control_chars

# Seconds between attempts: the first pause, and what it doubles up to.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
# Seconds between two messages about waiting.
MESSAGE_INTERVAL = 10
KILLED_NOTE = "Killed: the process that recorded the run is gone."


def _print(line: str) -> None:
    """Print a line to standard error, above a progress bar."""
    tqdm.write(escape_control_chars(line), file=sys.stderr)


class StoreFailedError(InputError):
    """The tracking store failed, and would fail for other records as well."""


class Uploader:
    """A thread that sends operations to a tracking store.

    Args:
        store: Description of the tracking store, without credentials.
        assume_partial: Whether the store may already have a part of any operation, from a process that is gone.
        notify: Called with each line for the user.

    Attributes:
        failure: Why the last attempt failed; None after a success.
    """

    def __init__(self, store: str, *, assume_partial: bool = False, notify: Callable[[str], None] = _print) -> None:
        self.store = store
        self.notify = notify
        self.failure: str | None = None
        self._assume_partial = assume_partial
        self._runs: list[RunReplayer] = []
        self._queue: deque[tuple[RunReplayer, Operation]] = deque()
        self._changed = threading.Condition()
        self._last_success = 0.0
        self._stopped = False
        self._warned = False
        threading.Thread(target=self._send_all, name="uploader", daemon=True).start()

    def enqueue(self, run: RunReplayer, *operations: Operation) -> None:
        """Add a run's next operations to the queue."""
        with self._changed:
            if run not in self._runs:
                self._runs.append(run)
            if not run.refusal:
                self._queue += [(run, operation) for operation in operations]
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Wait until the queue is empty, and return whether it is.

        Args:
            timeout: Seconds without a success after which to give up on a failing store.
        """
        start = last_message = time.monotonic()
        with self._changed:
            while self._queue:
                now = time.monotonic()
                # Before its first failure, an attempt may only be slow.
                limit = timeout if self.failure else max(timeout, REQUEST_TIMEOUT + LONGEST_PAUSE)
                rest = limit - (now - max(start, self._last_success))
                if rest <= 0:
                    return False
                if self.failure and now - last_message > MESSAGE_INTERVAL:
                    last_message = now
                    self.notify(f"waiting for {self.store} for {rest:.0f} s more (Ctrl-C ends it)")
                self._changed.wait(0.1)
        return True

    def stop(self) -> None:
        """Stop sending, and unlock the records of unfinished runs."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for run in self.unfinished():
            run.spool.release()

    def unfinished(self) -> list[RunReplayer]:
        """The runs whose end the store does not have."""
        with self._changed:
            return list(self._runs)

    def describe_unfinished(self) -> str:
        """Say why the store does not have everything, where the rest is, and how to send it."""
        runs = self.unfinished()
        reason = next((run.refusal for run in runs if run.refusal), self.failure) or "no answer"
        what = f"the records of {len(runs)} runs are kept in {records_dir()}"
        if len(runs) == 1:
            what = f"the record of {runs[0].spool.name} is kept in {runs[0].spool.folder}"
        return (
            f"{self.store} has not taken everything ({reason}): {what}, and `python -m twinsqueeze sync` sends it later"
        )

    def _send_all(self) -> None:
        pause, is_retry = FIRST_PAUSE, self._assume_partial
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if self._stopped:
                    return
                run, operation = self._queue[0]
            try:
                run.send(operation, is_retry=is_retry)
            except (RefusedError, InputError) as error:
                self._handle_refusal(run, describe_error(error))
            except Exception as error:  # networks, servers and databases fail in many ways
                self._handle_failure(describe_error(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, pause)
                pause, is_retry = min(2 * pause, LONGEST_PAUSE), True
            else:
                self._handle_success(run, operation)
                pause, is_retry = FIRST_PAUSE, self._assume_partial

    def _handle_refusal(self, run: RunReplayer, reason: str) -> None:
        self.notify(f"WARNING: {self.store} refuses the record of {run.spool.name}: {reason}")
        with self._changed:
            run.refusal = reason
            self._queue = deque(item for item in self._queue if item[0] is not run)
            self._changed.notify_all()

    def _handle_failure(self, reason: str) -> None:
        if self.failure and not self._warned:  # one lost answer is not worth a warning
            self._warned = True
            kept = f"the command continues, and what was not sent is kept in {records_dir()}"
            self.notify(f"WARNING: {self.store} fails ({reason}): {kept}")
        self.failure = reason

    def _handle_success(self, run: RunReplayer, operation: Operation) -> None:
        is_end = operation["op"] in {"end", "abandon"}
        try:
            if is_end:
                run.spool.remove()
            else:
                run.spool.mark_sent(run.spool.num_sent + 1)
        except OSError:  # a full disk: the operation may be sent again
            pass
        if self._warned:
            self.notify(f"{self.store} is back: what was kept is being sent")
        self.failure, self._warned = None, False
        with self._changed:
            self._queue.popleft()
            if is_end:
                self._runs.remove(run)
            self._last_success = time.monotonic()
            self._changed.notify_all()


def upload_pending(run: RunSpool, timeout: float) -> None:
    """Upload a record whose process is gone to the current tracking store; a run without an end becomes KILLED.

    Args:
        run: A record of the current tracking store.
        timeout: Seconds to wait for a failing store.

    Raises:
        StoreFailedError: If the store failed for that long.
        InputError: If the record is damaged, refused or used by another process.
    """
    try:
        spool = RunSpool.open(run.folder)
    except (RecordLockedError, FileNotFoundError):
        raise InputError("another command uploads it") from None
    if spool.damage:
        raise InputError(spool.damage)
    if not spool.operations:  # its process was killed before it recorded anything
        spool.remove()
        return
    replayer, uploader = RunReplayer(spool), Uploader(describe_store(spool.uri), assume_partial=True)
    uploader.enqueue(replayer, *spool.operations[spool.num_sent :])
    if not spool.is_complete:
        uploader.enqueue(replayer, {"op": "abandon", "note": KILLED_NOTE, "time": int(time.time() * 1000)})
    done = uploader.wait(timeout)
    uploader.stop()
    if replayer.refusal:
        raise InputError(replayer.refusal)
    if not done:
        raise StoreFailedError(uploader.failure or "no answer")
