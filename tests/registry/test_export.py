"""The registered model in every format: all of them return the same vectors, and none of them needs pickle."""

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from benchmarks import serving
from tests.helpers.commands import Workplace
from tests.helpers.isolation import run_without
from tests.helpers.servers import free_port, start_mlflow
from twinsqueeze.commands import export
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.model import onnx
from twinsqueeze.utils import signals

URI = "models:/twinsqueeze@champion"
TEXTS = ["A man is playing a guitar.", "", " Zwei Hunde   laufen. ", "Ünïcödé 日本語 🙂", "word " * 600]


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache, pairs_folder) -> Workplace:
    """A workplace with a trained and registered model."""
    place = Workplace(tmp_path_factory.mktemp("work"), shared_cache)
    stdout_of(place.command("train", "--dataset", str(pairs_folder), "--epochs", "2", "--dim", "9", "--device", "cpu"))
    stdout_of(place.command("register"))
    return place


def stdout_of(process: subprocess.CompletedProcess) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def trained(place) -> str:
    """The id of the run that trained the registered model."""
    return place.runs()[0].data.tags["twinsqueeze.trained_run"]


@pytest.fixture(scope="module")
def vectors(place, trained):
    """The expected vectors: the encoder's, compressed by NumPy with the weights that training logged."""
    hidden = SentenceTransformer(str(resolve_encoder("all-MiniLM-L6-v2").folder), device="cpu").encode(TEXTS)
    state = load_file(next(place.model(place.client.get_run(trained)).rglob("*.safetensors")))
    for i in (0, 2, 4):
        hidden = (np.maximum(hidden, 0) if i else hidden) @ state[f"{i}.weight"].T + state[f"{i}.bias"]
    return hidden / np.linalg.norm(hidden, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def exported(place):
    """A folder with an export in each format."""
    for name in export.FORMATS:
        output = stdout_of(place.command("export", "--model", URI, "--output", f"out/{name}", "--format", name))
        assert "compressor.safetensors" in output
    return place.folder / "out"


def run_isolated(place: Workplace, program: str, *arguments: str, blocked: tuple[str, ...] = ("twinsqueeze",)) -> None:
    """Run a program that can't import the blocked packages."""
    run_without(blocked, program, *arguments, folder=place.folder, environment=place.environment)


def test_sentence_transformers_loads_the_folder(place, exported, vectors):
    (place.folder / "texts.json").write_text(json.dumps(TEXTS))
    program = """
import json
from sentence_transformers import SentenceTransformer
texts = json.load(open("texts.json"))
model = SentenceTransformer("out/folder", device="cpu", local_files_only=True)
np.save("encoded.npy", model.encode(texts))
"""
    run_isolated(place, program)
    np.testing.assert_allclose(np.load(place.folder / "encoded.npy"), vectors, atol=1e-6)


def test_pyfunc_model_encodes_texts(place, vectors):
    (place.folder / "texts.json").write_text(json.dumps(TEXTS))
    program = f"""
import json
import mlflow
model = mlflow.pyfunc.load_model("{URI}")
np.save("predicted.npy", model.predict(json.load(open("texts.json"))))
"""
    run_isolated(place, program)
    np.testing.assert_allclose(np.load(place.folder / "predicted.npy"), vectors, atol=1e-6)


@pytest.fixture(scope="module")
def scoring(place):
    """A function that sends a body to MLflow's scoring code in this process and returns status and response."""
    import mlflow
    from mlflow.pyfunc import scoring_server

    mlflow.set_tracking_uri(place.uri)
    model = mlflow.pyfunc.load_model(URI)
    mlflow.set_tracking_uri(None)  # later commands in this process read the store from their environment
    schema = model.metadata.get_input_schema()

    def score(body: object, content_type: str = "application/json") -> tuple[int, str]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            response = scoring_server.invocations(content, content_type, model, schema)
        except mlflow.MlflowException as error:
            return error.get_http_status_code(), error.message
        return response.status, response.response

    return score


def request_bodies(texts: list) -> list[dict]:
    """The JSON bodies that MLflow's servers accept."""
    return [
        {"inputs": texts},
        {"instances": texts},
        {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}},
        {"dataframe_records": [{"text": text} for text in texts]},
    ]


@pytest.mark.parametrize("value", [1, 0.5, None, True, float("nan"), "\ud800", 10**400, ["a"], {"text": "a"}])
def test_server_rejects_values_that_are_no_text(scoring, value):
    """MLflow reads lists and objects as columns in the first two formats, and takes the first column."""
    formats = slice(2 if isinstance(value, list | dict) else 0, None)
    for texts in (["A text.", value], [value, "A text."], [value]):
        for body in request_bodies(texts)[formats]:
            status, response = scoring(body)
            assert status == 400, (body, response)


