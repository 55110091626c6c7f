"""A champion that is adapted to another corpus, registered and promoted."""

import json
import shutil

import mlflow
import numpy as np
import pytest
import torch

import twinsqueeze as ts
from tests.helpers.commands import Workplace
from tests.helpers.pairs import random_queries, write_pairs
from tests.helpers.tiny_encoder import make_tiny_encoder
from twinsqueeze.compressor import Compressor
from twinsqueeze.registry import model_registry

CHAMPION = "models:/twinsqueeze@champion"


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    monkeypatch.setattr(model_registry, "SETTLE_SECONDS", 0)  # no other process registers


@pytest.fixture(scope="module")
def champions(tmp_path_factory, shared_cache, create_store) -> Workplace:
    """A champion for vectors of 24 floats, and vectors near one direction in new.npy; to be copied."""
    place = Workplace(tmp_path_factory.mktemp("champion"), shared_cache)
    create_store(place.folder)
    vectors = random_queries(400, 24, seed=0).embeddings
    np.save(place.folder / "old.npy", vectors)
    near_one_direction = np.random.default_rng(1).normal(size=(900, 24)) + 5 * np.eye(24)[0]
    np.save(place.folder / "new.npy", near_one_direction.astype(np.float32))
    shape = "--dim", "8", "--subvector-dim", "4", "--codes-per-subvector", "1"
    place.run("best", "--dataset", "old.npy", *shape, "--epochs", "2", "--device", "cpu")
    place.run("register")
    return place


@pytest.fixture
def place(champions, tmp_path) -> Workplace:
    for name in ("old.npy", "new.npy"):
        shutil.copy(champions.folder / name, tmp_path)
    return champions.copy_to(tmp_path, artifacts=True)


def runs(place: Workplace, experiment_id: str, kind: str) -> list[mlflow.entities.Run]:
    return list(place.client.search_runs([experiment_id], f"tags.twinsqueeze.kind = '{kind}'"))


def champion_run(place: Workplace) -> mlflow.entities.Run:
    version = place.client.get_model_version_by_alias("twinsqueeze", "champion")
    return place.client.get_run(version.tags["twinsqueeze.trained_run"])


def test_the_adapted_champion_is_promoted_on_the_new_corpus(place):
    """By `mlflow run -e main`, which passes the defaults of MLproject on, such as dim=32."""
    experiment, before = place.client.create_experiment("new", f"{place.folder}/new-runs"), champion_run(place)
    base = Compressor.load(place.checkpoint(before))
    done = place.project_run(experiment, "main", dataset="new.npy", base=CHAMPION, epochs="0", device="cpu")
    assert done.returncode == 0, done.stderr
    assert f"Base:    {before.info.run_name}, trained on old.npy in run {before.info.run_id}\n" in done.stderr
    (run,) = runs(place, experiment, "train")
    adapted = {"dim": 8, "architecture": "linear", "base": base.digest, "encoder": "none"}
    assert json.loads(run.data.tags["twinsqueeze.adapted_fields"]).items() >= adapted.items()
    assert run.data.params["base_run"] == before.info.run_id
    assert run.info.run_name == f"linear8-product4-a0.75-s0-base_{base.digest[:8]}-epochs0"
    assert f"in run {before.info.run_id}." in run.data.tags["mlflow.note.content"]
    result = Compressor.load(place.checkpoint(run))
    assert result.recipe.base == base.digest
    assert all(map(torch.equal, result._network.layers[0], base._network.layers[0]))
    assert not torch.equal(result._network.codebooks, base._network.codebooks)

    done = place.project_run(experiment, "register")
    assert done.returncode == 0, done.stderr
    (evaluation,) = runs(place, experiment, "evaluation")
    (registration,) = runs(place, experiment, "registration")
    assert registration.info.run_name == f"register-{run.info.run_name}"  # read from the parameters of main
    name = "dev/neighbor_recall"
    own, other = run.data.metrics[name], evaluation.data.metrics[name]
    assert (
        f"Neighbor recall on dev: {own:.4f}; champion (version 1): {other:.4f}; difference {own - other:+.4f}, 95%"
        in done.stdout
    )
    assert ": better." in done.stdout
    assert champion_run(place).info.run_id == run.info.run_id
    assert evaluation.data.tags["twinsqueeze.trained_run"] == before.info.run_id
    assert registration.info.status == evaluation.info.status == "FINISHED"
    assert (registration.data.metrics["gate/score"], registration.data.metrics["gate/champion_score"]) == (own, other)
    card = place.client.get_model_version("twinsqueeze", "2").description
    assert f"It started from a trained compressor: {before.info.run_name}, trained on old.npy in run" in card
    assert "Only its quantizer was fitted to these data." in card


