"""A tracking server, or a local store, that goes away while runs are recorded: nothing is lost, nothing is doubled."""

import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from tests.helpers.commands import Workplace
from tests.helpers.outages import Always, Faults, FirstAnswersLost, Server, proxy

pytestmark = pytest.mark.timeout(600)

EPOCHS = 1500
RECIPE = ["--epochs", str(EPOCHS), "--dim", "8", "--device", "cpu"]
SHORT = ["--epochs", "3", "--dim", "8", "--device", "cpu"]
CURVES = ("train/loss", "train/clean_loss", "dev/mse", "dev/mae", "dev/pearson", "dev/spearman")


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache, pairs_folder) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("outage"), shared_cache)
    (place.folder / "grid.yaml").write_text(f"alpha: [0, 0.75]\nepochs: 3\ndim: 8\ndataset: {pairs_folder}\n")
    return place


@pytest.fixture(scope="module")
def server(place) -> Iterator[Server]:
    server = Server(place.folder / "server", place.environment)
    server.start()
    yield server
    server.stop()


def start(place: Workplace, uri: str, *arguments: str, flush_timeout: float = 60) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "twinsqueeze", *arguments],
        cwd=place.folder,
        env=place.environment | {"MLFLOW_TRACKING_URI": uri, "TWINSQUEEZE_FLUSH_TIMEOUT": str(flush_timeout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, seconds: float = 500) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def commands(pairs_folder: Path) -> dict[str, list[str]]:
    """A run, and a parent with children."""
    return {
        "main": ["main", "--dataset", str(pairs_folder), *SHORT],
        "ablation": ["ablation", "--grid", "grid.yaml", "--force", "true"],
    }


def run(place: Workplace, uri: str, *arguments: str, flush_timeout: float = 60) -> tuple[int, str, str]:
    return finish(start(place, uri, *arguments, flush_timeout=flush_timeout))


def until_trained(process: subprocess.Popen, share: float = 0.2) -> str:
    """Returns what was said until a share of the epochs is done."""
    said = ""
    for line in process.stderr:
        said += line
        if (match := re.match(r"training: epoch (\d+) of (\d+)", line)) and int(match[1]) >= share * int(match[2]):
            return said
    raise AssertionError(said)


def records(place: Workplace) -> list:
    return [path for path in (place.folder / "state" / "records").iterdir() if path.name[0] != "."]


def new_runs(server: Server, before: list[str]) -> list[str]:
    return [run_id for run_id in server.runs() if run_id not in before]


@pytest.fixture(scope="module")
def undisturbed(place, server, pairs_folder) -> dict[str, dict]:
    """What the server has of each kind of run where nothing went wrong."""
    found = {}
    for name, arguments in commands(pairs_folder).items():
        before = server.runs()
        code, _, err = run(place, server.uri, *arguments)
        assert code == 0, err
        found[name] = by_name(server, new_runs(server, before))
    assert found["main"]["mlp8-alpha0.75-seed0"]["models"]
    assert len(found["ablation"]) == 3
    return found


def by_name(server: Server, run_ids: list[str]) -> dict:
    contents = [server.contents(run_id) for run_id in run_ids]
    named = {dict(content["tags"])["mlflow.runName"]: content for content in contents}
    assert len(named) == len(contents)
    return named


def assert_every_epoch_is_there_once(metrics: Counter, epochs: int) -> None:
    assert set(metrics.values()) == {1}
    for name in CURVES:
        assert sorted(step for key, step, _ in metrics if key == name) == list(range(1, epochs + 1)), name


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started_again_has_everything_once(place, server, pairs_folder):
    before = server.runs()
    process = start(place, server.uri, "main", "--dataset", str(pairs_folder), *RECIPE)
    until_trained(process)
    server.stop()
    time.sleep(6)  # metrics gather for five seconds
    server.start()
    code, out, err = finish(process)
    assert code == 0, err
    assert "fails" in err
    assert "is back" in err
    assert "mlp8-alpha0.75-seed0" in out
    (run_id,) = new_runs(server, before)
    contents = server.contents(run_id)
    assert contents["status"] == ("FINISHED", "active")
    assert_every_epoch_is_there_once(contents["metrics"], EPOCHS)
    assert len(contents["files"]) == 7
    assert len(contents["models"]) == contents["outputs"] == 1
    assert records(place) == []


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "name"), [(1, "main"), (3, "ablation")])
def test_answers_that_are_lost_double_nothing(place, server, undisturbed, pairs_folder, seed, name):
    """Of every kind of request the first is taken by the server, and the client never hears of it."""
    # Seeds with which one of the three questions that a command begins with is answered: after three that are not, it
    # says that the server does not answer, and records nothing that could be lost or doubled.
    before, faults = server.runs(), FirstAnswersLost(seed)
    if name == "ablation":
        faults.kinds |= {"POST api mlflow runs search"}  # which is read before anything is sent
    with proxy(server.port, faults) as uri:
        code, _, err = run(place, uri, *commands(pairs_folder)[name])
    assert code == 0, err
    kinds = " ".join(faults.kinds)
    for kind in ("runs create", "metrics", "params", "tags", "log-inputs", "outputs", "logged-models", "PUT file"):
        assert kind in kinds
    assert faults.done[Faults.LOSE] >= len(faults.kinds) - 1
    assert by_name(server, new_runs(server, before)) == undisturbed[name]
    assert records(place) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Faults.FAIL, Faults.HANG, Faults.CUT])
