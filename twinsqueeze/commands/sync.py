"""The command `sync`: uploads, lists or deletes the records of runs that the tracking server has not taken."""

from collections.abc import Sequence
from datetime import datetime

from twinsqueeze.errors import InputError
from twinsqueeze.tracking import links, run, spool
from twinsqueeze.tracking.spool import RunSpool
from twinsqueeze.utils import console


def sync(*, listed: bool = False, discard: str | None = None) -> None:
    """Upload all records for the current tracking store, or list them, or delete the one of run `discard`.

    Raises:
        InputError: If a record could not be uploaded, or there is none to delete.
    """
    runs = spool.pending_runs()
    if discard:
        _discard(runs, discard)
    elif not runs:
        console.print_result(f"No record is kept in {spool.records_dir()}: everything has been sent.")
    elif listed:
        console.print_result(*map(_describe, runs))
    elif failures := [f"{each}: {each.damage}" for each in runs if each.damage] + _upload(_select_uploadable(runs)):
        raise InputError(
            f"{len(failures)} of {len(runs)} records could not be sent and are kept in {spool.records_dir()}: "
            f"{'; '.join(failures)}. Try again, or delete one with `python -m twinsqueeze sync --discard RUN_ID`"
        )


def _describe(run: RunSpool) -> str:
    if run.damage:
        return f"{run}: {run.damage}"
    state = "its command is running" if run.is_locked else "has ended" if run.is_complete else "its process is gone"
    size = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    start = datetime.fromtimestamp(run.start_time / 1000).astimezone()
    return f"{run}, started {start:%Y-%m-%d %H:%M}, {size / 1e6:.1f} MB, {state}, for {run.uri}"


def _discard(runs: Sequence[RunSpool], run_id: str) -> None:
    found = next((each for each in runs if run_id in {each.run_id, each.folder.name}), None)
    if not found:
        raise InputError(f"no record in {spool.records_dir()} is of run {run_id!r}: see `sync --list`")
    if found.is_locked:
        raise InputError(f"the record of {found} is being written by a command that is running: stop that first")
    found.remove()
    console.print_result(f"The record of {found} is deleted.")


def _select_uploadable(runs: Sequence[RunSpool]) -> list[RunSpool]:
    """Select the records of dead processes for the current tracking store, and print why others are skipped."""
    uri, uploadable = links.store_uri(), []
    for each in runs:
        if each.is_locked:
            console.info(f"{each} is skipped: its command is running")
        elif not each.damage and each.uri != uri:
            console.info(f"{each} is skipped: it is for {each.uri}, and MLFLOW_TRACKING_URI names {uri}")
        elif not each.damage:
            uploadable.append(each)
    return uploadable


def _upload(runs: Sequence[RunSpool]) -> list[str]:
    """Upload records one by one, and return why some could not be."""
    failures: list[str] = []
    if not runs:
        return failures
    timeout = spool.flush_timeout()
    run.check_tracking_server()
    with console.progress("sending", "run") as advance:
        for number, each in enumerate(runs, 1):
            try:
                spool.upload_pending(each, timeout)
                console.print_result(f"Sent {each}.")
            except spool.StoreFailedError as error:
                return [*failures, f"{each}: {error}", *(f"{other}: not tried" for other in runs[number:])]
            except InputError as error:
                failures.append(f"{each}: {error}")
            advance(number, len(runs), {"failed": str(len(failures))} if failures else {})
    return failures
