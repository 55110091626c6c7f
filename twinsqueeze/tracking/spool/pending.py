"""Records that are kept on this disk: found, and sent to where they belong by whoever comes upon them."""

import time
from dataclasses import dataclass
from pathlib import Path

from twinsqueeze.errors import InputError
from twinsqueeze.tracking import links, run
from twinsqueeze.tracking.spool.journal import (
    InUseError,
    RunSpool,
    in_use,
    is_complete,
    read_known,
    read_record,
    record_folders,
)
from twinsqueeze.tracking.spool.uploader import Uploader

GONE = "Killed: the process that recorded the run is gone."


@dataclass(frozen=True)
class PendingRun:
    """A record as it is found.

    Attributes:
        folder: Where it is.
        name: Of the run.
        run_id: MLflow's, empty where the run has not begun there.
        experiment_id: Of its experiment, empty where that is not known yet.
        uri: Of the tracking store that it is for.
        time: When the run began, in milliseconds.
        used: Whether its process is alive.
        ended: Whether the run has ended.
        damage: Why it can't be read.
    """

    folder: Path
    name: str
    run_id: str
    experiment_id: str
    uri: str
    time: int
    used: bool
    ended: bool
    damage: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.run_id or self.folder.name})"


@dataclass(frozen=True)
class UploadResult:
    """What came of sending a record.

    Attributes:
        why: Why it is not, or not wholly, where it belongs; None if it is.
        fails: Whether the store failed, as it would for others.
    """

    why: str | None = None
    fails: bool = False


def pending_runs() -> list[PendingRun]:
    """All records, the oldest first."""
    found = []
    for folder in record_folders():
        try:
            found.append(_look(folder))
        except FileNotFoundError:  # it has been sent by now
            continue
    return sorted(found, key=lambda record: (record.time, record.folder.name))


def _look(folder: Path) -> PendingRun:
    known = read_known(folder)
    run_id, experiment_id, used = known.get("run_id", ""), known.get("experiment_id", ""), in_use(folder)
    try:
        about, operations = read_record(folder)
    except InputError as error:
        return PendingRun(folder, "a record", run_id, experiment_id, "", 0, used, ended=False, damage=str(error))
    # A child's record names its experiment from the beginning.
    experiment_id = experiment_id or (operations and operations[0].get("experiment")) or ""
    return PendingRun(
        folder, about["name"], run_id, experiment_id, about["uri"], about["time"], used, is_complete(operations)
    )


def upload_pending(kept: PendingRun, seconds: float, *, resumed_from_epoch: bool = False) -> UploadResult:
    """Sends a record whose process is gone; a run that it left without an end is ended as KILLED.

    Args:
        kept: The record, for the tracking store that is set.
        seconds: How long a failing store is waited for.
        resumed_from_epoch: Whether a living process is at the same run, which must not be ended then.
    """
    try:
        record = RunSpool.open(kept.folder)
    except InUseError:
        return UploadResult("another command has taken it up")
    except InputError as error:
        return UploadResult(str(error))
    if not record.operations:  # its process was killed as it began
        record.remove()
        return UploadResult()
    sender = Uploader(links.describe_store(kept.uri), assume_partial=True)
    shipment = sender.add(record, run.delivery(record))
    for operation in record.operations[record.sent :]:
        sender.put(shipment, operation)
    if not kept.ended:
        end = {"op": "abandon", "text": None if resumed_from_epoch else GONE, "time": int(time.time() * 1000)}
        sender.put(shipment, end)
    done = sender.wait(seconds, aloud=True)
    why = shipment.refused or (None if done else sender.failure or "no answer")
    sender.stop()
    return UploadResult(why, fails=sender.failure is not None)
