"""The registered model in every way that it is used: all of them give the same vectors, and none of them unpickles."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from benchmarks import serving
from tests.processes import Workplace
from twinsqueeze.commands import export
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.model import onnx
from twinsqueeze.utils import signals

URI = "models:/twinsqueeze@champion"
TEXTS = ["A man is playing a guitar.", "", " Zwei Hunde   laufen. ", "Ünïcödé 日本語 🙂", "word " * 600]


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache, pairs_folder) -> Workplace:
    """Where a model has been trained and registered."""
    place = Workplace(tmp_path_factory.mktemp("work"), shared_cache)
    finished(place.command("train", "--dataset", str(pairs_folder), "--epochs", "2", "--dim", "9", "--device", "cpu"))
    finished(place.command("register"))
    return place


def finished(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(place) -> str:
    """The id of the run that trained it."""
    return place.runs()[0].data.tags["twinsqueeze.trained_run"]


@pytest.fixture(scope="module")
def vectors(place, trained):
    """What the encoder and the weights that training logged give, by NumPy."""
    hidden = SentenceTransformer(str(resolve_encoder("all-MiniLM-L6-v2").folder), device="cpu").encode(TEXTS)
    state = load_file(next(place.model(place.client.get_run(trained)).rglob("*.safetensors")))
    for i in (0, 2, 4):
        hidden = (np.maximum(hidden, 0) if i else hidden) @ state[f"{i}.weight"].T + state[f"{i}.bias"]
    return hidden / np.linalg.norm(hidden, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def exported(place):
    """A folder a format."""
    for name in export.FORMATS:
        said = finished(place.command("export", "--model", URI, "--output", f"out/{name}", "--format", name))
        assert "compressor.safetensors" in said
    return place.folder / "out"


# Where the package is installed in development mode, -I alone would still find it.
BLOCKED = """
import sys
import numpy as np
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCK:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""


def elsewhere(place: Workplace, program: str, *arguments: str, blocked: tuple[str, ...] = ("twinsqueeze",)) -> None:
    """Runs a program where the package and whatever else is named can't be imported."""
    environment = {name: value for name, value in place.environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"BLOCK = {blocked!r}{BLOCKED}{program}", *arguments],
        cwd=place.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_sentence_transformers_takes_the_folder(place, exported, vectors):
    (place.folder / "texts.json").write_text(json.dumps(TEXTS))
    program = """
import json
from sentence_transformers import SentenceTransformer
texts = json.load(open("texts.json"))
model = SentenceTransformer("out/folder", device="cpu", local_files_only=True)
np.save("encoded.npy", model.encode(texts))
"""
    elsewhere(place, program)
    np.testing.assert_allclose(np.load(place.folder / "encoded.npy"), vectors, atol=1e-6)


def test_pyfunc_takes_texts(place, vectors):
    (place.folder / "texts.json").write_text(json.dumps(TEXTS))
    program = f"""
import json
import mlflow
model = mlflow.pyfunc.load_model("{URI}")
np.save("predicted.npy", model.predict(json.load(open("texts.json"))))
"""
    elsewhere(place, program)
    np.testing.assert_allclose(np.load(place.folder / "predicted.npy"), vectors, atol=1e-6)


@pytest.fixture(scope="module")
def scoring(place):
    """The registered model behind MLflow's own scoring code, in this process: a body in, status and answer out."""
    import mlflow
    from mlflow.pyfunc import scoring_server

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(place.uri)
    model = mlflow.pyfunc.load_model(URI)
    mlflow.set_tracking_uri(before)
    schema = model.metadata.get_input_schema()

    def ask(body: object, content_type: str = "application/json") -> tuple[int, str]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            answer = scoring_server.invocations(content, content_type, model, schema)
        except mlflow.MlflowException as error:
            return error.get_http_status_code(), error.message
        return answer.status, answer.response

    return ask


def forms(texts: list) -> list[dict]:
    """The bodies that MLflow's servers take."""
    return [
        {"inputs": texts},
        {"instances": texts},
        {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}},
        {"dataframe_records": [{"text": text} for text in texts]},
    ]


@pytest.mark.parametrize("among", [1, 0.5, None, True, float("nan"), "\ud800", 10**400, ["a"], {"text": "a"}])
def test_a_server_refuses_what_is_no_text(scoring, among):
    """Rows that are lists or objects are columns to MLflow in the first two forms, of which it takes the first."""
    which = slice(2 if isinstance(among, list | dict) else 0, None)
    for body in (*forms(["A text.", among])[which], *forms([among, "A text."])[which], *forms([among])[which]):
        status, said = scoring(body)
        assert status == 400, (body, said)


