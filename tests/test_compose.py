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


def health_check(address: str) -> int:
    marker, program, *arguments = SERVICE["healthcheck"]["test"]
    assert (marker, program) == ("CMD", "python")
    arguments[-1] = arguments[-1].replace("http://localhost:5000", address)
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False).returncode


@pytest.mark.slow
def test_the_server_stores_runs_and_files_and_answers_to_its_own_names_only(tmp_path):
    environment = {**os.environ, **SERVICE["environment"], "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts")}
    driver = environment["MLFLOW_BACKEND_STORE_URI"].partition("://")[0]
    with (
        postgres_database() as database,
        mlflow_server(database.replace("postgresql", driver), tmp_path / "server", environment) as address,
    ):
        client = MlflowClient(address)
        run = client.create_run(client.create_experiment("compression"))
        client.log_metric(run.info.run_id, "dev/spearman", 0.8)
        (tmp_path / "table.csv").write_text("model\n")
        client.log_artifact(run.info.run_id, str(tmp_path / "table.csv"))
        assert client.get_run(run.info.run_id).data.metrics == {"dev/spearman": 0.8}
        assert [file.read_text() for file in (tmp_path / "artifacts").rglob("table.csv")] == ["model\n"]

        experiment = f"{address}/api/2.0/mlflow/experiments/get?experiment_id=0"
        for host, status in (("localhost:5000", 200), ("tracking:5000", 200), ("evil.example", 403)):
            assert requests.get(experiment, headers={"Host": host}, timeout=60).status_code == status
        assert health_check(address) == 0
    assert health_check(address) != 0
