"""Records that a store did not take, sent later: in this process, with a replayer that fails on demand."""

import math
import sqlite3
import time
from contextlib import closing
from unittest.mock import Mock

import mlflow
import numpy as np
import pandas as pd
import pytest
import sqlalchemy
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from safetensors.numpy import save

from tests.helpers.stores import contents_by_name, run_ids
from twinsqueeze.commands import orphaned_runs, sync
from twinsqueeze.errors import InputError
from twinsqueeze.tracking import links
from twinsqueeze.tracking import run as run_module
from twinsqueeze.tracking.model_files import log_compressor
from twinsqueeze.tracking.orphaned_runs import mark_orphans_killed
from twinsqueeze.tracking.spool import uploader
from twinsqueeze.tracking.spool.journal import RunSpool, pending_runs
from twinsqueeze.tracking.spool.replay import MAX_DATABASE_ERRORS, RunReplayer
from twinsqueeze.tracking.tags import PROCESS
from twinsqueeze.utils.processes import ProcessIdentity

SEND = RunReplayer.send


class Fault:
    """Failures of a store: the next `failures` operations fail; `losing` loses the first answer to each."""

    def __init__(self) -> None:
        self.failures: float = 0
        self.losing = False
        self.lost: set[tuple[str, int]] = set()

    def send(self, replayer: RunReplayer, operation) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("away")
        SEND(replayer, operation)
        sent = replayer.spool.folder.name, id(operation)
        if self.losing and sent not in self.lost:
            self.lost.add(sent)
            raise OSError("the answer was lost")


@pytest.fixture
def fault(monkeypatch) -> Fault:
    fault = Fault()
    monkeypatch.setattr(RunReplayer, "send", lambda replayer, operation: fault.send(replayer, operation=operation))
    for module in (run_module, uploader):
        monkeypatch.setattr(module, "flush_timeout", lambda: 0.3 if fault.failures == math.inf else math.inf)
    return fault


@pytest.fixture
def client(tmp_path, monkeypatch, state, fault, create_store, use_store) -> mlflow.MlflowClient:
    monkeypatch.chdir(tmp_path)
    use_store(create_store(tmp_path))
    return mlflow.MlflowClient()


def write(fault: Fault, failures: float = 0) -> None:
    """A parent with a child; the store begins to fail after the parent has begun."""
    rng = np.random.default_rng(0)
    layer = {"0.weight": rng.normal(size=(4, 8)).astype(np.float32), "0.bias": np.zeros(4, np.float32)}
    with run_module.start_run("a", "train") as run:
        fault.failures = failures
        run.log_params({"alpha": 0.75, "seed": 1})
        data = run.log_input("train", "pairs", "0123abcd", "/nowhere")
        for step in range(1, 30):
            run.log_metrics({"train/loss": 1 / step}, step)
        model = log_compressor(run, save(layer), rng.normal(size=(3, 8)).astype(np.float32), {"alpha": 0.75})
        run.log_metrics({"dev/mse": 0.1, "dev/mae": 0.3}, 30, model, data)
        run.log_table("predictions.json", pd.DataFrame({"a": [1, 2]}))
        run.log_table("losses.parquet", pd.DataFrame({"a": [1.5, 2.5]}))
        with run_module.start_run("b", "train", nested=True) as child:
            child.log_metrics({"dev/mse": 0.2}, 3)
    run_module.flush()


def test_each_thing_is_sent_once_now_or_later_although_answers_are_lost(client, fault, tmp_path, capsys):
    write(fault)
    known = run_ids(tmp_path)
    undisturbed = contents_by_name(tmp_path, known)
    assert {name: len(content["metrics"]) for name, content in undisturbed.items()} == {"a": 31, "b": 1}

    with pytest.raises(InputError, match=r"2 runs are stored in .* `python -m twinsqueeze sync` sends"):
        write(fault, math.inf)
    assert len(pending_runs()) == 2
    sync.sync(listed=True)
    assert capsys.readouterr().out.count("has ended") == 2
    with pytest.raises(InputError, match="2 of 2 records could not be sent"):
        sync.sync()
    fault.failures, fault.losing = 0, True
    sync.sync()
    assert len(fault.lost) > 10
    assert pending_runs() == []
    assert contents_by_name(tmp_path, run_ids(tmp_path) - known) == undisturbed
    capsys.readouterr()
    sync.sync()
    assert "everything has been sent" in capsys.readouterr().out

    known = run_ids(tmp_path)
    write(fault, failures=4)
    assert contents_by_name(tmp_path, run_ids(tmp_path) - known) == undisturbed
    assert pending_runs() == []
    warning, note = capsys.readouterr().err.splitlines()  # none of an answer that is lost once
    assert warning.startswith("WARNING: the tracking store sqlite:///")
    assert "fails (away)" in warning
    assert "is back" in note