def test_a_recorded_evaluation_of_the_champion_is_used(place):
    place.run("evaluate", "--model", CHAMPION, "--dataset", "new.npy", "--split", "dev")
    (evaluation,) = runs(place, "0", "evaluation")
    options = ["--dataset", "new.npy", "--base", CHAMPION, "--epochs", "1", "--device", "cpu"]
    place.run("best", *options, MLFLOW_EXPERIMENT_NAME="new")
    output = place.run("register", MLFLOW_EXPERIMENT_NAME="new").stdout
    assert f"champion (version 1): {evaluation.data.metrics['dev/neighbor_recall']:.4f}" in output
    assert len(runs(place, "0", "evaluation")) == 1
    assert not runs(place, place.client.get_experiment_by_name("new").experiment_id, "evaluation")


def test_a_champion_of_pairs_is_adapted_to_texts(workplace, tiny_encoder, tmp_path):
    """Of another kind, a run is compared only if it started from the champion."""
    write_pairs(tmp_path / "pairs", train=200, dev=60, test=24)
    texts = [f"{a} {b} number {i}" for i in range(15) for a in ("lamp", "tree", "boat") for b in ("red", "old", "far")]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    shape = ["--architecture", "linear", "--dim", "16", "--quantizer", "product", "--epochs", "1"]
    own = ["--encoder", str(tiny_encoder), "--device", "cpu"]
    workplace.run("train", "--dataset", "pairs", *shape, *own)
    workplace.run("register")
    adapt = ["best", "--dataset", "texts.txt", "--device", "cpu", "--base", CHAMPION]
    workplace.run(*adapt, "--epochs", "0", MLFLOW_EXPERIMENT_NAME="adapted")  # with the encoder of the base
    other = ["best", "--dataset", "texts.txt", "--dim", "16", "--subvector-dim", "16", "--epochs", "1", *own]
    workplace.run(*other, MLFLOW_EXPERIMENT_NAME="other")
    output = workplace.run("register", MLFLOW_EXPERIMENT_NAME="other").stdout
    assert "selected on other dev vectors, and no comparison is possible: it was trained on scored pairs." in output
    output = workplace.run("register", MLFLOW_EXPERIMENT_NAME="adapted").stdout
    assert "; champion (version 1): 0." in output

    make_tiny_encoder(tmp_path / "encoder", seed=1)
    refused = workplace.command(*adapt, "--encoder", str(tmp_path / "encoder"))
    assert refused.returncode == 2
    assert "was trained with encoder" in refused.stderr


def test_a_grid_starts_from_a_base(place):
    fields = {"recipe": "vectors", "base": CHAMPION, "dataset": "new.npy", "device": "cpu", "epochs": [0, 1]}
    (place.folder / "grid.yaml").write_text(json.dumps(fields))
    place.run("ablation", "--grid", "grid.yaml")
    found = [run.data.params for run in place.runs("train") if "base_run" in run.data.params]
    assert sorted((params["epochs"], params["dim"]) for params in found) == [("0", "8"), ("1", "8")]
    assert "2 of 2 recipes are in the experiment already" in place.run("ablation", "--grid", "grid.yaml").stderr
    place.run("compare", "--output", "report")


def test_the_python_api_takes_a_folder_or_a_compressor(champions, tmp_path):
    compressor = Compressor.load(champions.checkpoint(champion_run(champions)))
    compressor.save(tmp_path / "base")
    data = ts.load_dataset(str(champions.folder / "new.npy"))
    by_folder = ts.Recipe.preset("vectors", base=str(tmp_path / "base"), epochs=0, device="cpu")
    by_digest = by_folder.model_copy(update={"base": compressor.digest})
    results = [ts.train(by_folder, data), ts.train(by_digest, data, base=compressor)]
    assert [result.recipe.base for result in results] == [compressor.digest] * 2
    assert results[0].compressor.digest == results[1].compressor.digest != compressor.digest
    table = ts.compare_recipes([by_folder], data)
    assert table["test/neighbor_recall"][0] == results[0].scores["test"].neighbor_recall
    with pytest.raises(ts.InputError, match="leave one of them out"):
        ts.train(by_folder, data, base=compressor)
