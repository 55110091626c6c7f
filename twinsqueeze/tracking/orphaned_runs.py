"""Marks runs as KILLED that are RUNNING although their process is gone, and gives their children a new parent."""

from collections.abc import Callable, Collection, Mapping

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from twinsqueeze.tracking import tags
from twinsqueeze.tracking.spool import replay
from twinsqueeze.tracking.spool.journal import pending_runs
from twinsqueeze.utils.processes import ProcessIdentity
from twinsqueeze.utils.text import escape_markdown


def mark_orphans_killed(experiment_id: str, is_same: Callable[[Mapping[str, str]], bool], note: str) -> dict[str, bool]:
    """Mark an experiment's runs of dead processes of this host as KILLED, and return their ids.

    `is_same` tells from the tags whether a run trained what is to be trained now. Its value is returned with each id,
    and if it is true, the Markdown `note` joins the run's description. Runs that `sync` will end are left alone.
    """
    client = mlflow.MlflowClient()
    marked: dict[str, bool] = {}
    complete = {run.run_id for run in pending_runs() if run.is_complete}
    with replay.request_timeout():  # a training must not wait for minutes if the server hangs
        for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=1000):
            run_id = str(run.info.run_id)
            process = ProcessIdentity.parse(run.data.tags.get(tags.PROCESS, ""))
            if process is None or process.state != "dead" or run_id in complete:
                continue
            marked[run_id] = is_same(run.data.tags)
            reason = escape_markdown(f"Killed: its process {process.pid} on {process.host.split()[0]} is gone.")
            client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{reason} {note}" if marked[run_id] else reason)
            client.set_terminated(run_id, "KILLED")
    return marked


def move_trials(experiment_id: str, study: str, numbers: Collection[int], parent_id: str) -> None:
    """Make the newest run of each trial of a study a child of another run."""
    client = mlflow.MlflowClient()
    query = f"tags.`{tags.KIND}` = 'trial' and tags.`{tags.STUDY}` = '{study}'"
    newest: dict[str, str] = {}
    for run in client.search_runs([experiment_id], query, max_results=50_000):  # the newest first
        newest.setdefault(run.data.tags[tags.TRIAL], run.info.run_id)
    for number in numbers:
        if run_id := newest.get(str(number)):
            client.set_tag(run_id, MLFLOW_PARENT_RUN_ID, parent_id)