def test_a_server_takes_texts_in_every_form(scoring, vectors):
    bodies = [(body, TEXTS) for body in forms(TEXTS)] + [(body, TEXTS[:1]) for body in forms(TEXTS[:1])]
    for body, texts in [*bodies, ({"inputs": TEXTS[0]}, TEXTS[:1])]:
        status, said = scoring(body)
        assert status == 200, said
        found = np.array(json.loads(said)["predictions"], np.float32)
        np.testing.assert_allclose(found, vectors[: len(texts)], atol=1e-6)


def test_threads_may_ask_at_once(scoring, vectors):
    """They share a tokenizer, which keeps settings as state."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: scoring({"inputs": TEXTS[: i % 4 + 1]}), range(60)))
    for i, (status, said) in enumerate(answers):
        assert status == 200, said
        np.testing.assert_allclose(json.loads(said)["predictions"], vectors[: i % 4 + 1], atol=1e-6)


def test_the_compressor_refuses_numbers_that_are_none(place, trained):
    """MLflow makes nan of null."""
    import mlflow

    model = mlflow.pyfunc.load_model(str(place.model(place.client.get_run(trained))))
    good = np.ones((2, 384), np.float32)
    assert np.isfinite(model.predict(good)).all()
    good[1, 5] = np.nan
    with pytest.raises(mlflow.MlflowException, match="row 1 has a number that is not finite") as refused:
        model.predict(good)
    assert refused.value.get_http_status_code() == 400


def test_the_compressor_alone_takes_vectors(place, trained, vectors):
    """Those that a user has from the encoder already."""
    encoder = SentenceTransformer(str(resolve_encoder("all-MiniLM-L6-v2").folder), device="cpu")
    np.save(place.folder / "mine.npy", encoder.encode(TEXTS))
    program = """
import mlflow
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[1]}/compressor")
np.save("compressed.npy", model.predict(np.load("mine.npy")))
assert "torch" not in sys.modules
"""
    elsewhere(place, program, trained)
    np.testing.assert_allclose(np.load(place.folder / "compressed.npy"), vectors, atol=1e-6)


def test_onnxruntime_takes_both_graphs(place, exported, vectors):
    """With a tokenizer and without PyTorch, one text alone and all together."""
    (place.folder / "texts.json").write_text(json.dumps(TEXTS))
    encoder = SentenceTransformer(str(resolve_encoder("all-MiniLM-L6-v2").folder), device="cpu")
    np.save(place.folder / "mine.npy", encoder.encode(TEXTS))
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
np.save("together.npy", encode(texts))
np.save("alone.npy", np.concatenate([encode([text]) for text in texts]))
graph = onnxruntime.InferenceSession("out/onnx/compressor.onnx")
np.save("graph.npy", graph.run(None, {"vectors": np.load("mine.npy")})[0])
"""
    elsewhere(place, program, blocked=("twinsqueeze", "torch", "transformers"))
    for name in ("together", "alone", "graph"):
        np.testing.assert_allclose(np.load(place.folder / f"{name}.npy"), vectors, atol=1e-6)


def test_an_export_is_a_model_like_any_other(place, exported, trained):
    """evaluate reads it, and every format has the weights that were trained, to the byte."""
    weights = next(place.model(place.client.get_run(trained)).rglob("*.safetensors")).read_bytes()
    for name in export.FORMATS:
        assert (exported / name / "compressor.safetensors").read_bytes() == weights
        assert "## Limitations" in (exported / name / "README.md").read_text()
    finished(place.command("evaluate", "--model", "out/folder", "--split", "dev"))
    ours, theirs = place.runs()[0].data.metrics, place.client.get_run(trained).data.metrics
    assert ours["dev/spearman"] == theirs["dev/spearman"]


def test_no_file_names_a_folder_of_this_machine_or_needs_unpickling(place, exported):
    folders = {str(Path(module.__file__).parent.parent) for module in (export, np)}
    registered = place.model(next(r for r in place.runs() if r.data.tags["twinsqueeze.kind"] == "registration"))
    for folder in (exported, registered / "model.sentence_transformer"):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            assert path.suffix not in {".bin", ".pkl", ".pickle", ".pt", ".pth"}
            assert not [name for name in folders if name.encode() in path.read_bytes()], path
    assert "source_model_name: all-MiniLM-L6-v2" in (registered / "MLmodel").read_text()


