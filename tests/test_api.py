"""The Python API, as a notebook uses it."""

import doctest
import importlib
import os
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from scipy import stats

import twinsqueeze as ts
from tests.helpers import shortcuts
from tests.helpers.commands import ROOT
from tests.helpers.isolation import run_without
from tests.helpers.models import metadata_for, product_network, write_model
from twinsqueeze.data import sentence_pairs
from twinsqueeze.registry import model_loader

DIMENSION = 64


@pytest.fixture(scope="module")
def data(pairs_folder):
    return ts.load_dataset(str(pairs_folder))


@pytest.fixture(scope="module")
def recipe(tiny_encoder):
    return ts.Recipe(encoder=str(tiny_encoder), alpha=0.75, epochs=2, dim=8, device="cpu")


@pytest.fixture(scope="module")
def result(recipe, data):
    return ts.train(recipe, data)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(5, DIMENSION))


@pytest.mark.parametrize(
    "module",
    ["recipe", "data.sentence_pairs", *(pytest.param(n, marks=pytest.mark.slow) for n in ("api", "compressor"))],
)
def test_examples_of_docstrings(module, tmp_path, monkeypatch):
    for file in sentence_pairs.DEMO_FOLDER.glob("*.csv"):
        (tmp_path / file.name).write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:100]), "utf-8")
    if module in {"api", "compressor"}:  # they encode the demo
        monkeypatch.setattr(sentence_pairs, "DEMO_FOLDER", tmp_path)
    tests = doctest.testmod(importlib.import_module(f"twinsqueeze.{module}"))
    assert tests.attempted
    assert not tests.failed


def test_scores_are_those_of_the_compressor(data, result):
    """Against NumPy and SciPy, from the public methods alone."""
    assert set(result.scores) == {"dev", "test"}
    for split, scores in result.scores.items():
        pairs = data.splits[split]
        first, second = (result.compressor.encode(list(texts)) for texts in (pairs.sentence1, pairs.sentence2))
        spearman = stats.spearmanr((first * second).sum(1), pairs.scores).statistic
        assert scores.spearman == pytest.approx(spearman, abs=1e-3)  # ties round apart
    assert len(result.history.loss) == 2


def test_vectors_are_compressed_to_unit_length_or_codes_before_and_after_saving(recipe, result, vectors, tmp_path):
    result.compressor.save(tmp_path / "model")
    loaded = ts.Compressor.load(tmp_path / "model")
    assert loaded.recipe == recipe
    compressed = loaded.compress(vectors)
    assert compressed.dtype == np.float32
    np.testing.assert_array_equal(compressed, result.compressor.compress(vectors))
    np.testing.assert_allclose(np.linalg.norm(compressed, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(loaded.compress(vectors, "ubinary"), np.packbits(compressed > 0, axis=1))
    assert loaded.compress(vectors, "int8").dtype == np.int8
    for unfit in (np.ones(DIMENSION), np.ones((2, 63)), np.full((1, DIMENSION), np.nan)):
        with pytest.raises(ts.InputError):
            loaded.compress(unfit)


def test_texts_need_the_encoder_of_the_training(tiny_encoder, tmp_path):
    encoder = Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))
    recorded = write_model(tmp_path / "recorded", product_network(DIMENSION), metadata_for(encoder))
    foreign = write_model(tmp_path / "foreign", product_network(DIMENSION), None)
    (encoder / "modules.json").write_text((encoder / "modules.json").read_text() + "\n")
    for folder, message in ((recorded, "are not those of the training"), (foreign, "call compress")):
        compressor = ts.Compressor.load(folder)
        assert compressor.encode([]).shape == (0, 32)
        with pytest.raises(ts.InputError, match=message):
            compressor.encode(["a text"])
    with pytest.raises(ts.InputError, match="are not those that model"):
        model_loader.load_sentence_transformer_for("model", model_loader.resolve_model(str(recorded)))


def test_recipes_compared_as_a_batch_have_the_scores_of_single_trainings(recipe, data, result, capfd):
    table = ts.compare_recipes([recipe.model_copy(update={"alpha": alpha}) for alpha in (0.0, 0.75)], data)
    assert list(table["alpha"][:2]) == [0, 0.75]
    assert table["test/spearman"][1] == result.scores["test"].spearman
    assert {"PCA to 8", "uncompressed"} < set(table["name"][table["kind"] == "baseline"])
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ts.InputError, match="no recipe to compare"):
        ts.compare_recipes([], data)


@pytest.mark.slow
def test_nothing_is_printed_and_mlflow_is_not_needed(tmp_path, pairs_folder, tiny_encoder):
    program = """
import os
os.dup2(1, 2)  # what is written to standard error is returned as well
sys.modules["mlflow"] = None  # importing it raises ImportError
sys.path.insert(0, ".")
import twinsqueeze as ts
pairs, encoder, folder = sys.argv[1:]
recipe = ts.Recipe(encoder=encoder, epochs=1, dim=4, device="cpu")
ts.train(recipe, ts.load_dataset(pairs)).compressor.save(folder)
ts.Compressor.load(folder).encode(["A man plays the guitar."])
"""
    arguments = str(pairs_folder), str(tiny_encoder), str(tmp_path / "model")
    assert run_without([], program, *arguments, folder=ROOT, environment=os.environ) == ""


def test_tracked_trainings_are_runs_like_those_of_the_commands(
    recipe, data, result, vectors, create_store, use_store, tmp_path, monkeypatch
):
    shortcuts.skip_drawing(monkeypatch)
    use_store(create_store(tmp_path))
    monkeypatch.chdir(tmp_path)
    with ts.track("api"):
        tracked = ts.train(recipe, data)
        ts.compare_recipes([recipe, recipe.model_copy(update={"seed": 1})], data)
    runs = mlflow.search_runs(experiment_names=["api"])
    assert runs["tags.twinsqueeze.kind"].value_counts().to_dict() == {"train": 3, "ablation": 1}
    assert set(runs.status) == {"FINISHED"}
    run = runs.set_index("run_id").loc[tracked.run_id]
    assert run["metrics.test/spearman"] == pytest.approx(result.scores["test"].spearman)
    loaded = ts.Compressor.load(tracked.run_id)
    np.testing.assert_array_equal(loaded.compress(vectors), result.compressor.compress(vectors))


def test_public_names_are_listed_and_documented():
    assert set(ts.__all__) <= set(dir(ts))
    for name in ts.__all__:
        assert getattr(ts, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        ts.absent  # noqa: B018 - the access is the test
    assert Path(ts.__file__).with_name("py.typed").is_file()