def test_training_goes_on_while_the_server_fails(place, server, undisturbed, pairs_folder, fault):
    """From the beginning of the training to its end the server gives no answer that is of use."""
    before, faults = server.runs(), Always(fault)
    with proxy(server.port, faults) as uri:
        process = start(place, uri, "main", "--dataset", str(pairs_folder), *SHORT)
        wait_for(lambda: new_runs(server, before))
        faults.on = True
        assert any(line.startswith("Next:") for line in process.stdout)  # printed before the server is waited for
        faults.on = False
        faults.stop_hanging.set()
        code, _, err = finish(process)
    assert code == 0, err
    assert faults.done[fault] > 0
    assert by_name(server, new_runs(server, before)) == undisturbed["main"]
    assert records(place) == []


@pytest.mark.slow
def test_what_a_server_that_never_returned_has_not_is_sent_later(place, server, undisturbed, pairs_folder):
    before = server.runs()
    for name, arguments in commands(pairs_folder).items():
        faults = Always(Faults.CUT)
        with proxy(server.port, faults) as uri:
            process = start(place, uri, *arguments, flush_timeout=2)
            until_trained(process, 0)  # a grid reads what the server has before it trains
            faults.on = True
            code, out, err = finish(process)
            assert code == 2, err
            assert "Traceback" not in err
            last = err.strip().splitlines()[-1]
            assert str(place.folder / "state" / "records") in last
            assert "python -m twinsqueeze sync" in last
            assert "dev" in out, "the results are printed all the same"
            count = {"main": 1, "ablation": 3}[name]
            assert len(records(place)) == count
            code, out, _ = run(place, server.uri, "sync", "--list")
            assert code == 0
            assert out.count(f"for {uri}") == out.count("has ended") == count
            code, _, err = run(place, server.uri, "sync")
            assert code == 0
            assert err.count(f"it is for {uri}") == count
            code, _, err = run(place, uri, "sync", flush_timeout=0)
            assert code == 2
            assert "does not answer" in err
            faults.on = False
            code, out, err = run(place, uri, "sync")
        assert code == 0, err
        assert out.count("Sent ") == count
        assert by_name(server, new_runs(server, before)) == undisturbed[name]
        assert records(place) == []
        before = server.runs()
    code, out, _ = run(place, server.uri, "sync")
    assert code == 0
    assert "everything has been sent" in out


