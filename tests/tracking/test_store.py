"""Stores in folders of any name, and the current experiment."""

import os
from contextlib import closing

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mlflow.utils.file_utils import path_to_local_sqlite_uri
from sqlalchemy import create_engine

from tests.helpers.commands import Workplace
from twinsqueeze.tracking.store import canonical_uri, sqlite_path

FOLDER = "Anna Mária 50% %20#1?;&'(x)@y"
folders = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=30) | st.lists(
    st.sampled_from(["a", " ", "%", "%20", "#", "?", "é", "@", ":", "+", "&", "'", "\\", "\n", "~", "=", "..."]),
    min_size=1,
).map("".join)


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
@given(folders.filter(lambda name: name not in {".", ".."}))
def test_the_path_of_a_store_is_the_file_that_sqlalchemy_opens(tmp_path, name):
    folder = tmp_path / name[:60]
    try:
        folder.mkdir(exist_ok=True)
    except OSError:  # macOS takes no unassigned characters
        assume(False)
    default = path_to_local_sqlite_uri(str(folder / "mlflow.db"))  # as MLflow encodes it
    for uri in (default, canonical_uri(default)):
        (folder / "mlflow.db").unlink(missing_ok=True)
        with closing(create_engine(uri).raw_connection()) as database:
            database.execute("CREATE TABLE t (x)")
        assert sqlite_path(uri) == folder / "mlflow.db"
        assert [path.name for path in folder.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("sqlite:///store.db", "store.db"),
        ("sqlite:///a b/store.db?timeout=5", "a b/store.db"),
        ("sqlite+pysqlite:///store.db", "store.db"),
        *((uri, None) for uri in ("sqlite://", "sqlite:///:memory:", "sqlite:///file:x.db?uri=true", "http://h:5000")),
        *((uri, None) for uri in ("./mlruns", "localhost:5000", "postgresql://u@h/d", "", "databricks", "http://[")),
    ],
)
def test_addresses_with_and_without_a_file(tmp_path, monkeypatch, uri, name):
    monkeypatch.chdir(tmp_path)
    assert sqlite_path(uri) == (name and tmp_path / name)


def test_commands_work_in_a_folder_of_any_name(tmp_path, shared_cache, tiny_options, monkeypatch):
    """MLflow's default address is that of the working directory, percent-encoded."""
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "")  # removed after the test
    monkeypatch.delenv("_MLFLOW_SERVER_ARTIFACT_ROOT")
    folder = tmp_path / FOLDER
    folder.mkdir()
    place = Workplace(folder, shared_cache)
    for command in (["main", *tiny_options, "--epochs", "1"], ["compare", "--output", "tables"], ["register"]):
        done = place.command(*command, MLFLOW_TRACKING_URI="", TWINSQUEEZE_STATE=str(folder / "a%20b"))
        assert done.returncode == 0, done.stderr
    assert "MLFLOW_REGISTRY_URI" not in os.environ
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlruns", "a%20b", "tables"}


def test_a_file_that_is_no_database_is_refused_in_such_a_folder(tmp_path, shared_cache):
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(b"no database" * 200)
    done = Workplace(folder, shared_cache).command("compare", MLFLOW_TRACKING_URI="")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "file is not a database" in done.stderr


@pytest.mark.parametrize("command", ["main", "compare", "register"])
def test_settings_of_the_experiment_that_disagree(workplace, tiny_options, command):
    options = [*tiny_options, "--epochs", "1"] if command == "main" else []
    other = workplace.client.create_experiment("other")
    before = {experiment.name for experiment in workplace.client.search_experiments()}
    for name, experiment_id, message in (("new", "0", "'new'"), ("other", "0", "'other'"), ("new", "77", "'77'")):
        settings = {"MLFLOW_EXPERIMENT_NAME": name, "MLFLOW_EXPERIMENT_ID": experiment_id}
        done = workplace.command(command, *options, **settings)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    done = workplace.command(command, *options, MLFLOW_EXPERIMENT_ID="77")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert {experiment.name for experiment in workplace.client.search_experiments()} == before
    assert not workplace.client.search_runs(["0", other])


def test_an_experiment_that_only_has_a_name_is_made(workplace, tiny_options):
    done = workplace.command("train", *tiny_options, "--epochs", "1", MLFLOW_EXPERIMENT_NAME="new")
    assert done.returncode == 0, done.stderr
    experiment = workplace.client.get_experiment_by_name("new")
    assert len(workplace.client.search_runs([experiment.experiment_id])) == 1
    settings = {"MLFLOW_EXPERIMENT_NAME": "new", "MLFLOW_EXPERIMENT_ID": experiment.experiment_id}
    assert workplace.command("compare", **settings).returncode == 0
