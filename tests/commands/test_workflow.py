"""main, train and evaluate as processes, and what they leave in MLflow."""

import json
import subprocess
from itertools import permutations
from pathlib import Path

import mlflow.models
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import stats
from sentence_transformers.util.quantization import quantize_embeddings
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from tests.helpers.commands import Workplace
from tests.helpers.isolation import run_without
from tests.helpers.pairs import write_pairs
from twinsqueeze.data.encoder import embed_pairs, resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.data.synthetic import embed_synthetic
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.recipe import Recipe, load_preset
from twinsqueeze.utils.disk_cache import DiskCache

EPOCHS = 12
FIGURES = ("loss_curves", "pair_losses", "predicted_against_label", "quality_against_bytes")
RECIPE = ["--epochs", str(EPOCHS), "--dim", "8", "--lr", "1e-3", "--seed", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("work"), shared_cache)


def finished(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def main_output(place, pairs_folder):
    return finished(place.command("main", "--dataset", str(pairs_folder), *RECIPE))


@pytest.fixture(scope="module")
def main_run(place, main_output):
    (run,) = place.runs()
    return run


@pytest.fixture(scope="module")
def model_folder(place, main_run):
    return place.model(main_run)


@pytest.fixture(scope="module")
def encoded(pairs_folder, shared_cache, main_run):
    return embed_pairs(
        load_pairs(str(pairs_folder)).splits, resolve_encoder("all-MiniLM-L6-v2"), DiskCache(shared_cache)
    )


def test_a_run_is_named_tagged_and_finished(main_run, pairs_folder):
    data = load_pairs(str(pairs_folder))
    assert main_run.info.status == "FINISHED"
    assert main_run.info.run_name == "mlp8-alpha0.75-seed3"
    tags = main_run.data.tags
    assert tags["twinsqueeze.kind"] == "train"
    assert tags["twinsqueeze.dataset"] == "sentences"
    assert tags["twinsqueeze.dataset_digest"] == data.digest
    assert tags["twinsqueeze.test_digest"] == data.splits["test"].digest


def test_parameters_are_the_recipe_and_what_else_fixes_the_result(main_run, pairs_folder):
    given = {"epochs": EPOCHS, "dim": 8, "lr": 1e-3, "seed": 3, "device": "cpu", "dataset": str(pairs_folder)}
    params = main_run.data.params
    recipe = Recipe.parse({name: params[name] for name in Recipe.model_fields})
    assert recipe == Recipe(**given)
    for name in ("dataset_digest", "encoder_fingerprint", "torch_version", "threads", "cpu", "used_device"):
        assert params[name]


def test_every_epoch_is_in_the_curves_and_test_is_there_once(place, main_run):
    for name in ("train/loss", "train/clean_loss", "dev/mse", "dev/mae", "dev/pearson", "dev/spearman"):
        history = place.client.get_metric_history(main_run.info.run_id, name)
        assert sorted(m.step for m in history) == list(range(1, EPOCHS + 1)), name
    for name in ("test/mse", "test/mae", "test/pearson", "test/spearman", "test/neighbor_recall"):
        assert len(place.client.get_metric_history(main_run.info.run_id, name)) == 1


def test_metrics_are_those_of_the_logged_model(main_run, model_folder, encoded):
    """The weights as they were logged, applied with NumPy and scored with SciPy."""
    state = load_file(next(model_folder.rglob("*.safetensors")))
    for split in ("dev", "test"):
        hidden = encoded[split].embeddings
        for i in (0, 2, 4):
            hidden = (np.maximum(hidden, 0) if i else hidden) @ state[f"{i}.weight"].T + state[f"{i}.bias"]
        unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
        predicted = (unit[encoded[split].first] * unit[encoded[split].second]).sum(1)
        labels = (np.tanh(4 * (encoded[split].scores / 5 - 0.5)) + 1) / 2
        metrics = main_run.data.metrics
        assert metrics[f"{split}/mse"] == pytest.approx(np.square(predicted - labels).mean(), abs=1e-6)
        assert metrics[f"{split}/pearson"] == pytest.approx(stats.pearsonr(predicted, labels)[0], abs=1e-5)
        assert metrics[f"{split}/spearman"] == pytest.approx(stats.spearmanr(predicted, labels)[0], abs=2e-2)
        low, high = (metrics[f"uncertainty/{split}_mse_{end}"] for end in ("low", "high"))
        assert low < metrics[f"{split}/mse"] < high


def test_what_search_keeps_is_measured_at_every_precision(main_run, model_folder, encoded):
    """The vectors as the logged model makes them, quantised by sentence-transformers, searched by scikit-learn."""
    compressed = mlflow.pyfunc.load_model(str(model_folder)).predict
    vectors = {split: compressed(encoded[split].embeddings) for split in ("train", "dev", "test")}
    ranges = np.stack([vectors["train"].min(0), vectors["train"].max(0)])
    metrics = main_run.data.metrics
    for split in ("dev", "test"):
        pairs = encoded[split]
        at = {
            "": vectors[split],
            "_int8": quantize_embeddings(vectors[split], "int8", ranges=ranges),
            "_binary": 2.0 * np.unpackbits(quantize_embeddings(vectors[split], "ubinary"), axis=1)[:, :8] - 1,
        }
        _, reference = NearestNeighbors(n_neighbors=10, metric="cosine").fit(pairs.embeddings).kneighbors()
        for suffix, vectors_at in at.items():
            stored = vectors_at.astype(np.float64)
            unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
            predicted = (unit[pairs.first] * unit[pairs.second]).sum(1)
            expected = stats.spearmanr(np.round(predicted, 6), pairs.scores)[0]
            assert metrics[f"{split}/spearman{suffix}"] == pytest.approx(expected, abs=2e-2), suffix
            assert f"{split}/mrr{suffix}" not in metrics  # of these pairs only a sentence with itself scores 4 or more
            if suffix != "_binary":  # where signs tie, any of the tied are the nearest
                _, found = NearestNeighbors(n_neighbors=10, metric="cosine").fit(stored).kneighbors()
                kept = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(reference, found, strict=True)])
                assert metrics[f"{split}/neighbor_recall{suffix}"] == pytest.approx(kept, abs=0.02)


