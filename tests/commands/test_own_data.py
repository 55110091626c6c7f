"""All commands on data without scores: vectors, and queries with passages."""

import json

import faiss
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from tests.helpers.commands import Workplace
from tests.helpers.pairs import random_queries
from twinsqueeze.recipe import Recipe

SMALL = ["--dim", "8", "--subvector-dim", "4", "--codes-per-subvector", "1", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("own"), shared_cache)
    np.save(place.folder / "vectors.npy", random_queries(400, 24, seed=0).embeddings * 3)
    return place


@pytest.fixture(scope="module")
def trained(place):
    place.run("best", "--dataset", "vectors.npy", *SMALL)
    (run,) = place.runs("train")
    return run


def read_table(run: Run, name: str) -> pd.DataFrame:
    return pd.DataFrame(**mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{name}"))


def test_vectors_are_trained_without_an_encoder_and_measured_by_their_neighbors(place, trained):
    metrics = trained.data.metrics
    assert trained.data.tags["twinsqueeze.task"] == "neighbors"
    assert trained.data.params["encoder"] == trained.data.params["encoder_fingerprint"] == "none"
    assert trained.info.run_name.startswith("vectors-a0-s0")
    history = place.client.get_metric_history(trained.info.run_id, "dev/neighbor_recall")
    assert [point.step for point in history] == [1, 2]
    assert 0.2 < metrics["test/neighbor_recall"] < 1
    assert metrics["uncertainty/test_neighbor_recall_low"] < metrics["test/neighbor_recall"]
    assert not [name for name in metrics if "spearman" in name or "mse" in name]
    names = read_table(trained, "baselines.json")["model"].tolist()
    assert "PCA to 8" in names
    assert not [name for name in names if "float queries" in name]


def test_an_evaluation_of_test_after_train_gives_the_scores_of_main(place, trained):
    fields = Recipe.model_fields.keys() - {"encoder"}
    place.run("train", *(f"--{name}={value}" for name, value in trained.data.params.items() if name in fields))
    run = place.runs("train")[0]
    assert "test/neighbor_recall" not in run.data.metrics
    place.run("evaluate", "--model", run.info.run_id)
    evaluation = place.runs("evaluation")[0]
    assert evaluation.data.metrics["test/neighbor_recall"] == trained.data.metrics["test/neighbor_recall"]


def test_vectors_of_any_length_are_compressed_alike_by_the_command_an_index_and_mlflow(place, trained):
    """The vectors of the training had unit length."""
    vectors = np.load(place.folder / "vectors.npy")
    np.save(place.folder / "unit.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    export = ["export", "--model", trained.info.run_id, "--output"]
    assert place.command(*export, "folder").returncode == 2  # there is no encoder
    place.run(*export, "weights", "--format", "safetensors")
    for name in ("vectors", "unit"):
        place.run("compress", "--input", f"{name}.npy", "--model", "weights", "--output", f"{name}-codes.npy")
    codes, unit_codes = (np.load(place.folder / f"{name}-codes.npy") for name in ("vectors", "unit"))
    assert codes.shape == (420, 2)
    assert (unit_codes == codes).mean() > 0.99

    place.run(*export, "index", "--format", "faiss")
    index = faiss.read_index(str(place.folder / "index" / "index.faiss"))
    index.add(vectors)
    stored = faiss.vector_to_array(faiss.downcast_index(index.index).codes).reshape(codes.shape)
    assert (stored == codes).mean() > 0.99
    model = mlflow.pyfunc.load_model(str(place.model(trained)))
    np.testing.assert_allclose(model.predict(vectors[:5]), model.predict(vectors[:5] * 100), atol=1e-6)


def test_queries_with_passages_are_encoded_and_learned(place, tiny_encoder):
    rows = [
        {"question": f"how is item {i} made", "answer": f"item {i} is made of part {i * 7 % 90}"} for i in range(90)
    ]
    (place.folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--dataset", "pairs.jsonl", "--encoder", str(tiny_encoder), *SMALL]
    output = place.run("best", *options, "--num-candidates", "20").stdout
    assert "nDCG@10" in output
    run = place.runs("train")[0]
    assert run.data.tags["twinsqueeze.task"] == "retrieval"
    assert {"dev/ndcg_at_10", "test/ndcg_at_10", "search/test_recall_at_10"} <= set(run.data.metrics)
    scores = read_table(run, "predictions.json")
    assert list(scores) == ["split", "query", "ndcg_at_10", "neighbor_recall"]
    assert scores[scores["split"] == "test"]["ndcg_at_10"].mean() == pytest.approx(run.data.metrics["test/ndcg_at_10"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("main", "loss mse needs scores, and dataset 'vectors.npy' has texts or vectors alone: vectors"),
        ("best --recipe pairs", "the projection teacher needs pairs"),
        ("best --dim 8 --subvector-dim 4 --unlabeled-sentences 10", "unlabeled_sentences must be 0"),
        ("best --recipe vectors --loss infonce", "loss infonce needs queries with passages"),
        ("best --recipe vectors --neighbor-weight 0", "loss none needs a neighbor_weight above 0"),
        ("main --loss infonce --dataset PAIRS", "loss infonce needs queries with passages"),
    ],
)
def test_recipes_that_the_data_do_not_fit_are_refused(place, pairs_folder, tiny_encoder, command, message):
    options = command.replace("PAIRS", str(pairs_folder)).split()
    done = place.command(options[0], "--dataset", "vectors.npy", "--encoder", str(tiny_encoder), *options[1:])
    assert done.returncode == 2
    assert message in done.stderr
