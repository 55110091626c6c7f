"""The Python API, as a notebook uses it."""

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from scipy import stats

import twinsqueeze as ts
from tests.helpers.commands import ROOT

RECIPE = ts.Recipe(alpha=0.75, epochs=2, dim=8, device="cpu")


@pytest.fixture(scope="module")
def data():
    return ts.load_pairs("demo")


@pytest.fixture(scope="module")
def result(data):
    return ts.train(RECIPE, data)


@pytest.mark.parametrize(
    "module", ["twinsqueeze.api", "twinsqueeze.compressor", "twinsqueeze.recipe", "twinsqueeze.data.sentence_pairs"]
)
def test_examples_of_docstrings(module):
    tests = doctest.testmod(importlib.import_module(module))
    assert tests.attempted
    assert not tests.failed


def test_scores_are_those_of_the_compressor(data, result):
    """Spearman of the test pairs by SciPy, from the public methods alone."""
    pairs = data.splits["test"]
    first, second = (result.compressor.encode(list(texts)) for texts in (pairs.sentence1, pairs.sentence2))
    expected = stats.spearmanr((first * second).sum(1), pairs.scores).statistic
    assert result.scores["test"].spearman == pytest.approx(expected, abs=1e-4)
    assert set(result.scores) == {"dev", "test"}
    assert len(result.history.loss) == 2


def test_compressed_vectors_have_unit_length_and_codes_are_packed(result):
    vectors = np.random.default_rng(0).normal(size=(5, 384))
    compressed = result.compressor.compress(vectors)
    assert compressed.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(compressed, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(result.compressor.compress(vectors, "ubinary"), np.packbits(compressed > 0, axis=1))
    assert result.compressor.compress(vectors, "int8").dtype == np.int8


@pytest.mark.parametrize("vectors", [np.ones(384), np.ones((2, 383)), np.full((1, 384), np.nan)])
def test_vectors_that_do_not_fit_are_refused(result, vectors):
    with pytest.raises(ts.InputError):
        result.compressor.compress(vectors)


def test_a_saved_compressor_is_the_same_after_loading(result, tmp_path):
    result.compressor.save(tmp_path / "model")
    loaded = ts.Compressor.load(tmp_path / "model")
    vectors = np.random.default_rng(0).normal(size=(5, 384))
    np.testing.assert_array_equal(loaded.compress(vectors), result.compressor.compress(vectors))
    assert loaded.recipe == RECIPE


def test_recipes_compared_as_a_batch_have_the_scores_of_single_trainings(data, result):
    recipes = [RECIPE.model_copy(update={"alpha": alpha}) for alpha in (0.0, 0.75)]
    table = ts.compare_recipes(recipes, data)
    assert list(table["alpha"][:2]) == [0, 0.75]
    assert table["test/spearman"][1] == result.scores["test"].spearman
    assert {"PCA to 8", "uncompressed"} < set(table["name"][table["kind"] == "baseline"])


def test_nothing_is_printed_and_mlflow_is_not_needed(tmp_path):
    code = """
import sys
sys.modules["mlflow"] = None  # importing it raises ImportError
import twinsqueeze as ts
result = ts.train(ts.Recipe(epochs=1, dim=4, device="cpu"), ts.load_pairs("demo"))
result.compressor.save("model")
ts.Compressor.load("model").encode(["A man plays the guitar."])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=_environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_tracked_trainings_are_runs_like_those_of_the_commands(data, result, tmp_path, monkeypatch):
    monkeypatch.setenv("TWINSQUEEZE_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        with ts.track("api"):
            tracked = ts.train(RECIPE, data)
            ts.compare_recipes([RECIPE, RECIPE.model_copy(update={"seed": 1})], data)
        runs = mlflow.search_runs(experiment_names=["api"])
        loaded = ts.Compressor.load(tracked.run_id)
    finally:
        mlflow.set_tracking_uri(None)
    kinds = runs["tags.twinsqueeze.kind"].value_counts().to_dict()
    assert kinds == {"train": 3, "ablation": 1}
    assert set(runs.status) == {"FINISHED"}
    run = runs.set_index("run_id").loc[tracked.run_id]
    assert run["metrics.test/spearman"] == pytest.approx(result.scores["test"].spearman)
    vectors = np.eye(384)
    np.testing.assert_array_equal(loaded.compress(vectors), result.compressor.compress(vectors))


def test_public_names_are_importable():
    assert set(ts.__all__) <= set(dir(ts))
    for name in ts.__all__:
        assert getattr(ts, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        ts.absent  # noqa: B018 - the access is the test
    assert Path(ts.__file__).with_name("py.typed").is_file()
