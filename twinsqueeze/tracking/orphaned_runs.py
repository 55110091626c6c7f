"""Runs that say RUNNING although their process is gone: they are given the end that it could not give them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from twinsqueeze.tracking import tags
from twinsqueeze.tracking.spool.pending import pending_runs
from twinsqueeze.utils.processes import ProcessIdentity
from twinsqueeze.utils.text import escape_markdown

# More runs than this are not written at once.
MOST_RUNS = 1000


@dataclass(frozen=True)
class OrphanedRuns:
    """What was found in an experiment.

    Attributes:
        same: Ids of the runs that were ended and were at what is begun now.
        others: Ids of those that were ended and were at something else.
        elsewhere: Ids of runs that are at what is begun now on another host, by its name; nothing is done to them.
    """

    same: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)


def mark_orphans_killed(experiment_id: str, is_same: Callable[[Mapping[str, str]], bool], story: str) -> OrphanedRuns:
    """Marks the runs of processes of this host that are gone as KILLED, and says so in their descriptions.

    Left alone are those whose record is whole and waits for `sync`, which gives them the end that they had.

    Args:
        experiment_id: Where to look.
        is_same: Whether a run of these tags was at what is begun now.
        story: What becomes of those, a sentence in Markdown.
    """
    client = mlflow.MlflowClient()
    found = OrphanedRuns()
    whole = {record.run_id for record in pending_runs() if record.ended}
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=MOST_RUNS):
        process = ProcessIdentity.parse(run.data.tags.get(tags.PROCESS, ""))
        run_id, same = str(run.info.run_id), is_same(run.data.tags)
        if process is None or process.state == "living" or run_id in whole:
            continue
        if process.state == "elsewhere":
            if same:
                found.elsewhere[run_id] = process.host
            continue
        reason = escape_markdown(f"Killed: its process {process.pid} on {process.host.split()[0]} is gone.")
        client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{reason} {story}" if same else reason)
        client.set_terminated(run_id, "KILLED")
        (found.same if same else found.others).append(run_id)
    return found
