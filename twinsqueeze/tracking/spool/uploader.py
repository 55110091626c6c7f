"""Sends the operations of runs from a background thread, in order, and retries failures."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import Queue

from tqdm import tqdm

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.spool.journal import Operation, RunSpool, records_dir
from twinsqueeze.tracking.spool.replay import REQUEST_TIMEOUT, RunReplayer
from twinsqueeze.utils.commands import own_command
from twinsqueeze.utils.text import describe_error, escape_control_chars

# Seconds between attempts: the pause after the first failure, which grows by itself up to the longest.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
# Seconds that a command waits for uploads after an error or a signal.
EXIT_TIMEOUT = 5.0
KILLED_NOTE = "Killed: the process that recorded the run is gone."


def flush_timeout() -> float:
    """Seconds that a command waits at its end for a failing server: `TWINSQUEEZE_FLUSH_TIMEOUT`, 60 by default."""
    text = os.environ.get("TWINSQUEEZE_FLUSH_TIMEOUT", "60")
    if not re.fullmatch(r"\d+(\.\d*)?", text):
        raise InputError(f"TWINSQUEEZE_FLUSH_TIMEOUT must be a number of seconds, 0 or more, not {text!r}")
    return float(text)


def notify(line: str) -> None:
    """Print a line to standard error, above a progress bar."""
    tqdm.write(escape_control_chars(line), file=sys.stderr)


class Uploader:
    """A thread that sends operations to the tracking store at an address without credentials."""

    def __init__(self, uri: str) -> None:
        self.store = f"the tracking {'server' if uri.startswith('http') else 'store'} {uri}"
        self.runs: list[RunReplayer] = []  # whose end the store does not have
        self.failure: str | None = None  # of the last attempt
        self._queue: Queue[tuple[RunReplayer, Operation] | None] = Queue()
        self._stopped = threading.Event()
        self._last_success = 0.0
        threading.Thread(target=self._send_all, name="uploader", daemon=True).start()

    def enqueue(self, run: RunReplayer, *operations: Operation) -> None:
        """Add a run's next operations to the queue."""
        if run not in self.runs:
            self.runs.append(run)
        for operation in operations:
            self._queue.put((run, operation))

    def wait(self, timeout: float) -> str | None:
        """Wait until the store has everything, or fails for `timeout` seconds; return why it lacks some, or None."""
        start = last_message = time.monotonic()
        while self._queue.unfinished_tasks:
            now = time.monotonic()
            # Before its first failure, an attempt may only be slow.
            limit = timeout if self.failure else max(timeout, REQUEST_TIMEOUT + LONGEST_PAUSE)
            seconds_left = limit - (now - max(start, self._last_success))
            if seconds_left <= 0:
                return self.failure or "no answer"
            if self.failure and now - last_message > 10:
                last_message = now
                notify(f"waiting for {self.store} for {seconds_left:.0f} s more (Ctrl-C ends it)")
            time.sleep(0.01)
        return next((run.refusal for run in self.runs if run.refusal), None)

    def stop(self) -> None:
        """Stop sending, and unlock the records of unfinished runs."""
        self._stopped.set()
        self._queue.put(None)
        for run in self.runs:
            run.spool.release()

    def describe_unfinished(self, reason: str) -> str:
        """Say that the store does not have everything, where the rest is, and how to send it."""
        runs = "1 run is" if len(self.runs) == 1 else f"{len(self.runs)} runs are"
        return (
            f"{self.store} has not received everything ({reason}): {runs} stored in {records_dir()}, and "
            f"`{own_command('sync')}` sends the rest later"
        )

    def _send_all(self) -> None:
        while item := self._queue.get():
            self._send(*item)
            self._queue.task_done()
        self._queue.task_done()

    def _send(self, run: RunReplayer, operation: Operation) -> None:
        """Send an operation, again and again until the store has it or refuses it, or `stop` is called."""
        num_failures = 0
        while not run.refusal and not self._stopped.is_set():
            try:
                run.send(operation)
            except InputError as error:
                run.refusal, self.failure = describe_error(error), None
                notify(f"WARNING: {self.store} refuses the record of {run.spool.name}: {run.refusal}")
            except Exception as error:  # networks, servers and databases fail in many ways
                self.failure = describe_error(error)
                num_failures += 1
                if num_failures == 2:  # one lost answer is not worth a warning
                    notify(f"WARNING: {self.store} fails ({self.failure}): requests are retried in the background")
                self._stopped.wait(min(num_failures * FIRST_PAUSE, LONGEST_PAUSE))
            else:
                if num_failures > 1:
                    notify(f"{self.store} is back: the stored records are being sent")
                self._mark_sent(run, operation)
                return

    def _mark_sent(self, run: RunReplayer, operation: Operation) -> None:
        self.failure, self._last_success = None, time.monotonic()
        if operation["op"] in {"end", "abandon"}:
            run.spool.remove()
            self.runs.remove(run)
        else:
            with suppress(OSError):  # a full disk: the operation may be sent again
                run.spool.mark_sent(run.spool.num_sent + 1)


def upload_pending(runs: Iterable[RunSpool], timeout: float) -> Iterator[tuple[RunSpool, str | None]]:
    """Upload records of the current tracking store whose processes are gone; a run without an end becomes KILLED.

    Yields each record with the reason why the store does not have it, or None, and ends once the store has failed for
    `timeout` seconds.
    """
    for run in runs:
        try:
            spool = RunSpool.read(run.folder, lock=True)
        except (BlockingIOError, FileNotFoundError):
            yield run, "another command uploads it"
            continue
        unsent = spool.operations[spool.num_sent :]
        if not spool.is_complete:
            unsent.append({"op": "abandon", "note": KILLED_NOTE, "time": int(time.time() * 1000)})
        uploader = Uploader(spool.uri)
        uploader.enqueue(RunReplayer(spool), *unsent)
        reason = uploader.wait(timeout)
        uploader.stop()
        yield run, reason
        if uploader.failure:
            return
