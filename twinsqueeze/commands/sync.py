"""The job sync: records of runs that the tracking server has not taken are sent, listed or thrown away."""

from collections.abc import Sequence
from datetime import datetime

from twinsqueeze.errors import InputError
from twinsqueeze.tracking import links, run
from twinsqueeze.tracking.spool.journal import RunSpool, records_folder
from twinsqueeze.tracking.spool.pending import PendingRun, pending_runs, upload_pending
from twinsqueeze.tracking.spool.timeouts import flush_timeout
from twinsqueeze.utils import console


def sync(*, listed: bool = False, discard: str | None = None) -> None:
    """Sends the records that are kept to the tracking store that they are for.

    Args:
        listed: Whether to say what there is instead.
        discard: The id of a run whose record to delete instead.

    Raises:
        InputError: If not all could be sent, or there is no such record.
    """
    kept = pending_runs()
    if discard:
        _discard(kept, discard)
        return
    if not kept:
        console.print_result(f"No record is kept in {records_folder()}: everything has been sent.")
        return
    if listed:
        console.print_result(*map(_shown, kept))
        return
    flush_timeout()
    left = [f"{record}: {record.damage}" for record in kept if record.damage]
    here = links.store_uri()
    ours = []
    for record in kept:
        if record.damage:
            continue
        if record.used:
            console.info(f"{record} is left out: its command is running")
        elif record.uri != here:
            console.info(f"{record} is left out: it is for {record.uri}, and MLFLOW_TRACKING_URI names {here}")
        else:
            ours.append(record)
    if ours:
        left += _send(ours, {record.run_id for record in kept if record.used})
    if left:
        raise InputError(
            f"{len(left)} of {len(kept)} records could not be sent and are kept in {records_folder()}: "
            f"{'; '.join(left)}. Try again, or delete one with `python -m twinsqueeze sync --discard RUN_ID`"
        )


def _shown(record: PendingRun) -> str:
    if record.damage:
        return f"{record}: {record.damage}"
    state = "its command is running" if record.used else "has ended" if record.ended else "its process is gone"
    size = sum(path.stat().st_size for path in record.folder.rglob("*") if path.is_file())
    when = datetime.fromtimestamp(record.time / 1000).astimezone()
    return f"{record}, begun {when:%Y-%m-%d %H:%M}, {size / 1e6:.1f} MB, {state}, for {record.uri}"


def _discard(kept: Sequence[PendingRun], run_id: str) -> None:
    for record in kept:
        if run_id not in {record.run_id, record.folder.name}:
            continue
        if record.used:
            raise InputError(f"the record of {record} is being written by a command that is running: stop that first")
        RunSpool.at(record.folder).remove()
        console.print_result(f"The record of {record} is deleted.")
        return
    raise InputError(f"no record in {records_folder()} is of a run {run_id!r}: `sync --list` says which there are")


def _send(kept: Sequence[PendingRun], in_use_runs: set[str]) -> list[str]:
    """Sends records one by one; returns what is left, with the reasons."""
    run.check_tracking_server()
    left: list[str] = []
    with console.progress("sending", "run") as advance:
        for number, record in enumerate(kept, 1):
            result = upload_pending(record, flush_timeout(), resumed_from_epoch=record.run_id in in_use_runs)
            if result.why is None:
                console.print_result(f"Sent {record}.")
            else:
                left.append(f"{record}: {result.why}")
            advance(number, len(kept), {"left": str(len(left))} if left else {})
            if result.fails:  # it would be the same for the rest
                return [*left, *(f"{other}: not tried" for other in kept[number:])]
    return left
