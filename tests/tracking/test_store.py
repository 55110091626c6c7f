"""Stores in folders of any name, and the current experiment."""

import os
from contextlib import closing
from subprocess import CompletedProcess

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mlflow.utils.file_utils import path_to_local_sqlite_uri
from sqlalchemy import create_engine

from tests.helpers.commands import Workplace
from twinsqueeze.tracking.store import canonical_uri, sqlite_path

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=30)
special = ["a", " ", "%", "%20", "#", "?", "é", "@", ":", "+", "&", "'", "\\", "\n", "~", "=", "..."]
folders = texts | st.lists(st.sampled_from(special), min_size=1).map("".join)


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
    monkeypatch.delenv("_MLFLOW_SERVER_ARTIFACT_ROOT", raising=False)  # and removed after the test
    folder = tmp_path / "Anna Mária 50% %20#1?;&'(x)@y"
    folder.mkdir()
    place = Workplace(folder, shared_cache)
    for command in (["main", *tiny_options, "--epochs", "1"], ["compare", "--output", "tables"], ["register"]):
        place.run(*command, MLFLOW_TRACKING_URI="", TWINSQUEEZE_STATE=str(folder / "a%20b"))
    assert "MLFLOW_REGISTRY_URI" not in os.environ
    assert list(tmp_path.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlruns", "a%20b", "tables"}


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_experiment_of_the_environment(workplace, tiny_options, command):
    """It is made if it only has a name, and refused if its name and id disagree."""
    workplace.client.create_experiment("other")
    arguments = [command, *tiny_options, "--epochs", "1"] if command == "train" else [command, "--output", "tables"]

    def run(name: str | None, experiment_id: str | None) -> CompletedProcess[str]:
        settings = {"MLFLOW_EXPERIMENT_NAME": name, "MLFLOW_EXPERIMENT_ID": experiment_id}
        return workplace.command(*arguments, **{key: value for key, value in settings.items() if value})

    for name, experiment_id, message in (
        *(("new", "0", "'new'"), ("other", "0", "'other'"), ("new", "77", "'77'")),
        (None, "77", "77"),
    ):
        done = run(name, experiment_id)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    assert {found.name for found in workplace.client.search_experiments()} == {"Default", "other"}
    if command == "train":
        assert run("new", None).returncode == 0
        experiment = workplace.client.get_experiment_by_name("new").experiment_id
        assert run("new", experiment).returncode == 0
        assert len(workplace.client.search_runs([experiment])) == 2
