"""The command `sync`: uploads, lists or deletes the records of runs that the tracking server has not received."""

from collections.abc import Sequence
from datetime import datetime

from twinsqueeze.errors import InputError
from twinsqueeze.tracking import links, run
from twinsqueeze.tracking.spool import uploader
from twinsqueeze.tracking.spool.journal import RunSpool, pending_runs, records_dir
from twinsqueeze.utils import console
from twinsqueeze.utils.commands import own_command


def sync(*, listed: bool = False, discard: str | None = None) -> None:
    """Upload all records for the current tracking store, or list them, or delete the one of run `discard`."""
    runs = pending_runs()
    if discard:
        _discard(runs, discard)
    elif not runs:
        console.print_result(f"No record in {records_dir()}: everything has been sent.")
    elif listed:
        console.print_result(*map(_describe, runs))
    else:
        _upload(runs)


def _describe(run: RunSpool) -> str:
    if run.damage:
        return f"{run}: {run.damage}"
    state = "its command is running" if run.is_locked else "has ended" if run.is_complete else "its process is gone"
    start = datetime.fromtimestamp(run.start_time / 1000).astimezone()
    return f"{run}, started {start:%Y-%m-%d %H:%M}, {state}, for {run.uri}"


def _discard(runs: Sequence[RunSpool], run_id: str) -> None:
    found = next((each for each in runs if run_id in {each.run_id, each.folder.name}), None)
    if not found:
        raise InputError(f"no record in {records_dir()} is of run {run_id!r}: see `sync --list`")
    if found.is_locked:
        raise InputError(f"the record of {found} is being written by a command that is running: stop that first")
    found.remove()
    console.print_result(f"The record of {found} is deleted.")


def _upload(runs: Sequence[RunSpool]) -> None:
    failures = [f"{each}: {each.damage}" for each in runs if each.damage]
    unsent = [each for each in runs if not each.damage and _is_uploadable(each, links.store_uri())]
    if unsent:
        timeout = uploader.flush_timeout()
        run.check_tracking_server()
        for each, reason in uploader.upload_pending(tuple(unsent), timeout):
            unsent.remove(each)
            if reason:
                failures.append(f"{each}: {reason}")
            else:
                console.print_result(f"Sent {each}.")
    failures += [f"{each}: not tried" for each in unsent]
    if failures:
        raise InputError(
            f"{len(failures)} of {len(runs)} records could not be sent and stay in {records_dir()}: "
            f"{'; '.join(failures)}. Try again, or delete one with `{own_command('sync', '--discard', 'RUN_ID')}`"
        )


def _is_uploadable(run: RunSpool, uri: str) -> bool:
    if run.is_locked:
        console.info(f"{run} is skipped: its command is running")
        return False
    if run.uri != uri:
        console.info(f"{run} is skipped: it is for {run.uri}, and MLFLOW_TRACKING_URI names {uri}")
        return False
    return True