def test_artifacts_are_figures_and_tables(place, main_run, pairs_folder):
    run_id = main_run.info.run_id
    figures = [item.path for item in place.client.list_artifacts(run_id, "figures")]
    assert figures == [f"figures/{n}.png" for n in FIGURES]
    table = json.loads(place.download(run_id, "predictions.json").read_text())
    assert table["columns"] == ["split", "sentence1", "sentence2", "score", "label", "predicted", "squared_error"]
    data = load_pairs(str(pairs_folder))
    assert [row[1] for row in table["data"]] == list(data.splits["dev"].sentence1 + data.splits["test"].sentence1)
    baselines = json.loads(place.download(run_id, "baselines.json").read_text())
    assert [row[0] for row in baselines["data"]] == [
        "uncompressed",
        "first 8",
        "random projection to 8",
        "PCA to 8",
        "PCA to 8, whitened",
        "signs of 384, centered",
        "first 8, int8",
        "random projection to 8, int8",
        "PCA to 8, int8",
        "first 8, signs",
        "random projection to 8, signs",
        "PCA to 8, signs",
        "signs of 384, centered, float queries",
        "uncompressed, int8",
    ]


def test_data_are_inputs_with_digest_and_source(main_run, pairs_folder):
    data = load_pairs(str(pairs_folder))
    inputs = {item.tags[0].value: item.dataset for item in main_run.inputs.dataset_inputs}
    assert {split: item.digest for split, item in inputs.items()} == {n: p.digest for n, p in data.splits.items()}
    assert all(str(pairs_folder) in item.source for item in inputs.values())


