"""Records that are kept on this disk: found, and sent to where they belong by whoever comes upon them."""

import time
from dataclasses import dataclass
from pathlib import Path

from twinsqueeze import addresses, tracking
from twinsqueeze.errors import InputError
from twinsqueeze.journal import InUseError, Record, has_ended, in_use, read_known, read_record, record_folders
from twinsqueeze.sender import Sender

GONE = "Killed: the process that recorded the run is gone."


@dataclass(frozen=True)
class Kept:
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
class Sent:
    """What came of sending a record.

    Attributes:
        why: Why it is not, or not wholly, where it belongs; None if it is.
        fails: Whether the store failed, as it would for others.
    """

    why: str | None = None
    fails: bool = False


def kept_records() -> list[Kept]:
    """All records, the oldest first."""
    found = []
    for folder in record_folders():
        try:
            found.append(_look(folder))
        except FileNotFoundError:  # it has been sent by now
            continue
    return sorted(found, key=lambda record: (record.time, record.folder.name))


def _look(folder: Path) -> Kept:
    known = read_known(folder)
    run_id, experiment_id, used = known.get("run_id", ""), known.get("experiment_id", ""), in_use(folder)
    try:
        about, operations = read_record(folder)
    except InputError as error:
        return Kept(folder, "a record", run_id, experiment_id, "", 0, used, ended=False, damage=str(error))
    # A child's record names its experiment from the beginning.
    experiment_id = experiment_id or (operations and operations[0].get("experiment")) or ""
    return Kept(folder, about["name"], run_id, experiment_id, about["uri"], about["time"], used, has_ended(operations))


def send(kept: Kept, seconds: float, *, resumed_from_epoch: bool = False) -> Sent:
    """Sends a record whose process is gone; a run that it left without an end is ended as KILLED.

    Args:
        kept: The record, for the tracking store that is set.
        seconds: How long a failing store is waited for.
        resumed_from_epoch: Whether a living process is at the same run, which must not be ended then.
    """
    try:
        record = Record.open(kept.folder)
    except InUseError:
        return Sent("another command has taken it up")
    except InputError as error:
        return Sent(str(error))
    if not record.operations:  # its process was killed as it began
        record.remove()
        return Sent()
    sender = Sender(addresses.called(kept.uri), careful=True)
    shipment = sender.add(record, tracking.delivery(record))
    for operation in record.operations[record.sent :]:
        sender.put(shipment, operation)
    if not kept.ended:
        end = {"op": "abandon", "text": None if resumed_from_epoch else GONE, "time": int(time.time() * 1000)}
        sender.put(shipment, end)
    done = sender.wait(seconds, aloud=True)
    why = shipment.refused or (None if done else sender.failure or "no answer")
    sender.stop()
    return Sent(why, fails=sender.failure is not None)
