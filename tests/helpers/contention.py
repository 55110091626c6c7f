"""Processes that register at the same time, and a check of the aliases and tags afterwards."""

import os
from pathlib import Path

import mlflow

from tests.helpers.commands import together

# The registry calls of the command register, with a random quality in place of a model and its scores.
CONTENDER = """
import random
import sys
import mlflow
from twinsqueeze.registry import model_registry
client = mlflow.MlflowClient()
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    quality = random.Random(f"{sys.argv[1]}-{number}").random()
    created = client.create_model_version("twinsqueeze", "s3://nowhere/model", tags={"quality": str(quality)})
    version = model_registry.Version(int(created.version), (), {})
    while True:
        champion = model_registry.find_alias("champion")
        better = champion is None or quality > float(champion.tags["quality"])
        if model_registry.assign_alias_if_unchanged(version, champion, promoted=better):
            break
"""


def contend(uri: str, processes: int, rounds: int) -> dict[str, mlflow.entities.model_registry.ModelVersion]:
    """Start processes that register versions at the same time; return the versions by number."""
    client = mlflow.MlflowClient(uri)
    client.create_registered_model("twinsqueeze")
    commands = [["-c", CONTENDER, str(i), str(rounds)] for i in range(processes)]
    together(commands, [os.environ | {"MLFLOW_TRACKING_URI": uri}] * processes, Path.cwd())
    versions = client.search_model_versions("name = 'twinsqueeze'", max_results=1000)
    return {str(version.version): version for version in versions}


def check_succession(client: mlflow.MlflowClient, versions: dict) -> None:
    """The best version is the champion, and every former champion was replaced by a better one."""
    quality = {number: float(version.tags["quality"]) for number, version in versions.items()}
    replaced = {n: str(v.tags["twinsqueeze.replaces"]) for n, v in versions.items() if "twinsqueeze.replaces" in v.tags}
    aliases = {a: str(number) for a, number in client.get_registered_model("twinsqueeze").aliases.items()}
    champion = max(quality, key=quality.get)
    assert aliases["champion"] == champion
    assert aliases["previous"] == replaced[champion]
    champions = [champion]
    while champions[-1] in replaced:
        champions.append(replaced[champions[-1]])
    assert set(champions[:-1]) == set(replaced)  # all promoted versions
    assert sorted(champions, key=quality.get, reverse=True) == champions
    assert [model.name for model in client.search_registered_models()] == ["twinsqueeze"]
