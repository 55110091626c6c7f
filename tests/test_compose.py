"""The tracking server of compose.yaml, without Docker: its environment and health check, with a local PostgreSQL."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml
from mlflow import MlflowClient

from tests.helpers.servers import mlflow_server, postgres_database

SERVICE = yaml.safe_load((Path(__file__).parents[1] / "compose.yaml").read_text())["services"]["tracking"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def address(artifacts, tmp_path_factory):
    environment = {**os.environ, **SERVICE["environment"], "MLFLOW_ARTIFACTS_DESTINATION": str(artifacts)}
    driver = environment["MLFLOW_BACKEND_STORE_URI"].partition("://")[0]
    with postgres_database() as database:
        backend = database.replace("postgresql", driver)
        with mlflow_server(backend, tmp_path_factory.mktemp("server"), environment) as address:
            yield address


def test_runs_and_artifacts_arrive_and_the_store_holds_the_files(address, artifacts, tmp_path):
    client = MlflowClient(address)
    run = client.create_run(client.create_experiment("compression"))
    client.log_metric(run.info.run_id, "dev/spearman", 0.8)
    (tmp_path / "table.csv").write_text("model\n")
    client.log_artifact(run.info.run_id, str(tmp_path / "table.csv"))
    assert client.get_run(run.info.run_id).data.metrics == {"dev/spearman": 0.8}
    assert [file.read_text() for file in artifacts.rglob("table.csv")] == ["model\n"]


@pytest.mark.parametrize(("host", "status"), [("localhost:5000", 200), ("tracking:5000", 200), ("evil.example", 403)])
def test_it_answers_to_its_names_in_and_outside_of_the_network_only(address, host, status):
    answer = requests.get(
        f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host}, timeout=60
    )
    assert answer.status_code == status


def test_the_health_check_succeeds_while_it_runs_only(address):
    marker, *command = SERVICE["healthcheck"]["test"]
    assert (marker, command[0]) == ("CMD", "python")
    for port, succeeds in ((address, True), ("http://127.0.0.1:9", False)):
        script = command[-1].replace("http://localhost:5000", port)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        assert (done.returncode == 0) == succeeds
