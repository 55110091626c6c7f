"""All commands on data without scores: vectors, and queries with passages."""

import json

import faiss
import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.helpers.commands import Workplace
from tests.helpers.pairs import random_queries, write_pairs
from twinsqueeze.compressor import Compressor

SHAPE = "--dim", "8", "--subvector-dim", "4", "--codes-per-subvector", "1"
SMALL = [*SHAPE, "--epochs", "2", "--device", "cpu"]


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
    compressor = Compressor.load(place.checkpoint(trained))
    assert compressor.compress(np.ones((2, 24)), "product").shape == (2, 2)
    names = read_table(trained, "baselines.json")["model"].tolist()
    assert "PCA to 8" in names
    assert not [name for name in names if "float queries" in name]


def test_an_evaluation_of_test_after_train_gives_the_scores_of_main(place, trained):
    place.run("train", "--dataset", "vectors.npy", *SMALL, *recipe_options(trained))
    run = place.runs("train")[0]
    assert "test/neighbor_recall" not in run.data.metrics
    place.run("evaluate", "--model", run.info.run_id)
    evaluation = place.runs("evaluation")[0]
    assert evaluation.data.metrics["test/neighbor_recall"] == trained.data.metrics["test/neighbor_recall"]


def read_table(run, name):
    """A table that a run has logged."""
    content = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{name}")
    return pd.DataFrame(content["data"], columns=content["columns"])


def recipe_options(run):
    """The options of `train` for the recipe of a run."""
    names = (
        "alpha", "architecture", "init", "quantizer", "loss", "neighbor_weight", "num_neighbors", "num_candidates",
        "lr", "codebook_lr", "lr_schedule", "batch_size",
    )  # fmt: skip
    return [text for name in names for text in (f"--{name}", run.data.params[name])]


def test_a_grid_is_compared_registered_exported_and_compresses(place, trained):
    place.folder.joinpath("grid.yaml").write_text(
        "recipe: vectors\nalpha: [0, 1]\nseed: [1, 2]\ndim: 8\nsubvector_dim: 4\n"
        "codes_per_subvector: 1\nepochs: 2\ndataset: vectors.npy\n"
    )
    output = place.run("ablation", "--grid", "grid.yaml").stdout
    assert "neighbor recall" in output
    compared = place.run("compare", "--output", "report").stdout
    assert "Spearman" not in compared
    table = pd.read_csv(place.folder / "report" / "table.csv")
    trained_rows = table[table["seeds"].notna()]
    assert set(trained_rows["alpha"]) == {0, 1}
    assert trained_rows["dev/neighbor_recall"].between(0, 1).all()
    place.run("register")
    version = place.client.get_model_version_by_alias("twinsqueeze", "champion")
    assert place.client.get_run(version.tags["twinsqueeze.trained_run"]).data.tags["twinsqueeze.task"] == "neighbors"
    refused = place.command("export", "--model", "models:/twinsqueeze@champion", "--output", "model")
    assert refused.returncode == 2
    place.run("export", "--model", "models:/twinsqueeze@champion", "--output", "weights", "--format", "safetensors")
    place.run("compress", "--input", "vectors.npy", "--model", "weights", "--output", "codes.npy")
    codes = np.load(place.folder / "codes.npy")
    assert codes.shape == (420, 2)
    check_inputs_of_any_length(place, codes)


def check_inputs_of_any_length(place, codes):
    """The trained vectors had unit length. What is compressed is scaled alike: by the command, an index and MLflow."""
    vectors = np.load(place.folder / "vectors.npy")
    np.save(place.folder / "unit.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    place.run("compress", "--input", "unit.npy", "--model", "weights", "--output", "unit-codes.npy")
    assert (np.load(place.folder / "unit-codes.npy") == codes).mean() > 0.99
    place.run("export", "--model", "weights", "--output", "index", "--format", "faiss")
    index = faiss.read_index(str(place.folder / "index" / "index.faiss"))
    index.add(vectors)
    stored = faiss.vector_to_array(faiss.downcast_index(index.index).codes).reshape(codes.shape)
    assert (stored == codes).mean() > 0.99
    model = mlflow.pyfunc.load_model(str(place.model(place.runs("train")[-1])))
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
    ("command", "dataset", "message"),
    [
        ("main", "vectors.npy", "loss mse needs scores, and dataset 'vectors.npy' has texts or vectors alone: vectors"),
        ("best --recipe pairs", "vectors.npy", "the projection teacher needs pairs"),
        ("best --dim 8 --subvector-dim 4 --unlabeled-sentences 10", "vectors.npy", "unlabeled_sentences must be 0"),
        ("best --recipe vectors --loss infonce", "vectors.npy", "loss infonce needs queries with passages"),
        ("best --recipe vectors --neighbor-weight 0", "vectors.npy", "loss none needs a neighbor_weight above 0"),
        ("main --loss infonce", "scored", "loss infonce needs queries with passages"),
    ],
)
def test_recipes_that_the_data_do_not_fit_are_refused(place, tiny_encoder, command, dataset, message):
    if dataset == "scored" and not (place.folder / "scored").exists():
        write_pairs(place.folder / "scored")
    done = place.command(*command.split(), "--dataset", dataset, "--encoder", str(tiny_encoder))
    assert done.returncode == 2
    assert message in done.stderr
