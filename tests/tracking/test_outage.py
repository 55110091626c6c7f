"""A tracking server, or a local store, that goes away while runs are recorded: nothing is lost, nothing is doubled."""

import re
import signal
import sqlite3
from collections.abc import Iterator

import mlflow
import pytest

from tests.helpers.commands import Workplace
from tests.helpers.forks import ForkedProcess
from tests.helpers.outages import Faults, FirstAnswersLost, Server, proxy
from tests.helpers.pairs import write_pairs
from tests.helpers.stores import contents_by_name, run_contents, run_ids

pytestmark = pytest.mark.slow

TRAINING = ["main", "--dataset", "pairs", "--encoder", "./encoder", "--device", "cpu", "--dim", "8"]
# A run, and a parent with children.
COMMANDS = {"main": [*TRAINING, "--epochs", "3"], "ablation": ["ablation", "--grid", "grid.yaml", "--force", "true"]}
NUM_RUNS = {"main": 1, "ablation": 3}
CURVES = ("train/loss", "train/clean_loss", "dev/mse", "dev/mae", "dev/pearson", "dev/spearman")


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache, tiny_encoder) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("outage"), shared_cache)
    write_pairs(place.folder / "pairs")
    (place.folder / "encoder").symlink_to(tiny_encoder)
    grid = "alpha: [0, 0.75]\nepochs: 3\ndim: 8\ndataset: pairs\nencoder: ./encoder\ndevice: cpu\n"
    (place.folder / "grid.yaml").write_text(grid)
    return place


@pytest.fixture(scope="module")
def server(place) -> Iterator[Server]:
    server = Server(place.folder / "server", place.environment)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def new_runs(server):
    """Returns a function that returns the ids of the runs since the beginning of the test."""
    before = run_ids(server.folder)
    return lambda: run_ids(server.folder) - before


def start(place: Workplace, uri: str, *arguments: str, flush_timeout: int = 60, pause: str = "") -> ForkedProcess:
    variables = {"MLFLOW_TRACKING_URI": uri, "TWINSQUEEZE_FLUSH_TIMEOUT": str(flush_timeout), "RETRY_SOON": "1"}
    variables["PAUSE"] = pause
    return place.start(*arguments, module="tests.helpers.altered_command", **variables)


