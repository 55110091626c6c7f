"""Marks runs as KILLED that are RUNNING although their process is gone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from twinsqueeze.tracking import tags
from twinsqueeze.tracking.spool import pending_runs
from twinsqueeze.utils.processes import ProcessIdentity
from twinsqueeze.utils.text import escape_markdown

MAX_RUNS = 1000


@dataclass(frozen=True)
class OrphanedRuns:
    """Ids of the orphaned runs of an experiment.

    Attributes:
        same_recipe: Marked as KILLED; they trained what is to be trained now.
        other: Marked as KILLED; they did something else.
        remote: Left alone, each with its host; they train the same on another host, or did.
    """

    same_recipe: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    remote: dict[str, str] = field(default_factory=dict)


def mark_orphans_killed(experiment_id: str, is_same: Callable[[Mapping[str, str]], bool], note: str) -> OrphanedRuns:
    """Mark the runs of dead processes of this host as KILLED, and say so in their descriptions.

    Runs whose record waits for `sync` with their end are left alone.

    Args:
        experiment_id: The experiment to search.
        is_same: Whether a run with these tags trained what is to be trained now.
        note: A Markdown sentence for the descriptions of those runs.
    """
    client = mlflow.MlflowClient()
    orphans = OrphanedRuns()
    complete = {run.run_id for run in pending_runs() if run.is_complete}
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=MAX_RUNS):
        run_id, same = str(run.info.run_id), is_same(run.data.tags)
        process = ProcessIdentity.parse(run.data.tags.get(tags.PROCESS, ""))
        if process is None or process.state == "alive" or run_id in complete:
            continue
        if process.state == "remote":
            if same:
                orphans.remote[run_id] = process.host
            continue
        reason = escape_markdown(f"Killed: its process {process.pid} on {process.host.split()[0]} is gone.")
        client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{reason} {note}" if same else reason)
        client.set_terminated(run_id, "KILLED")
        (orphans.same_recipe if same else orphans.other).append(run_id)
    return orphans
