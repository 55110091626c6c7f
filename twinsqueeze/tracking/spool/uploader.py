"""Sends records from a thread, in the order in which they are written. What fails is tried again, and nobody waits."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.spool.journal import Operation, RunSpool
from twinsqueeze.tracking.spool.timeouts import FIRST_PAUSE, LONGEST_PAUSE, UPLOAD_SECONDS
from twinsqueeze.utils.text import describe_error, escape_control_chars

SECONDS_A_LINE = 10
LOOK_SECONDS = 0.1


class RefusedError(Exception):
    """The server has answered, and will answer the same again."""


class Delivery(Protocol):
    """Sends the operations of one record."""

    @property
    def known(self) -> Mapping[str, Any]:
        """What has been found out so far, as JSON."""

    @property
    def progress(self) -> int:
        """Grows with every part of an operation that is there for good."""

    def send(self, operation: Operation, *, again: bool) -> None:
        """Sends one.

        Args:
            operation: The next.
            again: Whether it, or a part of it, may be there already.

        Raises:
            RefusedError: If trying again is in vain.
        """


@dataclass
class Upload:
    """A record on its way.

    Attributes:
        record: What is sent; it is deleted once it has ended and all of it is there.
        delivery: Who sends it.
        refused: Why it can't be sent.
        begun: Whether the run is there.
    """

    record: RunSpool
    delivery: Delivery
    refused: str | None = None
    begun: bool = False
    sent: int = 0


class Uploader:
    """A thread that sends what it is given.

    Args:
        where: The tracking store, without password.
        assume_partial: Whether what is sent may be there already, from a process that is gone.
        tell: Says what the user should know, a line.
    """

    def __init__(self, where: str, *, assume_partial: bool = False, tell: Callable[[str], None] | None = None) -> None:
        self.where = where
        self.assume_partial = assume_partial
        self.tell = tell or _tell
        self.failure: str | None = None
        self.shipments: list[Upload] = []
        self._queue: deque[tuple[Upload, Operation]] = deque()
        self._changed = threading.Condition()
        self._stopped = self._told = False
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def add(self, record: RunSpool, delivery: Delivery) -> Upload:
        """A record that will be sent."""
        shipment = Upload(record, delivery, sent=record.sent)
        with self._changed:
            self.shipments.append(shipment)
        return shipment

    def put(self, shipment: Upload, operation: Operation) -> None:
        """The next operation of a record."""
        with self._changed:
            if not shipment.refused:
                self._queue.append((shipment, operation))
            self._changed.notify_all()

    def wait(self, patience: float, until: Callable[[], bool] | None = None, *, aloud: bool = False) -> bool:
        """Waits until all is sent, or nothing has been for a while.

        Args:
            patience: Seconds without any success after which a failing server is given up.
            until: What else to wait for.
            aloud: Whether to say every ten seconds that and why we wait.

        Returns:
            Whether it is so.
        """
        began = spoke = time.monotonic()
        with self._changed:
            count = self._count
            while not (until() if until else not self._queue):
                now = time.monotonic()
                if self._count != count:
                    count, began = self._count, now
                # While no attempt has failed, the present one may only be slow.
                limit = patience if self.failure else max(patience, UPLOAD_SECONDS + LONGEST_PAUSE)
                if self._stopped or not self._thread.is_alive() or now - began >= limit:
                    return False
                if aloud and self.failure and now - spoke > SECONDS_A_LINE:
                    spoke = now
                    self.tell(f"waiting for {self.where} for {limit - (now - began):.0f} s more (Ctrl-C ends it)")
                self._changed.wait(LOOK_SECONDS)
            return True

    def stop(self) -> None:
        """Sends no more; what is left of the records stays on disk, for others."""
        with self._changed:
            self._stopped = True
            self._queue.clear()
            self._changed.notify_all()
        for shipment in self.unsent():
            shipment.record.release()

    def unsent(self) -> list[Upload]:
        """The records that are not yet, or not wholly, where they belong."""
        with self._changed:
            return list(self.shipments)

    def _run(self) -> None:
        pause, again = FIRST_PAUSE, self.assume_partial
        while True:
            with self._changed:
                while not self._queue and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                shipment, operation = self._queue[0]
            before = shipment.delivery.progress
            try:
                shipment.delivery.send(operation, again=again)
            except RefusedError as error:
                self._refuse(shipment, describe_error(error))
            except InputError as error:  # files that are not what was recorded
                self._refuse(shipment, describe_error(error))
            except Exception as error:  # networks, servers and databases fail in many ways, and all may pass
                again = True
                if shipment.delivery.progress > before:
                    pause = FIRST_PAUSE
                    self._count += 1
                self._fail(shipment, describe_error(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause, again = FIRST_PAUSE, self.assume_partial
                self._succeed(shipment, operation)

    def _fail(self, shipment: Upload, why: str) -> None:
        again, self.failure = self.failure is not None, why
        if again and not self._told:  # one answer that was lost on the way is none of the user's business
            self._told = True
            kept = shipment.record.folder.parent
            self.tell(f"WARNING: {self.where} fails ({why}): work goes on, and its record is kept in {kept} until then")

    def _succeed(self, shipment: Upload, operation: Operation) -> None:
        shipment.sent += 1
        shipment.begun = True
        ended = operation["op"] in {"end", "abandon"}
        try:
            if ended:
                shipment.record.remove()
            else:
                shipment.record.mark_sent(shipment.sent, shipment.delivery.known)
        except OSError:  # a full disk: it would be sent once more, which does no harm
            pass
        if self._told:
            self._told = False
            self.tell(f"{self.where} is back: what was kept is being sent")
        self.failure = None
        with self._changed:
            if not self._stopped:
                self._queue.popleft()
            if ended:
                self.shipments.remove(shipment)
            self._count += 1
            self._changed.notify_all()

    def _refuse(self, shipment: Upload, why: str) -> None:
        self.tell(f"WARNING: {self.where} refuses the record of {shipment.record.about['name']}: {why}")
        with self._changed:
            shipment.refused = why
            self._queue = deque(item for item in self._queue if item[0] is not shipment)
            self._changed.notify_all()


def _tell(text: str) -> None:
    """A line on standard error, above a bar that may be there."""
    tqdm.write(escape_control_chars(text), file=sys.stderr)