@pytest.mark.slow
def test_a_killed_command_leaves_a_record_that_sync_ends(place, server, pairs_folder):
    """Killed with -9 while the server is away: what had been recorded is sent, once, and the run is KILLED."""
    before, faults = server.runs(), Always(Faults.CUT)
    with proxy(server.port, faults) as uri:
        process = start(place, uri, "main", "--dataset", str(pairs_folder), "--epochs", "100000", *RECIPE[2:])
        until_trained(process, 0)
        faults.on = True
        wait_for(lambda: faults.done[Faults.CUT] > 1)
        code, out, err = run(place, uri, "sync", "--list")
        assert "its command is running" in out
        process.kill()
        process.communicate()
        faults.on = False
        (run_id,) = new_runs(server, before)
        assert server.query("SELECT status FROM runs WHERE run_uuid = ?", run_id) == [("RUNNING",)]
        for _ in range(2):
            code, out, err = run(place, uri, "sync")
            assert code == 0, err
        assert "everything has been sent" in out
    contents = server.contents(run_id)
    assert contents["status"] == ("KILLED", "active")
    assert dict(contents["tags"])["mlflow.note.content"] == "Killed: the process that recorded the run is gone."
    losses = sorted(step for key, step, _ in contents["metrics"] if key == "train/loss")
    assert losses == list(range(1, len(losses) + 1))
    assert len(losses) > 100
    assert set(contents["metrics"].values()) == {1}


@pytest.mark.slow
def test_a_run_that_was_deleted_is_refused_and_its_record_discarded(place, server, pairs_folder):
    before, faults = server.runs(), Always(Faults.CUT)
    with proxy(server.port, faults) as uri:
        process = start(place, uri, "main", "--dataset", str(pairs_folder), *SHORT, flush_timeout=30)
        wait_for(lambda: new_runs(server, before))
        faults.on = True
        assert any(line.startswith("waiting for the tracking server") for line in process.stderr)
        process.send_signal(signal.SIGINT)  # instead of the rest of the 30 seconds
        code, _, err = finish(process)
        assert code == 130
        assert "python -m twinsqueeze sync" in err
        faults.on = False
        (run_id,) = new_runs(server, before)
        mlflow.MlflowClient(server.uri).delete_run(run_id)
        code, _, err = run(place, uri, "sync")
        assert code == 2
        assert f"({run_id}): " in err
        assert "--discard RUN_ID" in err
        assert len(records(place)) == 1
        assert run(place, uri, "sync", "--discard", "0" * 32)[0] == 2
        code, out, _ = run(place, uri, "sync", "--discard", run_id)
        assert code == 0
        assert run_id in out
    assert records(place) == []
    assert new_runs(server, before) == [run_id]


@pytest.mark.slow
def test_a_locked_store_loses_nothing(workplace, pairs_folder):
    """Another program has the sqlite file for itself from the beginning of the training until after its end."""
    process = start(workplace, workplace.uri, "main", "--dataset", str(pairs_folder), *SHORT)
    database = workplace.folder / "mlflow.db"
    wait_for(lambda: database.exists() and count(database, "runs") == 1)
    with sqlite3.connect(database, timeout=30, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert any("database is locked" in line for line in process.stderr)
        assert any(line.startswith("Next:") for line in process.stdout)
        other.execute("ROLLBACK")
    code, _, err = finish(process)
    assert code == 0, err
    (run,) = workplace.runs()
    assert run.info.status == "FINISHED"
    with sqlite3.connect(database) as reader:
        metrics = Counter(reader.execute("SELECT key, step, value FROM metrics").fetchall())
    assert_every_epoch_is_there_once(metrics, 3)
    assert records(workplace) == []


def count(database: Path, table: str) -> int:
    try:
        with sqlite3.connect(database) as reader:
            return int(reader.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    except sqlite3.OperationalError:  # it is being made
        return 0


def wait_for(condition: Callable[[], object], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