def sync(place: Workplace, uri: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What `sync` prints on both streams."""
    done = place.command("sync", *arguments, MLFLOW_TRACKING_URI=uri, TWINSQUEEZE_FLUSH_TIMEOUT="0" if code else "60")
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def wait_for_line(process: ForkedProcess, pattern: str) -> None:
    lines = []
    for line in process.stderr:
        if re.match(pattern, line):
            return
        lines.append(line)
    lines.insert(0, f"The command ended with {process.wait()} and printed no line like {pattern}:\n")
    raise AssertionError("".join(lines))


def wait_for_results(process: ForkedProcess) -> None:
    if not any(line.startswith("Next:") for line in process.stdout):
        raise AssertionError(f"The command ended with {process.wait()} and no results:\n{process.stderr.read()}")


def records(place: Workplace) -> list:
    return list((place.folder / "state" / "records").glob("[!.]*"))


@pytest.fixture(scope="module")
def undisturbed(place, server) -> dict[str, dict]:
    """What the server has of each kind of run where nothing went wrong."""
    found = {}
    for name, arguments in COMMANDS.items():
        before = run_ids(server.folder)
        with start(place, server.uri, *arguments) as process:
            process.finish()
        found[name] = contents_by_name(server.folder, run_ids(server.folder) - before)
        assert len(found[name]) == NUM_RUNS[name]
    assert found["main"]["mlp8-a0.75-s0-epochs3"]["models"]
    return found


def check_every_epoch_is_there_once(metrics: list[tuple], epochs: int) -> None:
    assert len(metrics) == len(set(metrics))
    for name in CURVES:
        assert sorted(step for key, step, _ in metrics if key == name) == list(range(1, epochs + 1)), name


def test_a_server_that_is_stopped_and_started_again_has_everything_once(place, server, new_runs):
    with start(place, server.uri, *TRAINING, "--epochs", "500") as process:
        wait_for_line(process, "training: epoch 100 of")
        server.stop()
        wait_for_line(process, ".*fails")
        server.start()
        out, err = process.finish()
    assert "is back" in err
    assert "this model" in out
    (run_id,) = new_runs()
    contents = run_contents(server.folder, run_id)
    assert contents["status"] == [("FINISHED", "active")]
    check_every_epoch_is_there_once(contents["metrics"], 500)
    assert len(contents["files"]) == 7
    assert len(contents["models"]) == len(contents["outputs"]) == 1
    assert records(place) == []


def test_answers_that_are_lost_double_nothing(place, server, undisturbed, new_runs):
    """Of every kind of request the first is taken by the server, and the client never hears of it."""
    # An ablation reads the runs first. With this seed the server answers one of its three requests before a run begins:
    # after three failures it would end, with nothing recorded that could be lost or doubled.
    faults = FirstAnswersLost(3, known=["POST api mlflow runs search"])
    with proxy(server.port, faults) as uri, start(place, uri, *COMMANDS["ablation"]) as process:
        process.finish()
    kinds = " ".join(faults.kinds)
    for kind in ("runs create", "metrics", "params", "tags", "log-inputs", "outputs", "logged-models", "PUT file"):
        assert kind in kinds
    assert faults.done[Faults.LOSE] >= len(faults.kinds) - 1
    assert contents_by_name(server.folder, new_runs()) == undisturbed["ablation"]
    assert records(place) == []


@pytest.mark.parametrize("fault", [Faults.FAIL, Faults.HANG, Faults.CUT])
def test_training_goes_on_while_the_server_fails(place, server, undisturbed, new_runs, fault):
    """From the beginning of the training to its end the server gives no answer that is of use."""
    faults = Faults()
    with proxy(server.port, faults) as uri, start(place, uri, *COMMANDS["main"]) as process:
        process.wait_for(new_runs)
        faults.fault = fault
        wait_for_results(process)  # printed before the server is waited for
        faults.fault = Faults.PASS
        faults.stop_hanging.set()
        process.finish()
    assert faults.done[fault] > 0
    assert contents_by_name(server.folder, new_runs()) == undisturbed["main"]
    assert records(place) == []


def test_what_a_server_that_never_returned_has_not_is_sent_later(place, server, undisturbed, new_runs):
    faults, count = Faults(), NUM_RUNS["ablation"]
    with proxy(server.port, faults) as uri:
        with start(place, uri, *COMMANDS["ablation"], flush_timeout=1) as process:
            wait_for_line(process, "training: epoch")  # a grid reads what the server has before it trains
            faults.fault = Faults.CUT
            out, err = process.finish(2)
        assert "Traceback" not in err
        last = err.strip().splitlines()[-1]
        assert str(place.folder / "state" / "records") in last
        assert "twinsqueeze sync" in last
        assert "dev" in out, "the results are printed all the same"
        assert len(records(place)) == count
        out, _ = sync(place, server.uri, "--list")
        assert out.count(f"for {uri}") == out.count("has ended") == count
        _, err = sync(place, server.uri)
        assert err.count(f"it is for {uri}") == count
        _, err = sync(place, uri, code=2)
        assert "does not answer" in err
        faults.fault = Faults.PASS
        out, _ = sync(place, uri)
    assert out.count("Sent ") == count
    assert contents_by_name(server.folder, new_runs()) == undisturbed["ablation"]
    assert records(place) == []
    assert "everything has been sent" in sync(place, server.uri)[0]


def test_a_killed_command_leaves_a_record_that_sync_ends(place, server, new_runs):
    """Killed with -9 while the server is away: what had been recorded is sent, once, and the run is KILLED."""
    faults = Faults()
    with proxy(server.port, faults) as uri:
        with start(place, uri, *TRAINING, "--epochs", "100000") as process:
            process.wait_for(lambda: any(run_contents(server.folder, run_id)["metrics"] for run_id in new_runs()))
            faults.fault = Faults.CUT
            process.wait_for(lambda: faults.done[Faults.CUT] > 1)
            assert "its command is running" in sync(place, uri, "--list")[0]
            process.kill()
        faults.fault = Faults.PASS
        (run_id,) = new_runs()
        before = run_contents(server.folder, run_id)
        assert before["status"] == [("RUNNING", "active")]
        sync(place, uri)
        assert "everything has been sent" in sync(place, uri)[0]
    contents = run_contents(server.folder, run_id)
    assert contents["status"] == [("KILLED", "active")]
    assert dict(contents["tags"])["mlflow.note.content"] == "Killed: the process that recorded the run is gone."
    losses = sorted(step for key, step, _ in contents["metrics"] if key == "train/loss")
    assert losses == list(range(1, len(losses) + 1))
    assert len(contents["metrics"]) == len(set(contents["metrics"])) > len(before["metrics"])


def test_a_run_that_was_deleted_is_refused_and_its_record_discarded(place, server, new_runs):
    faults = Faults()
    with proxy(server.port, faults) as uri:
        with start(place, uri, *COMMANDS["main"], flush_timeout=3600) as process:
            process.wait_for(new_runs)
            faults.fault = Faults.CUT
            wait_for_line(process, "waiting for the tracking server")
            process.send_signal(signal.SIGINT)  # instead of the rest of the hour
            _, err = process.finish(130)
        assert "twinsqueeze sync" in err
        faults.fault = Faults.PASS
        (run_id,) = new_runs()
        mlflow.MlflowClient(server.uri).delete_run(run_id)
        _, err = sync(place, uri, code=2)
        assert f"({run_id}): " in err
        assert "--discard RUN_ID" in err
        assert len(records(place)) == 1
        sync(place, uri, "--discard", "0" * 32, code=2)
        assert run_id in sync(place, uri, "--discard", run_id)[0]
    assert records(place) == []
    assert new_runs() == {run_id}


def test_a_locked_store_loses_nothing(place):
    """Another program has the sqlite file for itself from the beginning of the training until after its end."""
    place.client.search_experiments()  # creates the store
    with start(place, f"{place.uri}?timeout=1", *COMMANDS["main"], pause="first epoch") as process:
        process.wait_for((place.folder / "paused").exists)
        with sqlite3.connect(place.folder / "mlflow.db", timeout=1800, isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            (place.folder / "continue").touch()
            wait_for_line(process, ".*database is locked")
            wait_for_results(process)
            other.execute("ROLLBACK")
            process.finish()
            metrics = other.execute("SELECT key, step, value FROM metrics").fetchall()
    (run,) = place.runs()
    assert run.info.status == "FINISHED"
    check_every_epoch_is_there_once(metrics, 3)
    assert records(place) == []