def test_the_description_is_a_sentence_with_the_metrics(main_run):
    text = main_run.data.tags["mlflow.note.content"]
    assert text.startswith(
        "A compressor (mlp, 384 to 8 dimensions, quantizer none) trained for 12 epochs "
        "on the 60 train pairs of sentences"
    )
    assert f"Spearman {main_run.data.metrics['test/spearman']:.4f} (95% interval" in text


def test_the_end_shows_a_table_and_the_next_commands(main_output, main_run, place):
    lines = main_output.splitlines()
    assert any(line.split()[:2] == ["mlp8-alpha0.75-seed3", "32"] for line in lines)
    assert any(line.split()[0] == "uncompressed" for line in lines if line.strip())
    assert f"mlflow run . --env-manager local -e evaluate -P model={main_run.info.run_id}" in main_output
    assert "mlflow run . --env-manager local -e register" in main_output
    assert f"mlflow ui --backend-store-uri {place.uri}" in main_output


def test_the_model_loads_where_twinsqueeze_is_not(place, main_run, model_folder, encoded, tmp_path):
    """In a process that cannot import the package and refuses pickle."""
    program = """
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2])))
assert "torch" not in sys.modules
"""
    np.save(tmp_path / "vectors.npy", encoded["test"].embeddings)
    files = [str(model_folder), "vectors.npy", "out.npy"]
    run_without(["twinsqueeze"], program, *files, folder=tmp_path, environment=place.environment)
    vectors = np.load(tmp_path / "out.npy")
    assert (vectors.shape, vectors.dtype) == ((len(encoded["test"].embeddings), 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    files = {path.suffix for path in model_folder.rglob("*") if path.is_file()}
    assert not files & {".pkl", ".pickle", ".pt", ".pth", ".bin"}


def test_the_model_says_what_it_takes_and_needs(model_folder, main_run):
    model = mlflow.models.Model.load(str(model_folder))
    assert model.run_id == main_run.info.run_id
    (spec,) = model.signature.inputs.inputs
    assert (spec.type, spec.shape) == (np.dtype("float32"), (-1, 384))
    example = model.load_input_example(str(model_folder))
    assert np.asarray(example).shape == (3, 384)
    requirements = (model_folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements)
    assert {line.partition("=")[0] for line in requirements} == {"mlflow", "numpy", "safetensors"}


def test_ranges_for_int8_travel_with_the_model(model_folder, encoded):
    """The least and greatest of each number over the train sentences, as NumPy finds them with the logged weights."""
    file = next(model_folder.rglob("*.safetensors"))
    state = load_file(file)
    hidden = encoded["train"].embeddings
    for i in (0, 2, 4):
        hidden = (np.maximum(hidden, 0) if i else hidden) @ state[f"{i}.weight"].T + state[f"{i}.bias"]
    unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    _, metadata = read_checkpoint(file, "m")
    assert metadata
    np.testing.assert_allclose(metadata.int8_ranges, [unit.min(0), unit.max(0)], atol=1e-6)


def test_metrics_show_on_the_model(place, main_run):
    model = place.client.get_logged_model(main_run.outputs.model_outputs[0].model_id)
    shown = {metric.key: metric.value for metric in model.metrics}
    assert shown["test/spearman"] == main_run.data.metrics["test/spearman"]
    assert model.params["alpha"] == "0.75"


@pytest.fixture(scope="module")
def repeated(place, pairs_folder, main_run):
    """The same recipe as train, then evaluate: the newest run first."""
    finished(place.command("train", "--dataset", str(pairs_folder), *RECIPE))
    trained = place.runs()[0]
    finished(place.command("evaluate", "--model", trained.info.run_id))
    return trained, place.runs()[0]


def test_train_then_evaluate_gives_mains_figures_to_the_last_digit(main_run, repeated):
    trained, evaluated = repeated
    assert not [name for name in trained.data.metrics if name.startswith("test")]
    assert "twinsqueeze.test_digest" not in trained.data.tags
    assert evaluated.data.tags["twinsqueeze.kind"] == "evaluation"
    assert evaluated.data.tags["twinsqueeze.trained_run"] == trained.info.run_id
    for tag in ("twinsqueeze.dataset_digest", "twinsqueeze.dataset"):
        assert trained.data.tags[tag] == evaluated.data.tags[tag] == main_run.data.tags[tag]
    assert trained.data.metrics | evaluated.data.metrics == main_run.data.metrics


def test_evaluate_takes_a_folder_and_foreign_weights(place, repeated, model_folder, pairs_folder, tmp_path):
    """A folder that MLflow wrote, and one with nothing but the layers under other names."""
    from safetensors.numpy import save_file

    state = load_file(next(model_folder.rglob("*.safetensors")))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    save_file({f"net.fc{name}": tensor for name, tensor in state.items()}, foreign / "weights.safetensors")
    expected = repeated[1].data.metrics
    finished(place.command("evaluate", "--model", str(model_folder)))
    assert place.runs()[0].data.metrics == expected
    done = place.command("evaluate", "--model", str(foreign), "--dataset", str(pairs_folder))
    assert finished(done)
    assert f"model '{foreign}' has no calibration for int8: its int8 scores are left out" in done.stderr
    assert place.runs()[0].data.metrics == {n: value for n, value in expected.items() if not n.endswith("_int8")}


def test_the_best_recipe_is_measured_as_what_faiss_stores(workplace, pairs_folder, encoded):
    """Scores of the run, and of an evaluation of its model, from an index with the codebooks of the model's file."""
    # With a few synthetic sentences instead of thousands, which take minutes to encode.
    fields = load_preset("best") | {
        "dataset": str(pairs_folder),
        "dim": 16,
        "device": "cpu",
        "synthetic_sentences": 300,
    }
    options = [text for name, value in fields.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    done = workplace.command("main", *options)
    assert (
        "training: epoch 0 of 15, teacher 20 of 20 epochs" in done.stderr or "training: epoch 15 of 15" in done.stderr
    )
    finished(done)
    (run,) = workplace.runs()
    assert run.data.params["quantizer"] == "product"
    assert not [name for name in run.data.metrics if name.endswith(("_int8", "_binary"))]
    state = load_file(workplace.model(run) / "artifacts" / "compressor.safetensors")
    parts, _, width = state["codebooks"].shape
    dev = encoded["dev"]
    outputs = dev.embeddings @ state["0.weight"].T + state["0.bias"]
    unit = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    chunks = unit.reshape(len(unit), parts, width)
    nearest = np.square(chunks[:, :, None] - state["codebooks"]).sum(-1).argmin(-1)
    restored = state["codebooks"][np.arange(parts), nearest].reshape(len(unit), -1)
    restored /= np.linalg.norm(restored, axis=1, keepdims=True)
    cosine = (restored[dev.first] * restored[dev.second]).sum(1)
    table = json.loads(workplace.download(run.info.run_id, "predictions.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    predicted = np.array([row["predicted"] for row in rows if row["split"] == "dev"])
    np.testing.assert_allclose(predicted, cosine, atol=1e-5)
    spearman = stats.spearmanr(predicted, dev.scores)[0]
    assert run.data.metrics["dev/spearman"] == pytest.approx(spearman, abs=1e-6)
    ways = [(unit[a] * restored[b]).sum(1) for a, b in permutations((dev.first, dev.second))]
    spearman = np.mean([stats.spearmanr(way, dev.scores)[0] for way in ways])
    assert run.data.metrics["dev/spearman_asymmetric"] == pytest.approx(spearman, abs=1e-4)
    finished(workplace.command("evaluate", "--model", run.info.run_id))
    evaluated, _ = workplace.runs()
    for name, value in evaluated.data.metrics.items():
        assert value == run.data.metrics[name]


def test_synthetic_sentences_are_part_of_what_weights_begin_with(
    run_here, workplace, pairs_folder, encoded, monkeypatch
):
    """By scikit-learn's components of the train sentences and the synthetic ones together."""
    monkeypatch.setattr("twinsqueeze.data.synthetic.MAX_WORDS", 300)
    fields = {
        "architecture": "linear",
        "init": "pca",
        "dim": "4",
        "epochs": "1",
        "lr": "1e-12",
        "synthetic_sentences": "80",
    }
    options = [text for name, value in fields.items() for text in (f"--{name}", value)]
    code, _, err = run_here("train", "--dataset", str(pairs_folder), "--device", "cpu", *options)
    assert code == 0, err
    assert "encoding synthetic sentences" in err
    assert "sentence 380 of 380" in err
    (run,) = workplace.runs()
    assert run.data.params["synthetic_sentences"] == "80"
    train = load_pairs(str(pairs_folder)).splits["train"]
    others = embed_synthetic(
        80, train, resolve_encoder("all-MiniLM-L6-v2"), DiskCache(Path(workplace.environment["TWINSQUEEZE_CACHE"]))
    )
    state = load_file(workplace.model(run) / "artifacts" / "compressor.safetensors")
    rows = state["0.weight"] / np.linalg.norm(state["0.weight"], axis=1, keepdims=True)
    for vectors, alike in (
        (np.concatenate([encoded["train"].embeddings, others]), True),
        (encoded["train"].embeddings, False),
    ):
        found = np.abs(np.sum(rows * PCA(4).fit(vectors).components_, axis=1))
        assert (found > 0.999).all() == alike


@pytest.mark.slow
def test_demo_says_so_everywhere(workplace):
    done = workplace.command("train", "--dataset", "demo", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no benchmark") == 2  # at the start and at the end
    (run,) = workplace.runs()
    assert "no benchmark" in run.data.tags["mlflow.note.content"]
    # the demo has partners to find, and sentences enough for FAISS
    names = [
        f"dev/{name}{suffix}" for name in ("recall_at_1", "recall_at_10", "mrr") for suffix in ("", "_int8", "_binary")
    ]
    assert all(0 < run.data.metrics[name] <= 1 for name in names)
    assert done.stderr.count("fitting the baseline FAISS") == 6
    baselines = json.loads(workplace.download(run.info.run_id, "baselines.json").read_text())
    assert sum(row[0].startswith("FAISS") for row in baselines["data"]) == 6 * 2  # and with float queries
    assert "FAISS OPQ+PQ, 32 bytes" in done.stdout


def test_a_full_or_read_only_cache_is_no_obstacle(workplace, tmp_path):
    (tmp_path / "file").write_text("in the way")
    data = write_pairs(tmp_path / "few", train=8, dev=4, test=4)
    place = Workplace(workplace.folder, tmp_path / "file" / "cache")
    done = place.command("train", "--dataset", str(data), "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "the cache can't be written" in done.stderr
    assert place.runs()[0].info.status == "FINISHED"


@pytest.mark.stsb
@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes on a machine that does nothing else
def test_the_figures_of_the_study_are_met(stsb_folder, tmp_path):
    """The means over seeds 0 to 4 that the published recipe gives on STS-B."""
    from twinsqueeze.training.loop import train_replicas

    data = load_pairs(str(stsb_folder), splits=("train", "dev"))
    encoded = embed_pairs(data.splits, resolve_encoder("all-MiniLM-L6-v2"), DiskCache())
    recipes = [Recipe(alpha=alpha, seed=seed) for alpha in (0.0, 0.75) for seed in range(5)]
    fitted = train_replicas(recipes, encoded["train"], encoded["dev"], clean_loss_every=200)
    spearman = np.array([f.history.dev["spearman"][-1] for f in fitted]).reshape(2, 5).mean(1)
    mse = np.array([f.history.dev["mse"][-1] for f in fitted]).reshape(2, 5).mean(1)
    assert 0.755 <= spearman[0] <= 0.785
    assert 0.800 <= spearman[1] <= 0.825
    assert 0.066 <= mse[1] <= 0.080
