"""A tracking server that goes away while runs are recorded: nothing is lost, nothing is doubled."""

import json
import re
import signal
from collections.abc import Iterator
from itertools import cycle

import mlflow
import pytest

from tests.helpers.commands import Workplace
from tests.helpers.forks import ForkedProcess
from tests.helpers.outages import CUT, FAIL, HANG, LOSE, PASS, Faults, LoseFirstAnswers, proxy
from tests.helpers.pairs import write_pairs
from tests.helpers.servers import free_port, mlflow_server
from tests.helpers.stores import contents_by_name, query, run_ids

pytestmark = pytest.mark.slow

TRAINING = ["main", "--dataset", "pairs", "--encoder", "./encoder", "--device", "cpu", "--dim", "8"]
ABLATION = ["ablation", "--grid", "grid.yaml", "--force", "true"]  # a parent with two children


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache, tiny_encoder) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("outage"), shared_cache)
    write_pairs(place.folder / "pairs")
    (place.folder / "encoder").symlink_to(tiny_encoder)
    grid = {"dataset": "pairs", "encoder": "./encoder", "device": "cpu", "dim": 8, "alpha": [0, 0.75], "epochs": 3}
    (place.folder / "grid.yaml").write_text(json.dumps(grid))
    return place


@pytest.fixture(scope="module")
def server(place) -> Iterator[str]:
    folder = place.folder / "server"
    with mlflow_server("sqlite:///mlflow.db", folder, place.environment, "--workers", "1") as address:
        yield address


@pytest.fixture
def new_runs(place, server):
    """Returns a function that returns the ids of the server's runs since the beginning of the test."""
    before = run_ids(place.folder / "server")
    return lambda: run_ids(place.folder / "server") - before


@pytest.fixture(scope="module")
def undisturbed(place, server) -> dict[str, dict]:
    """What the server has of the ablation where nothing goes wrong."""
    with start(place, server, *ABLATION) as process:
        process.finish()
    found = contents_by_name(place.folder / "server", run_ids(place.folder / "server"))
    assert len(found) == 3
    assert all(content["models"] for name, content in found.items() if name.startswith("mlp8"))
    return found


def start(place: Workplace, uri: str, *arguments: str, flush_timeout: int = 60) -> ForkedProcess:
    variables = {"MLFLOW_TRACKING_URI": uri, "TWINSQUEEZE_FLUSH_TIMEOUT": str(flush_timeout), "RETRY_SOON": "1"}
    return place.start(*arguments, module="tests.helpers.altered_command", **variables)


def sync(place: Workplace, uri: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What `sync` prints on both streams."""
    done = place.command("sync", *arguments, MLFLOW_TRACKING_URI=uri, TWINSQUEEZE_FLUSH_TIMEOUT="0" if code else "60")
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def wait_for_line(process: ForkedProcess, pattern: str, stream: str = "stderr") -> None:
    lines = []
    for line in getattr(process, stream):
        if re.match(pattern, line):
            return
        lines.append(line)
    raise AssertionError(f"The command ended with {process.wait()} and printed no line like {pattern}:\n{lines}")


def records(place: Workplace) -> list:
    return list((place.folder / "state" / "records").glob("[!.]*"))


def test_answers_that_are_lost_double_nothing(place, server, undisturbed, new_runs):
    """Of every kind of request the first is taken by the server, and the client never hears of it."""
    # An ablation reads the runs first, and ends if it can't.
    choose = LoseFirstAnswers("POST api mlflow runs search")
    faults = Faults(choose)
    with proxy(server, faults) as uri, start(place, uri, *ABLATION) as process:
        process.finish()
    kinds = " ".join(choose.kinds)
    for kind in ("runs create", "metrics", "params", "tags", "log-inputs", "outputs", "logged-models", "PUT file"):
        assert kind in kinds
    assert faults.counts[LOSE] >= len(choose.kinds) - 1
    assert contents_by_name(place.folder / "server", new_runs()) == undisturbed
    assert records(place) == []


def test_training_goes_on_while_the_server_fails(place, server, undisturbed, new_runs):
    """During the training the server can't be reached, and then gives no answer that is of use."""
    port, faults = free_port(), Faults()
    with proxy(server, Faults(), port) as uri:
        process = start(place, uri, *ABLATION)
        wait_for_line(process, "training: epoch")  # a grid reads what the server has before it trains
    with process:
        wait_for_line(process, ".*fails.*connection refused")
        failures = cycle([FAIL, HANG, CUT])
        faults.choose = lambda kind: next(failures)
        with proxy(server, faults, port):
            wait_for_line(process, "Next:", "stdout")  # the results are printed before the server is waited for
            process.wait_for(lambda: {FAIL, HANG, CUT} == faults.counts.keys())
            faults.choose = lambda kind: PASS
            faults.stop_hanging.set()
            assert "is back" in process.finish()[1]
    assert contents_by_name(place.folder / "server", new_runs()) == undisturbed
    assert records(place) == []


def test_what_a_server_that_never_returned_has_not_is_sent_later(place, server, undisturbed, new_runs):
    """Except for a run that was deleted in the meantime, whose record is discarded."""
    faults = Faults()
    with proxy(server, faults) as uri:
        with start(place, uri, *ABLATION, flush_timeout=3600) as process:
            wait_for_line(process, "training: epoch")
            faults.choose = lambda kind: CUT
            wait_for_line(process, "Next:", "stdout")
            wait_for_line(process, "waiting for the tracking server")
            process.send_signal(signal.SIGINT)  # instead of the rest of the hour
            _, err = process.finish(130)
        assert "Traceback" not in err
        assert str(place.folder / "state" / "records") in err
        assert "twinsqueeze sync" in err
        assert len(records(place)) == 3
        assert "does not answer" in sync(place, uri, code=2)[1]
        faults.choose = lambda kind: PASS
        (parent,) = new_runs()
        mlflow.MlflowClient(server).delete_run(parent)
        out, err = sync(place, uri, code=2)
        assert out.count("Sent ") == 2
        assert f"({parent}): " in err
        assert "--discard RUN_ID" in err
        assert parent in sync(place, uri, "--discard", parent)[0]
    children = contents_by_name(place.folder / "server", new_runs() - {parent})
    assert children == {name: undisturbed[name] for name in children}
    assert len(children) == 2
    assert records(place) == []


def test_a_killed_command_leaves_a_record_that_sync_ends(place, server, new_runs):
    """Killed with -9 while the server is away: what had been recorded is sent, once, and the run is KILLED."""
    faults, client = Faults(), mlflow.MlflowClient(server)

    def metrics() -> list[tuple]:
        points = "SELECT key, step, value FROM metrics WHERE run_uuid = ?"
        return [point for run_id in new_runs() for point in query(place.folder / "server", points, run_id)]

    with proxy(server, faults) as uri:
        with start(place, uri, *TRAINING, "--epochs", "100000") as process:
            process.wait_for(metrics)
            faults.choose = lambda kind: CUT
            process.wait_for(lambda: faults.counts[CUT] > 1)
            process.kill()
        faults.choose = lambda kind: PASS
        before, (run_id,) = metrics(), new_runs()
        assert client.get_run(run_id).info.status == "RUNNING"
        sync(place, uri)
        assert "everything has been sent" in sync(place, uri)[0]
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["mlflow.note.content"] == "Killed: the process that recorded the run is gone."
    losses = sorted(step for key, step, _ in metrics() if key == "train/loss")
    assert losses == list(range(1, len(losses) + 1))
    assert len(metrics()) == len(set(metrics())) > len(before)