def test_an_export_of_a_run_that_is_not_registered(place, trained, exported, vectors):
    finished(place.command("export", "--model", trained, "--output", "plain"))
    model = SentenceTransformer(str(place.folder / "plain"), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), vectors, atol=1e-6)
    card = (place.folder / "plain" / "README.md").read_text()
    assert f"See run {trained}" in card
    assert "Texts are truncated after 256 tokens." in card


@pytest.fixture
def here(place, monkeypatch):
    """This process in the workplace, which saves the seconds of the imports."""
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place.folder)
    import mlflow

    mlflow.set_tracking_uri(place.uri)
    yield place.folder
    mlflow.set_tracking_uri(None)


def test_overwriting_takes_the_whole_place_of_an_earlier_export(here):
    export.export(URI, Path("again"))
    with pytest.raises(InputError, match="is not empty"):
        export.export(URI, Path("again"), format="safetensors")
    assert (here / "again" / "modules.json").is_file()
    export.export(URI, Path("again"), format="safetensors", overwrite=True)
    assert sorted(path.name for path in (here / "again").iterdir()) == ["README.md", "compressor.safetensors"]
    export.export("again", Path("again"), overwrite=True)  # from itself
    assert (here / "again" / "modules.json").is_file()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), signals.Interrupted(15)])
def test_nothing_is_left_of_an_export_that_fails(here, monkeypatch, failure):
    def full(*_: object) -> None:
        raise failure

    monkeypatch.setattr(export.shutil, "copyfile", full)
    before = sorted(here.iterdir())
    with pytest.raises((InputError, signals.Interrupted), match=r"No space left on device|SIGTERM"):
        export.export(URI, Path("failed"))
    assert sorted(here.iterdir()) == before


def test_a_graph_that_differs_from_pytorch_is_refused(here, monkeypatch):
    class Wrong(onnx._CompressorGraph):
        def forward(self, vectors):
            return onnx.functional.normalize(vectors[:, :9])

    monkeypatch.setattr(onnx, "_CompressorGraph", Wrong)
    with pytest.raises(InputError, match="differ from PyTorch's by"):
        export.export(URI, Path("wrong"), format="onnx")
    assert not (here / "wrong").exists()


def test_onnx_without_its_packages_says_what_to_install(here, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install onnx onnxscript onnxruntime"):
        export.export(URI, Path("none"), format="onnx")


def test_weights_that_name_no_encoder(here, trained, tmp_path):
    from safetensors.numpy import save_file

    save_file({"0.weight": np.eye(4, dtype=np.float32), "0.bias": np.zeros(4, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"does not record its encoder: .* export --format safetensors"):
        export.export(str(tmp_path), Path("foreign"))
    export.export(str(tmp_path), Path("foreign"), format="safetensors")
    assert [path.name for path in (here / "foreign").iterdir()] == ["compressor.safetensors"]


@pytest.mark.slow
def test_a_served_model_under_load(place, exported, capsys):
    """Eight clients with valid and invalid requests: as `python -m benchmarks.serving`, for a shorter time."""
    model = SentenceTransformer(str(exported / "folder"), device="cpu")
    expected = {text: model.encode([text])[0] for text in serving.TEXTS}
    with serving.served(URI, place.folder, place.environment) as (server, url):
        tally = serving.load(url, 8, 15, expected, lambda: serving.memory(server))
    assert tally.surprises == []
    assert tally.counts["right"] > 20
    assert tally.counts["refused"] > 20
    assert set(tally.counts) == {"right", "refused"}
    said = capsys.readouterr().out
    assert f"{tally.counts['right']:,} right, 0 wrong" in said
    # Of a server whose requests stay in memory it grows by what they hold: here by a fifth at most, threads' own share.
    sizes = re.search(r"([\d,]+) MB after.* ([\d,]+) MB at", said).groups()
    start, end = (float(size.replace(",", "")) for size in sizes)
    assert end < 1.2 * start


@pytest.mark.slow
def test_mlflow_serves_it_over_http(place, vectors):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = place.folder / "server.log"
    command = ["models", "serve", "-m", URI, "--env-manager", "local", "--host", "127.0.0.1", "-p", str(port)]
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=place.folder,
            env={name: value for name, value in place.environment.items() if name != "PYTHONPATH"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/ping", server, log)
        for body in ({"inputs": TEXTS}, {"dataframe_split": {"columns": ["text"], "data": [[t] for t in TEXTS]}}):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                predictions = json.load(answer)["predictions"]
            np.testing.assert_allclose(np.array(predictions, np.float32), vectors, atol=1e-6)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def wait_until_it_answers(address: str, server: subprocess.Popen, log) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    raise AssertionError(log.read_text())
