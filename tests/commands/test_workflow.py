"""The commands main, train, best and evaluate, and what they leave in MLflow."""

import json
import os
import re
from itertools import permutations, product
from urllib.parse import quote

import faiss
import mlflow.models
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy import stats
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.quantization import quantize_embeddings
from sklearn.decomposition import PCA

from tests.helpers.commands import Workplace
from tests.helpers.results import without_times
from tests.helpers.search import nearest, recall
from tests.helpers.shortcuts import DRAW_FIGURES
from tests.helpers.vectors import compress, unit_rows
from twinsqueeze.data.embedding import embed_splits
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.data.unlabeled import embed_unlabeled
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking.experiment_note import describe_experiment
from twinsqueeze.training.loop import train_replicas
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.similarity import pair_cosines

EPOCHS = 12
RECIPE = ["--epochs", str(EPOCHS), "--dim", "8", "--lr", "1e-3", "--seed", "3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("work"), shared_cache)


@pytest.fixture(scope="module")
def main_output(place, tiny_options):
    return place.run("main", *tiny_options, *RECIPE, **{DRAW_FIGURES: "1"})


@pytest.fixture(scope="module")
def main_run(place, main_output):
    (run,) = place.runs()
    return run


@pytest.fixture(scope="module")
def weights(place, main_run):
    return load_file(place.checkpoint(main_run))


@pytest.fixture(scope="module")
def data(pairs_folder):
    return load_pairs(str(pairs_folder))


@pytest.fixture(scope="module")
def encoded(data, tiny_encoder, shared_cache):
    return embed_splits(data.splits, resolve_encoder(str(tiny_encoder), "cpu"), DiskCache(shared_cache))


def test_a_run_has_a_name_tags_parameters_and_a_description(main_run, data, pairs_folder, tiny_encoder):
    assert main_run.info.status == "FINISHED"
    assert main_run.info.run_name == "mlp8-a0.75-s3-epochs12-lr0.001"
    tags = main_run.data.tags
    assert tags["twinsqueeze.kind"] == "train"
    assert tags["twinsqueeze.dataset"] == "sentences"
    assert tags["twinsqueeze.dataset_digest"] == data.digest
    assert tags["twinsqueeze.test_digest"] == data.splits["test"].digest

    params = main_run.data.params
    paths = {"dataset": str(pairs_folder), "encoder": str(tiny_encoder)}
    expected = Recipe(epochs=EPOCHS, dim=8, lr=1e-3, seed=3, device="cpu", **paths)
    assert Recipe.parse({name: params[name] for name in Recipe.model_fields}) == expected
    for name in ("dataset_digest", "encoder_fingerprint", "torch_version", "threads", "cpu", "used_device"):
        assert params[name]

    description = tags["mlflow.note.content"]
    assert description.startswith(
        "A compressor (mlp, 64 to 8 dimensions, quantizer none) trained for 12 epochs "
        "on the 60 train pairs of sentences"
    )
    assert f"Spearman {main_run.data.metrics['test/spearman']:.4f} (95% interval" in description

    inputs = {item.tags[0].value: item.dataset for item in main_run.inputs.dataset_inputs}
    assert {split: item.digest for split, item in inputs.items()} == {n: p.digest for n, p in data.splits.items()}
    assert all(str(pairs_folder) in item.source for item in inputs.values())


def test_curves_have_every_epoch_and_few_metrics_have_charts_of_their_own(place, main_run):
    curves = {"train/loss", "train/clean_loss", "dev/mse", "dev/mae", "dev/pearson", "dev/spearman"}
    values = {"dev/neighbor_recall"}
    values |= {f"test/{name}" for name in ("mse", "mae", "pearson", "spearman", "neighbor_recall")}
    metrics, sections = main_run.data.metrics, ("search/", "uncertainty/", "time/")
    assert {name for name in metrics if not name.startswith(sections)} == curves | values
    for name in curves | values:
        steps = [point.step for point in place.client.get_metric_history(main_run.info.run_id, name)]
        assert sorted(steps) == list(range(1, EPOCHS + 1)) if name in curves else len(steps) == 1, name
    seconds = metrics["time/training_seconds"]
    assert seconds == pytest.approx(metrics["time/seconds_per_epoch"] * EPOCHS)
    assert 0 < seconds < (main_run.info.end_time - main_run.info.start_time) / 1000


def test_scores_are_those_of_the_logged_weights_at_every_precision(place, main_run, weights, encoded):
    """Applied with NumPy, quantized by sentence-transformers, scored with SciPy, searched by scikit-learn."""
    metrics = main_run.data.metrics
    vectors = {split: compress(weights, pairs.embeddings) for split, pairs in encoded.items()}
    step = np.abs(vectors["train"]).max() / 126.5
    ranges = np.repeat([[-128.5 * step], [126.5 * step]], 8, axis=1)
    _, metadata = read_checkpoint(place.checkpoint(main_run), "m")
    np.testing.assert_allclose(metadata.int8_ranges, ranges, rtol=1e-5)
    for split in ("dev", "test"):
        pairs = encoded[split]
        predicted = (vectors[split][pairs.first] * vectors[split][pairs.second]).sum(1)
        labels = (np.tanh(4 * (pairs.scores / 5 - 0.5)) + 1) / 2
        assert metrics[f"{split}/mse"] == pytest.approx(np.square(predicted - labels).mean(), abs=1e-6)
        assert metrics[f"{split}/pearson"] == pytest.approx(stats.pearsonr(predicted, labels)[0], abs=1e-5)
        low, high = (metrics[f"uncertainty/{split}_mse_{end}"] for end in ("low", "high"))
        assert low < metrics[f"{split}/mse"] < high
        stored = {
            "": vectors[split],
            "_int8": quantize_embeddings(vectors[split], "int8", ranges=ranges),
            "_binary": 2.0 * np.unpackbits(quantize_embeddings(vectors[split], "ubinary"), axis=1)[:, :8] - 1,
        }
        for suffix, quantized in stored.items():
            unit = unit_rows(quantized.astype(np.float64))
            predicted = (unit[pairs.first] * unit[pairs.second]).sum(1)
            expected = stats.spearmanr(np.round(predicted, 6), pairs.scores)[0]
            prefix = f"search/{split}_" if suffix else f"{split}/"
            assert metrics[f"{prefix}spearman{suffix}"] == pytest.approx(expected, abs=2e-2), suffix
            # Of these pairs only a sentence with itself scores 4 or more.
            assert f"search/{split}_mrr{suffix}" not in metrics
            if suffix != "_binary":  # where signs tie, any of the tied are the nearest
                expected = recall(nearest(pairs.embeddings), nearest(unit))
                assert metrics[f"{prefix}neighbor_recall{suffix}"] == pytest.approx(expected, abs=0.02)


def test_an_experiment_gets_a_note_unless_its_users_wrote_or_cleared_one(place, main_run, use_store):
    use_store(place.uri)
    client, key = place.client, "mlflow.note.content"
    assert "tags.`twinsqueeze.kind` = 'train'" in client.get_experiment("0").tags[key]
    for note in ("by its user", ""):
        experiment_id = client.create_experiment(f"with the note '{note}'")
        client.set_experiment_tag(experiment_id, key, note)
        describe_experiment(experiment_id)
        assert client.get_experiment(experiment_id).tags[key] == note


def test_artifacts_are_figures_and_tables(place, main_run, data):
    run_id = main_run.info.run_id
    figures = sorted(place.download(run_id, "figures").iterdir())
    names = ("loss_curves", "pair_losses", "predicted_against_label", "quality_against_bytes")
    assert [figure.name for figure in figures] == [f"{name}.png" for name in names]
    for figure in figures:
        assert np.asarray(Image.open(figure).convert("L")).std() > 5  # something is drawn
    table = json.loads(place.download(run_id, "predictions.json").read_text())
    assert table["columns"] == ["split", "sentence1", "sentence2", "score", "label", "predicted", "squared_error"]
    assert [row[1] for row in table["data"]] == list(data.splits["dev"].sentence1 + data.splits["test"].sentence1)
    assert place.download(run_id, "baselines.json").is_file()


def test_main_prints_its_data_first_and_a_headline_a_table_and_the_next_commands_last(
    main_output, main_run, place, tiny_encoder
):
    assert main_output.stderr.splitlines()[:3] == [
        "Data:    sentences, 60 train, 24 dev, 24 test pairs",
        f"Encoder: {tiny_encoder}, 64 floats",
        "Run:     mlp8-a0.75-s3-epochs12-lr0.001 on cpu",
    ]
    lines, metrics = main_output.stdout.splitlines(), main_run.data.metrics
    scores = f"dev {metrics['dev/spearman']:.4f}, test {metrics['test/spearman']:.4f}"
    assert lines[0].startswith(f"8 floats, 32 bytes: Spearman {scores} ")
    sizes = {tuple(re.split(r" {2,}", line)[:2]) for line in lines}
    assert {("uncompressed", "256"), ("this model", "32"), ("this model, int8", "8")} <= sizes
    assert len(lines) < 30
    assert lines[-4:] == [
        "Next:",
        "  register the best run  twinsqueeze register",
        f"  start MLflow's UI      mlflow ui --backend-store-uri {place.uri}",
        f"  look at the run        http://127.0.0.1:5000/#/experiments/0/runs/{main_run.info.run_id}",
    ]


def test_the_model_says_what_it_takes_and_needs_and_how_good_it_is(place, main_run, weights, encoded):
    logged = place.client.get_logged_model(main_run.outputs.model_outputs[0].model_id)
    shown = {metric.key: metric.value for metric in logged.metrics}
    assert shown["test/spearman"] == main_run.data.metrics["test/spearman"]
    assert logged.params["alpha"] == "0.75"
    assert logged.name == main_run.info.run_name.replace(".", "_")  # MLflow refuses points
    for name, value in {**main_run.data.tags, **logged.tags}.items():
        assert len(value) < 300 or name == "mlflow.note.content", name

    folder = place.model(main_run)
    model = mlflow.models.Model.load(str(folder))
    assert model.run_id == main_run.info.run_id
    (spec,) = model.signature.inputs.inputs
    assert (spec.type, spec.shape) == (np.dtype("float32"), (-1, 64))
    assert np.asarray(model.load_input_example(str(folder))).shape == (3, 64)
    requirements = (folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements)
    assert {line.partition("=")[0] for line in requirements} == {"mlflow", "numpy", "safetensors"}
    vectors = encoded["dev"].embeddings
    predicted = mlflow.pyfunc.load_model(str(folder)).predict(vectors)
    np.testing.assert_allclose(predicted, compress(weights, vectors), atol=1e-6)


@pytest.fixture(scope="module")
def repeated(place, pairs_folder, tiny_options, tiny_encoder, main_run, tmp_path_factory):
    """Runs of the same recipe: trained by train on gzipped files with other columns, evaluated from another folder."""
    folder = tmp_path_factory.mktemp("renamed") / pairs_folder.name
    folder.mkdir()
    for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        table = pd.read_csv(pairs_folder / f"{split}.csv", dtype=str)
        table.set_axis(["text1", "text2", "label"], axis=1).to_csv(folder / f"{name}.CSV.gz", compression="gzip")
    paths = {"dataset": folder, "encoder": tiny_encoder}
    options = {name: os.path.relpath(path, place.folder) for name, path in paths.items()}
    options["columns"] = "sentence1=text1,sentence2=text2,score=label"
    place.run("train", *tiny_options, *RECIPE, *(f"--{name}={value}" for name, value in options.items()))
    trained = place.runs()[0]
    assert trained.data.params.items() >= options.items()
    Workplace(folder, place.cache).run("evaluate", "--model", trained.info.run_id, MLFLOW_TRACKING_URI=place.uri)
    return trained, place.runs()[0]


def test_train_then_evaluate_gives_the_metrics_of_main_to_the_last_bit(main_run, repeated):
    trained, evaluated = repeated
    assert not [name for name in trained.data.metrics if name.startswith("test")]
    assert "twinsqueeze.test_digest" not in trained.data.tags
    assert evaluated.data.tags["twinsqueeze.kind"] == "evaluation"
    for tag in ("twinsqueeze.trained_run", "mlflow.parentRunId"):
        assert evaluated.data.tags[tag] == trained.info.run_id
    for tag in ("twinsqueeze.dataset_digest", "twinsqueeze.dataset"):
        assert trained.data.tags[tag] == evaluated.data.tags[tag] == main_run.data.tags[tag]
    assert without_times(trained.data.metrics | evaluated.data.metrics) == without_times(main_run.data.metrics)


def test_evaluate_takes_a_folder_and_foreign_weights(place, main_run, repeated, weights, tiny_options, tmp_path):
    """A folder that MLflow wrote, and one with nothing but the layers under other names."""
    expected = repeated[1].data.metrics
    place.run("evaluate", "--model", f"file://{quote(str(place.model(main_run)))}")
    assert place.runs()[0].data.metrics == expected
    save_file({f"net.fc{name}": tensor for name, tensor in weights.items()}, tmp_path / "weights.safetensors")
    done = place.run("evaluate", "--model", str(tmp_path), *tiny_options)
    assert f"model '{tmp_path}' has no calibration for int8: its int8 scores are left out" in done.stderr
    assert place.runs()[0].data.metrics == {n: value for n, value in expected.items() if not n.endswith("_int8")}


def test_evaluate_refuses_other_pairs_than_those_of_the_training(place, repeated):
    trained, _ = repeated
    folder = (place.folder / trained.data.params["dataset"]).resolve()
    file = folder / "train.CSV.gz"
    content = file.read_bytes()
    pd.read_csv(file, dtype=str).iloc[::-1].to_csv(file)
    done = place.command("evaluate", "--model", trained.info.run_id, "--split", "train")
    file.write_bytes(content)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"the train and dev pairs of {folder} are not those that model" in done.stderr


def test_the_best_recipe_is_measured_as_what_faiss_stores(workplace, tiny_options, encoded):
    """Scores of the run, and of an evaluation of its model, from an index with the codebooks of the model's file."""
    done = workplace.run("best", "--dim", "16", "--unlabeled-sentences", "300", *tiny_options)
    assert re.search("training: epoch (0 of 15, teacher 20 of 20 epochs|15 of 15)", done.stderr)
    (run,) = workplace.runs()
    metrics = run.data.metrics
    assert run.data.params["quantizer"] == "product"
    assert not [name for name in metrics if name.endswith(("_int8", "_binary"))]
    weights = load_file(workplace.checkpoint(run))
    codebooks = weights["codebooks"]
    num_subvectors, _, subvector_dim = codebooks.shape
    quantizer = faiss.ProductQuantizer(num_subvectors * subvector_dim, num_subvectors, 8)
    faiss.copy_array_to_vector(codebooks.ravel(), quantizer.centroids)
    dev = encoded["dev"]
    unit = unit_rows(dev.embeddings @ weights["0.weight"].T + weights["0.bias"])
    restored = unit_rows(quantizer.decode(quantizer.compute_codes(unit)))
    cosine = (restored[dev.first] * restored[dev.second]).sum(1)
    table = json.loads(workplace.download(run.info.run_id, "predictions.json").read_text())
    predicted = pd.DataFrame(**table).query("split == 'dev'").predicted
    np.testing.assert_allclose(predicted, cosine, atol=1e-5)
    assert metrics["dev/spearman"] == pytest.approx(stats.spearmanr(predicted, dev.scores)[0], abs=1e-6)
    ways = [(unit[a] * restored[b]).sum(1) for a, b in permutations((dev.first, dev.second))]
    asymmetric = np.mean([stats.spearmanr(way, dev.scores)[0] for way in ways])
    assert metrics["search/dev_spearman_asymmetric"] == pytest.approx(asymmetric, abs=1e-4)
    workplace.run("evaluate", "--model", run.info.run_id)
    evaluated = workplace.runs()[0].data.metrics
    assert evaluated == {name: metrics[name] for name in evaluated}


def test_unlabeled_sentences_are_part_of_what_weights_begin_with(
    workplace, tiny_options, tiny_encoder, shared_cache, encoded
):
    """By scikit-learn's components of the train sentences and the unlabeled ones together."""
    options = ["--architecture", "linear", "--init", "pca", "--dim", "4", "--epochs", "1", "--lr", "1e-12"]
    done = workplace.run("train", *tiny_options, *options, "--unlabeled-sentences", "80")
    assert "encoding unlabeled sentences" in done.stderr
    assert "sentence 80 of 80" in done.stderr
    (run,) = workplace.runs()
    assert run.data.params["unlabeled_sentences"] == "80"
    unlabeled = embed_unlabeled(80, resolve_encoder(str(tiny_encoder), "cpu"), DiskCache(shared_cache))
    weights = load_file(workplace.checkpoint(run))
    rows, train = unit_rows(weights["0.weight"]), encoded["train"].embeddings
    for vectors, same in ((np.concatenate([train, unlabeled]), True), (train, False)):
        cosines = np.abs(np.sum(rows * PCA(4).fit(vectors).components_, axis=1))
        assert (cosines > 0.999).all() == same


def test_a_model_of_bfloat16_vectors_encodes_alike_in_commands_and_exports_float32(
    workplace, tiny_options, tiny_encoder
):
    workplace.run("main", *tiny_options, "--encoder", f"{tiny_encoder}:bfloat16", "--epochs", "2", "--dim", "8")
    (trained,) = workplace.runs()
    assert trained.data.params["encoder"].endswith(":bfloat16")
    workplace.run("evaluate", "--model", trained.info.run_id)
    evaluated = workplace.runs()[0]
    assert evaluated.data.metrics["test/spearman"] == trained.data.metrics["test/spearman"]

    (workplace.folder / "texts.txt").write_text("a cat sits\ntwo dogs run\n")
    compress_texts = ["compress", "--input", "texts.txt", "--model", trained.info.run_id]
    workplace.run(*compress_texts, "--encoder", "same", "--output", "same.npy")
    workplace.run(*compress_texts, "--encoder", str(tiny_encoder), "--output", "plain.npy")
    same, plain = (np.load(workplace.folder / f"{name}.npy") for name in ("same", "plain"))
    assert 0 < np.abs(same - plain).max() < 0.05

    workplace.run("export", "--model", trained.info.run_id, "--output", "model")
    exported = SentenceTransformer(str(workplace.folder / "model"), device="cpu")
    np.testing.assert_allclose(exported.encode(["a cat sits", "two dogs run"]), plain, atol=1e-6)


@pytest.mark.slow
def test_the_demo_is_called_no_benchmark_everywhere(workplace):
    done = workplace.run("train", "--dataset", "demo", "--epochs", "1")
    assert done.stderr.count("no benchmark") == 2  # at the start and at the end
    (run,) = workplace.runs()
    assert "no benchmark" in run.data.tags["mlflow.note.content"]
    # the demo has partners to find, and sentences enough for FAISS
    for name, suffix in product(("recall_at_1", "recall_at_10", "mrr"), ("", "_int8", "_binary")):
        assert 0 < run.data.metrics[f"search/dev_{name}{suffix}"] <= 1
    assert re.search(r"fitting FAISS's quantizers: quantizer (\d+) of \1\b", done.stderr)
    baselines = json.loads(workplace.download(run.info.run_id, "baselines.json").read_text())
    assert sum(row[0].startswith("FAISS") for row in baselines["data"]) == 6 * 2  # and with float queries
    assert re.search(r"(FAISS OPQ\+PQ|rotated signs|TurboQuant 2 bits) +(64|32|16) ", done.stdout)


def test_a_cache_that_cannot_be_written_is_no_obstacle(workplace, tiny_options, tmp_path):
    (tmp_path / "file").write_text("in the way")
    place = Workplace(workplace.folder, tmp_path / "file" / "cache")
    done = place.run("train", *tiny_options, "--epochs", "1")
    assert "the cache can't be written" in done.stderr
    assert place.runs()[0].info.status == "FINISHED"


@pytest.mark.longest
@pytest.mark.slow
def test_the_figures_of_the_study_are_met(stsb_folder, shared_cache):
    """Spearman of the encoder's cosines, and the means over seeds that the published recipe gives on STS-B."""
    data = load_pairs(str(stsb_folder))
    encoded = embed_splits(data.splits, resolve_encoder("all-MiniLM-L6-v2"), DiskCache(shared_cache))
    for name, expected in (("dev", 0.8672), ("test", 0.8203)):
        split = encoded[name]
        cosines = pair_cosines(split.embeddings, split.first, split.second)
        assert round(stats.spearmanr(cosines, split.scores)[0], 4) == expected
    recipes = [Recipe(alpha=alpha, seed=seed) for alpha in (0.0, 0.75) for seed in range(2)]
    trained = train_replicas(recipes, encoded["train"], encoded["dev"], clean_loss_every=200)
    spearman, mse = (
        np.reshape([result.history.dev[name][-1] for result in trained], (2, 2)).mean(1) for name in ("spearman", "mse")
    )
    assert 0.755 <= spearman[0] <= 0.785
    assert 0.800 <= spearman[1] <= 0.825
    assert 0.066 <= mse[1] <= 0.080