def test_server_accepts_texts_in_every_format(scoring, vectors):
    bodies = [(body, TEXTS) for body in request_bodies(TEXTS)] + [
        (body, TEXTS[:1]) for body in request_bodies(TEXTS[:1])
    ]
    for body, texts in [*bodies, ({"inputs": TEXTS[0]}, TEXTS[:1])]:
        status, response = scoring(body)
        assert status == 200, response
        predictions = np.array(json.loads(response)["predictions"], np.float32)
        np.testing.assert_allclose(predictions, vectors[: len(texts)], atol=1e-6)


def test_threads_encode_at_the_same_time(scoring, vectors):
    """They share a tokenizer with mutable settings."""
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda i: scoring({"inputs": TEXTS[: i % 4 + 1]}), range(60)))
    for i, (status, response) in enumerate(responses):
        assert status == 200, response
        np.testing.assert_allclose(json.loads(response)["predictions"], vectors[: i % 4 + 1], atol=1e-6)


def test_compressor_rejects_nan(place, trained):
    """MLflow converts null to NaN."""
    import mlflow

    model = mlflow.pyfunc.load_model(str(place.model(place.client.get_run(trained))))
    vectors = np.ones((2, 384), np.float32)
    assert np.isfinite(model.predict(vectors)).all()
    vectors[1, 5] = np.nan
    with pytest.raises(mlflow.MlflowException, match="row 1 has a number that is not finite") as error:
        model.predict(vectors)
    assert error.value.get_http_status_code() == 400


def test_compressor_model_compresses_vectors_of_the_encoder(place, trained, vectors):
    encoder = SentenceTransformer(str(resolve_encoder("all-MiniLM-L6-v2").folder), device="cpu")
    np.save(place.folder / "encoder.npy", encoder.encode(TEXTS))
    program = """
import mlflow
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[1]}/compressor")
np.save("compressed.npy", model.predict(np.load("encoder.npy")))
assert "torch" not in sys.modules
"""
    run_isolated(place, program, trained)
    np.testing.assert_allclose(np.load(place.folder / "compressed.npy"), vectors, atol=1e-6)


def test_onnxruntime_runs_both_graphs_without_pytorch(place, exported, vectors):
    (place.folder / "texts.json").write_text(json.dumps(TEXTS))
    encoder = SentenceTransformer(str(resolve_encoder("all-MiniLM-L6-v2").folder), device="cpu")
    np.save(place.folder / "encoder.npy", encoder.encode(TEXTS))
    program = """
import json
import onnxruntime
from tokenizers import Tokenizer
texts = json.load(open("texts.json"))
tokenizer = Tokenizer.from_file("out/onnx/tokenizer.json")
graph = onnxruntime.InferenceSession("out/onnx/model.onnx")
def encode(texts):
    found = tokenizer.encode_batch(texts)
    fed = {"input_ids": [f.ids for f in found], "attention_mask": [f.attention_mask for f in found],
           "token_type_ids": [f.type_ids for f in found]}
    return graph.run(None, {name: np.array(ids, np.int64) for name, ids in fed.items()})[0]
np.save("batched.npy", encode(texts))
np.save("single.npy", np.concatenate([encode([text]) for text in texts]))
graph = onnxruntime.InferenceSession("out/onnx/compressor.onnx")
np.save("graph.npy", graph.run(None, {"vectors": np.load("encoder.npy")})[0])
"""
    run_isolated(place, program, blocked=("twinsqueeze", "torch", "transformers"))
    for name in ("batched", "single", "graph"):
        np.testing.assert_allclose(np.load(place.folder / f"{name}.npy"), vectors, atol=1e-6)


def test_export_can_be_evaluated_and_has_the_trained_weights_in_every_format(place, exported, trained):
    weights = next(place.model(place.client.get_run(trained)).rglob("*.safetensors")).read_bytes()
    for name in export.FORMATS:
        assert (exported / name / "compressor.safetensors").read_bytes() == weights
        assert "## Limitations" in (exported / name / "README.md").read_text()
    stdout_of(place.command("evaluate", "--model", "out/folder", "--split", "dev"))
    evaluated, trained_metrics = place.runs()[0].data.metrics, place.client.get_run(trained).data.metrics
    assert evaluated["dev/spearman"] == trained_metrics["dev/spearman"]


def test_no_file_contains_local_paths_or_needs_pickle(place, exported):
    folders = {str(Path(module.__file__).parent.parent) for module in (export, np)}
    registered = place.model(next(r for r in place.runs() if r.data.tags["twinsqueeze.kind"] == "registration"))
    for folder in (exported, registered / "model.sentence_transformer"):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            assert path.suffix not in {".bin", ".pkl", ".pickle", ".pt", ".pth"}
            assert not [name for name in folders if name.encode() in path.read_bytes()], path
    assert "source_model_name: all-MiniLM-L6-v2" in (registered / "MLmodel").read_text()


