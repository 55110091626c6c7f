"""Processes that register at once, and what they must leave."""

import os
from pathlib import Path

import mlflow

from tests.processes import together

# What register does to the registry, with a number in the place of a model and its scores.
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
    made = client.create_model_version("twinsqueeze", "s3://nowhere/model", tags={"quality": str(quality)})
    version = model_registry.Version(int(made.version), (), {})
    while True:
        champion = model_registry.find_alias("champion")
        better = champion is None or quality > float(champion.tags["quality"])
        if model_registry.assign_alias_if_unchanged(version, champion, promoted=better):
            break
"""


def contend(uri: str, processes: int, rounds: int) -> dict[str, mlflow.entities.model_registry.ModelVersion]:
    """Lets real processes register at once; what they left, by number."""
    client = mlflow.MlflowClient(uri)
    client.create_registered_model("twinsqueeze")
    commands = [["-c", CONTENDER, str(i), str(rounds)] for i in range(processes)]
    together(commands, [os.environ | {"MLFLOW_TRACKING_URI": uri}] * processes, Path.cwd())
    return {
        str(found.version): found for found in client.search_model_versions("name = 'twinsqueeze'", max_results=1000)
    }


def check_succession(client: mlflow.MlflowClient, left: dict) -> None:
    """The best is the champion, and each of the champions before was beaten by the next: none was passed over."""
    quality = {number: float(version.tags["quality"]) for number, version in left.items()}
    replaced = {n: str(v.tags["twinsqueeze.replaces"]) for n, v in left.items() if "twinsqueeze.replaces" in v.tags}
    named = {a: str(number) for a, number in client.get_registered_model("twinsqueeze").aliases.items()}
    champion = max(quality, key=quality.get)
    assert named["champion"] == champion
    assert named["previous"] == replaced[champion]
    line = [champion]
    while line[-1] in replaced:
        line.append(replaced[line[-1]])
    assert set(line[:-1]) == set(replaced)  # whoever was promoted is in it
    assert sorted(line, key=quality.get, reverse=True) == line
    assert [model.name for model in client.search_registered_models()] == ["twinsqueeze"]