def test_a_locked_store_loses_nothing(client, fault, tmp_path, monkeypatch, capsys):
    text = sqlalchemy.text  # MLflow waits 20 seconds for a lock, the test 0.1
    monkeypatch.setattr("sqlalchemy.sql.text", lambda statement: text(statement.replace("= 20000", "= 100")))
    with (
        closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other,
        run_module.start_run("a", "train") as run,
    ):
        other.execute("BEGIN EXCLUSIVE")
        run.log_params({"alpha": 0.75})
        while "database is locked" not in capsys.readouterr().err:
            time.sleep(0.02)
        run.log_metrics({"dev/mse": 0.5}, 1)
        other.execute("ROLLBACK")
    run_module.flush()
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"dev/mse": 0.5})
    assert found.data.params["alpha"] == "0.75"
    assert pending_runs() == []


def test_records_of_other_stores_and_damaged_ones_are_left_alone(client, fault, tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError):
        write(fault, math.inf)
    fault.failures = 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    sync.sync()
    assert capsys.readouterr().err.count(f"it is for sqlite:///{tmp_path}/mlflow.db") == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (weights,) = tmp_path.rglob("state/**/compressor.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"1 of 2 .*compressor\.safetensors has changed.*--discard RUN_ID"):
        sync.sync()
    (left,) = pending_runs()
    (run,) = [run for run in client.search_runs(["0"]) if run.info.run_name == "a"]
    with pytest.raises(InputError, match="sync --list"):
        sync.sync(discard="0" * 32)
    sync.sync(discard=run.info.run_id)
    assert not left.folder.exists()


def test_a_run_that_nobody_ended_is_killed_and_one_in_use_is_left(client, fault, capsys):
    with run_module.start_run("a", "train") as run:
        run_id = run.run_id
        sync.sync()
        assert "its command is running" in capsys.readouterr().err
    begin = {"op": "begin", "run_id": run_id, "experiment_id": None, "tags": {}}
    batch = {"op": "batch", "metrics": [{"key": "dev/mse", "value": 0.5, "timestamp": 1, "step": 1}]}
    RunSpool.create("a", links.store_uri(), begin, batch).release()
    sync.sync()
    found = client.get_run(run_id)
    assert found.info.status == "KILLED"
    assert found.data.tags["mlflow.note.content"] == uploader.KILLED_NOTE
    assert found.data.metrics == {"dev/mse": 0.5}


def test_the_next_command_sends_a_run_that_was_killed_behind_its_end(client, fault, capsys):
    """And its child, which had not even begun there; but nothing that was recorded of another experiment."""
    with pytest.raises(InputError):
        write(fault, math.inf)
    fault.failures = 0
    (run,) = client.search_runs(["0"])
    gone = ProcessIdentity.current().model_copy(update={"started": 1.0})
    client.set_tag(run.info.run_id, PROCESS, gone.model_dump_json())
    assert mark_orphans_killed("0", lambda tags: True, "") == {}  # it waits to be sent
    other = client.create_experiment("other")
    begin = {"op": "begin", "run_id": None, "experiment_id": other, "tags": {}}
    stranger = RunSpool.create("stranger", links.store_uri(), begin, {"op": "end", "status": "FINISHED", "time": 2})
    stranger.release()
    with run_module.start_run("next", "train") as following:
        orphaned_runs.close_orphaned_runs(following, lambda tags: True, "goes on")
    run_module.flush()
    assert f"a ({run.info.run_id}) had ended" in capsys.readouterr().err
    statuses = {found.info.run_name: found.info.status for found in client.search_runs(["0"])}
    assert statuses == {"a": "FINISHED", "b": "FINISHED", "next": "FINISHED"}
    assert [run.folder for run in pending_runs()] == [stranger.folder]


@pytest.mark.parametrize("failures", [1, MAX_DATABASE_ERRORS])
def test_a_database_that_fails_is_tried_again_and_then_refuses_one_run(client, fault, monkeypatch, failures, capsys):
    """MLflow on PostgreSQL answers so to the second of two processes that log the same data at once."""
    errors = [mlflow.MlflowException("UniqueViolation", error_code=BAD_REQUEST)] * failures
    log_inputs = Mock(side_effect=[*errors, None])
    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", log_inputs)
    if failures == 1:
        write(fault)
        assert capsys.readouterr().err == ""
    else:
        with pytest.raises(InputError, match="UniqueViolation"):
            write(fault)
        assert "refuses the record of a" in capsys.readouterr().err
    assert log_inputs.call_count == (2 if failures == 1 else failures)
    statuses = {found.info.run_name: found.info.status for found in client.search_runs(["0"])}
    assert statuses == {"a": "FINISHED" if failures == 1 else "RUNNING", "b": "FINISHED"}
    assert [run.name for run in pending_runs()] == ([] if failures == 1 else ["a"])
