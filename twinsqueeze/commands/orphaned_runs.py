"""Closes the runs that killed processes left open, and moves the trials of their studies."""

from collections.abc import Callable, Mapping, Sequence

from twinsqueeze.tracking import links, orphaned_runs, tags
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.spool.journal import RunSpool, pending_runs
from twinsqueeze.tracking.spool.uploader import EXIT_TIMEOUT, upload_pending
from twinsqueeze.utils import console
from twinsqueeze.utils.commands import own_command
from twinsqueeze.utils.text import describe_error


def close_orphaned_runs(run: RunLogger, is_same: Callable[[Mapping[str, str]], bool], note: str) -> None:
    """Ends the experiment's runs whose processes on this host are gone: as recorded if complete, else as KILLED.

    The current run is tagged with those that, by their tags, were doing the same. Their descriptions get the note, such
    as "resumes from epoch 7".
    """
    try:
        _upload_complete_runs(run.experiment_id)
        orphans = orphaned_runs.mark_orphans_killed(run.experiment_id, is_same, f"Run {run.run_id} {note}.")
        if same := [run_id for run_id, is_same_recipe in orphans.items() if is_same_recipe]:
            run.set_tags({tags.RESUMES_RUN: ", ".join(same)})
    except Exception as error:  # the records of other runs must not stop this training
        console.warn(f"runs of killed processes cannot be closed: {describe_error(error)}")
        return
    pending = {record.run_id for record in pending_runs()}
    for run_id in orphans:
        hint = f"; `{own_command('sync')}` uploads the rest of its records" if run_id in pending else ""
        console.info(f"run {run_id} was RUNNING but its process is gone: marked as KILLED{hint}")


def adopt_trials(run: RunLogger, study: str, numbers: Sequence[int]) -> None:
    """Makes the finished trials of an interrupted study children of the run that resumes it."""
    try:
        orphaned_runs.move_trials(run.experiment_id, study, numbers, run.run_id)
    except Exception as error:  # as above
        console.warn(f"the trials of the interrupted study cannot be moved to this run: {describe_error(error)}")


def _upload_complete_runs(experiment_id: str) -> None:
    """Upload the runs that ended before their process was killed, but were not fully uploaded."""

    def is_orphan(run: RunSpool) -> bool:
        is_here = (run.uri, run.experiment_id) == (links.store_uri(), experiment_id)
        return is_here and run.is_complete and not run.is_locked

    for run, reason in upload_pending(filter(is_orphan, pending_runs()), EXIT_TIMEOUT):
        if reason:
            console.warn(f"{run} is not fully uploaded, `{own_command('sync')}` retries: {reason}")
        else:
            console.info(f"{run} had ended before its process was killed: its records are uploaded")