def test_export_of_an_unregistered_run(place, trained, exported, vectors):
    stdout_of(place.command("export", "--model", trained, "--output", "plain"))
    model = SentenceTransformer(str(place.folder / "plain"), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), vectors, atol=1e-6)
    card = (place.folder / "plain" / "README.md").read_text()
    assert f"See run {trained}" in card
    assert "Texts are truncated after 256 tokens." in card


@pytest.fixture
def working_dir(place, monkeypatch):
    """Run commands in this process, in the workplace: it saves the time of the imports."""
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place.folder)
    import mlflow

    mlflow.set_tracking_uri(place.uri)
    yield place.folder
    mlflow.set_tracking_uri(None)


def test_overwriting_replaces_all_files_of_an_earlier_export(working_dir):
    export.export(URI, Path("again"))
    with pytest.raises(InputError, match="is not empty"):
        export.export(URI, Path("again"), format="safetensors")
    assert (working_dir / "again" / "modules.json").is_file()
    export.export(URI, Path("again"), format="safetensors", overwrite=True)
    assert sorted(path.name for path in (working_dir / "again").iterdir()) == ["README.md", "compressor.safetensors"]
    export.export("again", Path("again"), overwrite=True)  # an export of itself
    assert (working_dir / "again" / "modules.json").is_file()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), signals.Interrupted(15)])
def test_failed_export_leaves_no_files(working_dir, monkeypatch, failure):
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(export.shutil, "copyfile", fail)
    before = sorted(working_dir.iterdir())
    with pytest.raises((InputError, signals.Interrupted), match=r"No space left on device|SIGTERM"):
        export.export(URI, Path("failed"))
    assert sorted(working_dir.iterdir()) == before


def test_graph_that_differs_from_pytorch_is_rejected(working_dir, monkeypatch):
    class Wrong(onnx._CompressorGraph):
        def forward(self, *tensors):
            return onnx.functional.normalize(tensors[0][:, :9])

    monkeypatch.setattr(onnx, "_CompressorGraph", Wrong)
    with pytest.raises(InputError, match="differ from PyTorch's by"):
        export.export(URI, Path("wrong"), format="onnx")
    assert not (working_dir / "wrong").exists()


def test_onnx_without_its_packages_names_them(working_dir, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnx onnxscript onnxruntime"):
        export.export(URI, Path("none"), format="onnx")


def test_weights_without_metadata_are_exported_as_safetensors_only(working_dir, trained, tmp_path):
    from safetensors.numpy import save_file

    save_file({"0.weight": np.eye(4, dtype=np.float32), "0.bias": np.zeros(4, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"does not record its encoder: .* export --format safetensors"):
        export.export(str(tmp_path), Path("foreign"))
    export.export(str(tmp_path), Path("foreign"), format="safetensors")
    assert [path.name for path in (working_dir / "foreign").iterdir()] == ["compressor.safetensors"]


@pytest.mark.slow
def test_served_model_under_load(place, exported, capsys):
    """Eight clients with valid and invalid requests, as in `python -m benchmarks.serving`."""
    model = SentenceTransformer(str(exported / "folder"), device="cpu")
    expected = {text: model.encode([text])[0] for text in serving.TEXTS}
    with serving.serve_model(URI, place.folder, place.environment) as (server, url):
        counts = serving.run_load(url, 8, 15, expected, lambda: serving.resident_memory(server))
    assert counts.failures == []
    assert counts.outcomes["correct"] > 20
    assert counts.outcomes["rejected"] > 20
    assert set(counts.outcomes) == {"correct", "rejected"}
    output = capsys.readouterr().out
    assert f"{counts.outcomes['correct']:,} correct, 0 wrong" in output
    # The memory of a server that leaks requests grows with their number; a fifth is the share of its threads.
    sizes = re.search(r"([\d,]+) MB after.* ([\d,]+) MB at", output).groups()
    start, end = (float(size.replace(",", "")) for size in sizes)
    assert end < 1.2 * start


@pytest.mark.slow
def test_mlflow_serves_the_model_over_http(place, vectors):
    port = free_port()
    server = start_mlflow(
        *("models", "serve", "-m", URI, "--env-manager", "local", "--host", "127.0.0.1", "-p", str(port)),
        folder=place.folder,
        environment={name: value for name, value in place.environment.items() if name != "PYTHONPATH"},
        health=f"http://127.0.0.1:{port}/ping",
    )
    try:
        for body in ({"inputs": TEXTS}, {"dataframe_split": {"columns": ["text"], "data": [[t] for t in TEXTS]}}):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                predictions = json.load(response)["predictions"]
            np.testing.assert_allclose(np.array(predictions, np.float32), vectors, atol=1e-6)
    finally:
        os.killpg(server.pid, 15)
        server.wait()
