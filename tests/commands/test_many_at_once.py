"""Many commands at once on one store: nothing is lost, doubled or passed over."""

import os
from contextlib import closing
from types import SimpleNamespace

import mlflow
import psycopg
import pytest

from tests.helpers.commands import together
from tests.helpers.contention import check_succession, contend
from tests.helpers.forks import ForkedProcess
from tests.helpers.servers import mlflow_server, postgres_database
from tests.helpers.stores import query
from twinsqueeze.errors import InputError
from twinsqueeze.tracking.run import check_tracking_server

EPOCHS = 3
TRAIN = ["train", "--epochs", str(EPOCHS)]
COMMAND = """
import sys
from twinsqueeze import cli
print("ready", flush=True)
sys.stdin.readline()
cli.run()
"""

RUNS = "SELECT e.name, r.status, count(*) FROM runs r JOIN experiments e USING (experiment_id) GROUP BY 1, 2 ORDER BY 1"
KEYS = "dev/spearman", "train/clean_loss", "train/loss"
CURVES = (
    "SELECT key, count(*), count(DISTINCT step), min(step), max(step) FROM metrics "
    f"WHERE key IN {KEYS} GROUP BY key, run_uuid ORDER BY key"
)


def whole_curves(num_runs: int) -> list[tuple]:
    """The rows of `CURVES` if every run has every epoch once."""
    return [(key, EPOCHS, EPOCHS, 1, EPOCHS) for key in KEYS for _ in range(num_runs)]


def test_a_file_that_is_no_database_is_refused_at_once(workplace, use_store, monkeypatch):
    (workplace.folder / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 2000)
    use_store(workplace.uri)
    pauses = []  # between attempts: those of MLflow take 100 seconds
    monkeypatch.setattr("mlflow.store.db.utils.time", SimpleNamespace(sleep=pauses.append))
    with pytest.raises(InputError, match="can't be used"):
        check_tracking_server()
    assert pauses == []


@pytest.mark.slow
def test_four_commands_on_a_fresh_store_and_an_empty_cache(workplace, small_training):
    """All make the store, the experiment and the cache of the same sentences, where MLflow itself often fails."""
    cache = workplace.folder / "cache"
    environment = workplace.environment | {"MLFLOW_EXPERIMENT_NAME": "fresh", "TWINSQUEEZE_CACHE": str(cache)}
    together([["-c", COMMAND, *TRAIN, *small_training]] * 4, [environment] * 4, workplace.folder)
    assert query(workplace.folder, RUNS) == [("fresh", "FINISHED", 4)]
    assert query(workplace.folder, CURVES) == whole_curves(4)
    scores = query(workplace.folder, "SELECT DISTINCT value FROM metrics WHERE key = 'dev/spearman' AND step = 3")
    assert len(scores) == 1
    assert not list(cache.glob("*.part"))


HOLD = """
import sqlite3, sys, time
print("ready", flush=True)
while True:
    connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    time.sleep(0.1)
    connection.execute("COMMIT")
    connection.close()
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_a_database_that_another_process_keeps_locking(workplace, small_training):
    """It is locked two thirds of the time, a tenth of a second each."""
    workplace.run(*TRAIN, *small_training)
    with ForkedProcess(["-c", HOLD, str(workplace.folder / "mlflow.db")], os.environ, workplace.folder) as holder:
        holder.stdout.readline()
        workplace.run(*TRAIN, *small_training)
        holder.kill()
    assert {run.info.status for run in workplace.runs()} == {"FINISHED"}
    points = "SELECT key, step, value FROM metrics WHERE run_uuid = ? AND key NOT LIKE 'time/%'"
    disturbed, undisturbed = (query(workplace.folder, points, run.info.run_id) for run in workplace.runs())
    assert disturbed == undisturbed
    assert query(workplace.folder, CURVES) == whole_curves(2)


@pytest.mark.slow
def test_eight_commands_against_a_server_on_postgresql(workplace, small_training):
    """Four in each of two experiments, which they make at once; then a register of each, at once as well."""
    with (
        postgres_database() as postgres,
        mlflow_server(postgres, workplace.folder / "server", workplace.environment, "--workers", "2") as address,
    ):
        environment = workplace.environment | {"MLFLOW_TRACKING_URI": address}
        in_experiments = [environment | {"MLFLOW_EXPERIMENT_NAME": name} for name in ("left", "right")]
        commands = [["-c", COMMAND, *TRAIN, *small_training, "--seed", str(seed)] for seed in range(8)]
        together(commands, in_experiments * 4, workplace.folder)

        with closing(psycopg.connect(postgres)) as connection:
            assert connection.execute(RUNS).fetchall() == [("left", "FINISHED", 4), ("right", "FINISHED", 4)]
            assert connection.execute(CURVES).fetchall() == whole_curves(8)
            models = connection.execute("SELECT count(*), count(DISTINCT source_run_id) FROM logged_models")
            assert models.fetchall() == [(8, 8)]

        said = together([["-c", COMMAND, "register"]] * 2, in_experiments, workplace.folder)
        # One of them was judged against the other, whichever was first, and they know their numbers.
        assert sorted("There was no champion to compare with." in text for text in said) == [False, True]
        assert sorted("; champion (version " in text for text in said) == [False, True]
        client = mlflow.MlflowClient(address)
        versions = client.search_model_versions("name = 'twinsqueeze'")
        assert len({version.tags["twinsqueeze.trained_run"] for version in versions}) == 2
        aliases = client.get_registered_model("twinsqueeze").aliases
        assert set(aliases) in ({"champion", "previous"}, {"champion", "challenger"})
        client.delete_registered_model("twinsqueeze")

        versions = contend(address, processes=2, rounds=6)
        assert len(versions) == 12
        check_succession(client, versions)


KILLED_WRITER = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN")
database.execute("CREATE TABLE half (x)")
for _ in range(200):
    database.execute("INSERT INTO half VALUES (zeroblob(4000))")
os.kill(os.getpid(), 9)
"""


def test_a_writer_that_was_killed_within_a_transaction_stops_nobody(trained_place, tmp_path, use_store):
    place = trained_place.copy_to(tmp_path)
    use_store(place.uri)
    file = place.folder / "mlflow.db"
    with ForkedProcess(["-c", KILLED_WRITER, str(file)], os.environ, place.folder) as writer:
        assert writer.wait() < 0
    assert file.with_name("mlflow.db-journal").stat().st_size > 0
    check_tracking_server()
    assert query(place.folder, "SELECT count(*) FROM sqlite_master WHERE name = 'half'") == [(0,)]
    assert len(place.runs()) == len(trained_place.runs())
