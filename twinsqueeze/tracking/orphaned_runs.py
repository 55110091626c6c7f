"""Marks runs as KILLED that are RUNNING although their process is gone."""

from collections.abc import Callable, Mapping

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from twinsqueeze.tracking import tags
from twinsqueeze.tracking.spool import pending_runs
from twinsqueeze.utils.processes import ProcessIdentity
from twinsqueeze.utils.text import escape_markdown

MAX_RUNS = 1000


def mark_orphans_killed(experiment_id: str, is_same: Callable[[Mapping[str, str]], bool], note: str) -> dict[str, bool]:
    """Mark the runs of dead processes of this host as KILLED, and say so in their descriptions.

    Runs whose record waits for `sync` with their end are left alone.

    Args:
        experiment_id: The experiment to search.
        is_same: Whether a run with these tags trained what is to be trained now.
        note: A Markdown sentence for the descriptions of those runs.

    Returns:
        The ids of the marked runs, each with the result of `is_same`.
    """
    client = mlflow.MlflowClient()
    marked = {}
    complete = {run.run_id for run in pending_runs() if run.is_complete}
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=MAX_RUNS):
        run_id = str(run.info.run_id)
        process = ProcessIdentity.parse(run.data.tags.get(tags.PROCESS, ""))
        if process is None or process.state != "dead" or run_id in complete:
            continue
        marked[run_id] = is_same(run.data.tags)
        reason = escape_markdown(f"Killed: its process {process.pid} on {process.host.split()[0]} is gone.")
        client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{reason} {note}" if marked[run_id] else reason)
        client.set_terminated(run_id, "KILLED")
    return marked
