"""The job sync: records of runs that the tracking server has not taken are sent, listed or thrown away."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from twinsqueeze import console, tracking
from twinsqueeze.errors import InputError
from twinsqueeze.journal import (
    InUseError,
    Record,
    has_ended,
    in_use,
    read_known,
    read_record,
    record_folders,
    records_folder,
)
from twinsqueeze.patience import patience
from twinsqueeze.sender import Sender

GONE = "Killed: the process that recorded the run is gone."


@dataclass(frozen=True)
class Kept:
    """A record as `sync` finds it.

    Attributes:
        folder: Where it is.
        name: Of the run.
        run_id: MLflow's, empty where the run has not begun there.
        uri: Of the tracking store that it is for.
        time: When the run began, in milliseconds.
        used: Whether its process is alive.
        ended: Whether the run has ended.
        damage: Why it can't be read.
    """

    folder: Path
    name: str
    run_id: str
    uri: str
    time: int
    used: bool
    ended: bool
    damage: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.run_id or self.folder.name})"


def sync(*, listed: bool = False, discard: str | None = None) -> None:
    """Sends the records that are kept to the tracking store that they are for.

    Args:
        listed: Whether to say what there is instead.
        discard: The id of a run whose record to delete instead.

    Raises:
        InputError: If not all could be sent, or there is no such record.
    """
    kept = _all()
    if discard:
        _discard(kept, discard)
        return
    if not kept:
        console.tell(f"No record is kept in {records_folder()}: everything has been sent.")
        return
    if listed:
        console.tell(*map(_shown, kept))
        return
    patience()
    left = [f"{record}: {record.damage}" for record in kept if record.damage]
    here = tracking.store_uri()
    ours = []
    for record in kept:
        if record.damage:
            continue
        if record.used:
            console.say(f"{record} is left out: its command is running")
        elif record.uri != here:
            console.say(f"{record} is left out: it is for {record.uri}, and MLFLOW_TRACKING_URI names {here}")
        else:
            ours.append(record)
    if ours:
        left += _send(ours, {record.run_id for record in kept if record.used})
    if left:
        raise InputError(
            f"{len(left)} of {len(kept)} records could not be sent and are kept in {records_folder()}: "
            f"{'; '.join(left)}. Try again, or delete one with `python -m twinsqueeze sync --discard RUN_ID`"
        )


def _all() -> list[Kept]:
    """All records, the oldest first."""
    found = []
    for folder in record_folders():
        try:
            found.append(_look(folder))
        except FileNotFoundError:  # it has been sent by now
            continue
    return sorted(found, key=lambda record: (record.time, record.folder.name))


def _look(folder: Path) -> Kept:
    known = read_known(folder).get("run_id", "")
    try:
        about, operations = read_record(folder)
    except InputError as error:
        return Kept(folder, "a record", known, "", 0, in_use(folder), ended=False, damage=str(error))
    return Kept(folder, about["name"], known, about["uri"], about["time"], in_use(folder), has_ended(operations))


def _shown(record: Kept) -> str:
    if record.damage:
        return f"{record}: {record.damage}"
    state = "its command is running" if record.used else "has ended" if record.ended else "its process is gone"
    size = sum(path.stat().st_size for path in record.folder.rglob("*") if path.is_file())
    when = datetime.fromtimestamp(record.time / 1000).astimezone()
    return f"{record}, begun {when:%Y-%m-%d %H:%M}, {size / 1e6:.1f} MB, {state}, for {record.uri}"


def _discard(kept: Sequence[Kept], run_id: str) -> None:
    for record in kept:
        if run_id not in {record.run_id, record.folder.name}:
            continue
        if record.used:
            raise InputError(f"the record of {record} is being written by a command that is running: stop that first")
        Record.at(record.folder).remove()
        console.tell(f"The record of {record} is deleted.")
        return
    raise InputError(f"no record in {records_folder()} is of a run {run_id!r}: `sync --list` says which there are")


def _send(kept: Sequence[Kept], in_use_runs: set[str]) -> list[str]:
    """Sends records one by one; returns what is left, with the reasons."""
    tracking.check_server()
    left: list[str] = []
    with console.progress("sending", "run") as advance:
        for number, record in enumerate(kept, 1):
            sender = Sender(tracking.called(record.uri), careful=True)
            why = _send_one(record, sender, in_use_runs)
            if why is None:
                console.tell(f"Sent {record}.")
            else:
                left.append(f"{record}: {why}")
            advance(number, len(kept), {"left": str(len(left))} if left else {})
            if sender.failure:  # it would be the same for the rest
                return [*left, *(f"{other}: not tried" for other in kept[number:])]
    return left


def _send_one(kept: Kept, sender: Sender, in_use_runs: set[str]) -> str | None:
    """Sends a record; returns why that failed, if it did."""
    try:
        record = Record.open(kept.folder)
    except InUseError:
        return "another command has taken it up"
    except InputError as error:
        return str(error)
    if not record.operations:  # its process was killed as it began
        record.remove()
        return None
    shipment = sender.add(record, tracking.delivery(record))
    for operation in record.operations[record.sent :]:
        sender.put(shipment, operation)
    if not kept.ended:
        taken_up = kept.run_id in in_use_runs
        end = {"op": "abandon", "text": None if taken_up else GONE, "time": int(time.time() * 1000)}
        sender.put(shipment, end)
    done = sender.wait(patience(), aloud=True)
    why = shipment.refused or (None if done else sender.failure or "no answer")
    sender.stop()
    return why
