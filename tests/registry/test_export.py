"""The registered model in every format: all of them return the same vectors, and none of them needs pickle."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.pyfunc import scoring_server
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from benchmarks import serving
from tests.helpers.commands import ROOT, Workplace
from tests.helpers.isolation import run_without
from tests.helpers.models import product_network, write_model
from tests.helpers.vectors import compress
from twinsqueeze.commands import export
from twinsqueeze.data.encoder import DEFAULT_ENCODER
from twinsqueeze.errors import InputError
from twinsqueeze.model import onnx
from twinsqueeze.tracking import model_files
from twinsqueeze.utils import signals

URI = "models:/twinsqueeze@champion"
TEXTS = ["A man is playing a guitar.", "", " Zwei Hunde   laufen. ", "Ünïcödé 日本語 🙂", "word " * 600]
FORMATS = [name for name in export.FORMATS if name != "faiss"]  # which takes linear compressors only
with_each_encoder = pytest.mark.parametrize(
    "encoder", [None, pytest.param(DEFAULT_ENCODER, marks=pytest.mark.slow)], ids=["tiny", "default"], indirect=True
)


@pytest.fixture(scope="module")
def place(encoder, trained_place, make_once, pairs_folder) -> Workplace:
    """A workplace with a champion that was trained with the encoder; to be read only."""
    if encoder.name != DEFAULT_ENCODER:
        return trained_place

    def train(folder: Path) -> None:
        folder.mkdir()
        place = Workplace(folder, trained_place.cache)
        place.run("train", "--dataset", str(pairs_folder), "--epochs", "2", "--dim", "9", "--device", "cpu")
        place.run("register")

    return Workplace(make_once("trained-default-encoder", train), trained_place.cache)


@pytest.fixture(scope="module")
def trained(place) -> mlflow.entities.Run:
    """The run that trained the champion."""
    version = place.client.get_model_version_by_alias("twinsqueeze", "champion")
    return place.client.get_run(version.tags["twinsqueeze.trained_run"])


@pytest.fixture(scope="module")
def encoded(encoder) -> np.ndarray:
    """The encoder's vectors."""
    return SentenceTransformer(str(encoder.folder), device="cpu").encode(TEXTS)


@pytest.fixture(scope="module")
def vectors(place, trained, encoded) -> np.ndarray:
    """The expected vectors: the encoder's, compressed by NumPy with the weights that training logged."""
    return compress(load_file(place.checkpoint(trained)), encoded)


@pytest.fixture(scope="module")
def exported(encoder, place, make_once) -> Path:
    """A folder with an export in each format."""

    def export_all(folder: Path) -> None:
        for name in FORMATS:
            done = place.run("export", "--model", URI, "--output", str(folder / name), "--format", name)
            assert "compressor.safetensors" in done.stdout

    return make_once(f"exported-{encoder.folder.name}", export_all)


@pytest.fixture(scope="module")
def text_model(place) -> mlflow.pyfunc.PyFuncModel:
    """The champion, from texts to vectors."""
    (registration,) = place.runs("registration")
    return mlflow.pyfunc.load_model(str(place.model(registration)))


@pytest.fixture(scope="module")
def compressor(place, trained) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(place.model(trained)))


def test_text_model_takes_any_column_of_texts(text_model, vectors):
    array = np.array(TEXTS)
    columns = [array, array[:, None], pd.Series(TEXTS, index=range(7, 12)), pd.Series(TEXTS, dtype="string")]
    for data in (*columns, pd.DataFrame({"any name": TEXTS})):
        np.testing.assert_allclose(text_model.predict(data), vectors, atol=1e-6)


def test_signatures_say_text_or_vector_to_vector(text_model, compressor):
    """Which Spark infers where `mlflow.pyfunc.spark_udf` gets no `result_type`."""
    assert text_model.metadata.get_input_schema().to_dict() == [{"type": "string", "required": True}]
    for model in (text_model, compressor):
        inferred = mlflow.pyfunc._infer_spark_udf_return_type(model.metadata.get_output_schema())
        assert inferred.simpleString() == "array<float>"


def test_code_that_is_stored_with_a_model_imports_nothing_of_this_package():
    lines = [line.strip() for file in model_files.PYFUNC.glob("*.py") for line in file.read_text().splitlines()]
    assert not [line for line in lines if line.startswith(("import ", "from ")) and "twinsqueeze" in line]


@pytest.fixture
def check_without(place, encoded, vectors, tmp_path):
    """Runs a program that appends what it makes of `texts` and `encoded` to `found` where packages are missing."""

    def check(packages: Sequence[str], program: str, *arguments: str) -> None:
        (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
        np.save(tmp_path / "encoded.npy", encoded)
        inputs = 'import json\nfound, texts, encoded = [], json.load(open("texts.json")), np.load("encoded.npy")\n'
        whole = f'{inputs}{program}\nnp.save("found.npy", found)'
        run_without(packages, whole, *arguments, folder=tmp_path, environment=place.environment)
        for found in np.load(tmp_path / "found.npy"):
            np.testing.assert_allclose(found, vectors, atol=1e-6)

    return check


def test_models_load_where_this_package_is_not_installed(trained, exported, check_without):
    program = """
import mlflow
uri, compressor_uri, folder = sys.argv[1:]
found.append(mlflow.pyfunc.load_model(compressor_uri).predict(encoded))
assert "torch" not in sys.modules
from sentence_transformers import SentenceTransformer
found.append(mlflow.pyfunc.load_model(uri).predict(texts))
found.append(SentenceTransformer(folder, device="cpu", local_files_only=True).encode(texts))
"""
    compressor = f"models:/{trained.outputs.model_outputs[0].model_id}"
    check_without(["twinsqueeze"], program, URI, compressor, str(exported / "folder"))


@with_each_encoder
def test_onnxruntime_runs_both_graphs_without_pytorch(exported, check_without):
    program = """
import onnxruntime
from tokenizers import Tokenizer
folder = sys.argv[1]
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
graph = onnxruntime.InferenceSession(f"{folder}/model.onnx")
def encode(texts):
    tokens = tokenizer.encode_batch(texts)
    fed = {"input_ids": [t.ids for t in tokens], "attention_mask": [t.attention_mask for t in tokens],
           "token_type_ids": [t.type_ids for t in tokens]}
    return graph.run(None, {name: np.array(ids, np.int64) for name, ids in fed.items()})[0]
found += [encode(texts), np.concatenate([encode([text]) for text in texts])]
compressor = onnxruntime.InferenceSession(f"{folder}/compressor.onnx")
found += compressor.run(None, {"vectors": encoded})
"""
    check_without(["twinsqueeze", "torch", "transformers"], program, str(exported / "onnx"))


@pytest.fixture(scope="module")
def scoring(text_model):
    """A function that sends a body to MLflow's scoring code in this process and returns status and response."""
    schema = text_model.metadata.get_input_schema()

    def score(body: str | bytes, content_type: str = "application/json") -> tuple[int, str]:
        try:
            response = scoring_server.invocations(body, content_type, text_model, schema)
        except mlflow.MlflowException as error:
            return error.get_http_status_code(), error.message
        return response.status, response.response

    return score


def assert_scores(scored: tuple[int, str], vectors: np.ndarray) -> None:
    assert scored[0] == 200, scored
    np.testing.assert_allclose(json.loads(scored[1])["predictions"], vectors, atol=1e-6)


@pytest.mark.parametrize("value", [1, 0.5, None, True, float("nan"), "\ud800", 10**400, ["a"], {"text": "a"}])
def test_values_that_are_no_text_are_rejected(scoring, text_model, value):
    for texts in (["A text.", value], [value, "A text."], [value]):
        status, response = scoring(json.dumps({"inputs": texts}))
        assert status == 400, response
        assert f"row {texts.index(value)} " in response
    with pytest.raises(mlflow.MlflowException, match="row 1 "):
        text_model.predict(pd.DataFrame({"text": ["A text.", value]}, dtype=object))


def test_requests_without_texts_are_rejected(scoring, text_model):
    for inputs in ([], None, 5, {}, {"text": ["a"]}, [["a"]]):
        assert scoring(json.dumps({"inputs": inputs}))[0] == 400
        with pytest.raises(mlflow.MlflowException, match="text"):
            text_model.predict(inputs)
    # MLflow converts the values of other keys before a model sees them: null becomes the text None.
    for key in ("instances", "dataframe_split", "dataframe_records", "texts"):
        status, response = scoring(json.dumps({key: ["A text."]}))
        assert (status, "'inputs'" in response) == (400, True)
    for csv in ("text\na\nNA\n", "text\n"):
        assert scoring(csv, "text/csv")[0] == 400


def test_server_accepts_texts_in_every_format(scoring, vectors):
    table = pd.DataFrame({"any name": TEXTS})
    assert_scores(scoring(json.dumps({"inputs": TEXTS})), vectors)
    assert_scores(scoring(json.dumps({"inputs": TEXTS[0]})), vectors[:1])
    assert_scores(scoring(table.to_parquet(), "application/vnd.apache.parquet"), vectors)
    assert_scores(scoring(table[2:].to_csv(index=False), "text/csv"), vectors[2:])


def test_threads_encode_at_the_same_time(scoring, vectors):
    """They share a tokenizer with mutable settings."""
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda i: scoring(json.dumps({"inputs": TEXTS[: i % 4 + 1]})), range(60)))
    for i, response in enumerate(responses):
        assert_scores(response, vectors[: i % 4 + 1])


def test_compressor_rejects_nan(compressor, encoded):
    """MLflow converts null to NaN."""
    vectors = encoded.copy()
    vectors[1, 5] = np.nan
    with pytest.raises(mlflow.MlflowException, match="row 1 has a number that is not finite") as error:
        compressor.predict(vectors)
    assert error.value.get_http_status_code() == 400


@with_each_encoder
def test_every_export_has_the_trained_weights_and_a_model_card(place, trained, exported, vectors, encoder, tmp_path):
    place.run("export", "--model", trained.info.run_id, "--output", str(tmp_path / "unregistered"))
    weights = place.checkpoint(trained).read_bytes()
    for folder in (*(exported / name for name in FORMATS), tmp_path / "unregistered"):
        assert (folder / "compressor.safetensors").read_bytes() == weights
        assert "## Limitations" in (folder / "README.md").read_text()
    model = SentenceTransformer(str(tmp_path / "unregistered"), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), vectors, atol=1e-6)
    card = (tmp_path / "unregistered" / "README.md").read_text()
    assert f"See run {trained.info.run_id}" in card
    assert f"Texts are truncated after {256 if encoder.name == DEFAULT_ENCODER else 128} tokens." in card


def test_exports_and_registered_models_can_be_evaluated(place, trained, exported, tmp_path):
    """A comparison joins evaluations to trained runs by their tag."""
    copy = place.copy_to(tmp_path)
    for model in (str(exported / "folder"), URI):
        copy.run("evaluate", "--model", model, "--split", "dev")
        evaluation = copy.runs()[0]
        assert evaluation.data.metrics["dev/spearman"] == trained.data.metrics["dev/spearman"]
    assert evaluation.data.tags["twinsqueeze.trained_run"] == trained.info.run_id


@with_each_encoder
def test_no_file_contains_local_paths_or_needs_pickle(place, trained, exported, encoder):
    folders = {str(ROOT), str(Path(np.__file__).parent.parent)}
    registered = place.model(place.runs("registration")[0])
    for folder in (exported, place.model(trained), registered):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            assert path.suffix not in {".bin", ".pkl", ".pickle", ".pt", ".pth"}
            if path.is_relative_to(exported) or path.is_relative_to(registered / "model.sentence_transformer"):
                assert not [name for name in folders if name.encode() in path.read_bytes()], path
    shown = encoder.name.rpartition("/")[2]
    assert f"source_model_name: {shown}\n" in (registered / "MLmodel").read_text()


@pytest.fixture
def working_dir(trained_place, tmp_path, use_store, monkeypatch) -> Path:
    """The working directory of exports in this process."""
    use_store(trained_place.uri)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    monkeypatch.setattr(export.shutil, "copyfile", Mock(side_effect=failure))
    with pytest.raises((InputError, signals.Interrupted), match=r"No space left on device|SIGTERM"):
        export.export(URI, Path("failed"))
    assert list(working_dir.iterdir()) == []


class WrongGraph(onnx._CompressorGraph):
    def forward(self, *tensors):
        return onnx.functional.normalize(tensors[0][:, :8])


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("_CompressorGraph", WrongGraph, "differ from PyTorch's by"),
        (
            "torch.onnx.export",
            Mock(side_effect=RuntimeError("no such\noperator")),
            r"cannot be exported as ONNX \(no such operator\): export it as a folder",
        ),
        ("importlib.util.find_spec", lambda _: None, "pip install onnx onnxscript onnxruntime"),
    ],
)
def test_a_failed_graph_is_an_error_in_one_line(working_dir, monkeypatch, name, replacement, message):
    monkeypatch.setattr(f"twinsqueeze.model.onnx.{name}", replacement)
    monkeypatch.setattr(export, "export_text_model", lambda *_: None)
    with pytest.raises(InputError, match=message):
        export.export(URI, Path("none"), format="onnx")
    assert list(working_dir.iterdir()) == []


def test_weights_without_metadata_are_exported_as_safetensors_only(working_dir):
    write_model(working_dir / "weights", product_network(4), None)
    with pytest.raises(InputError, match=r"does not record its encoder: .* export --format safetensors"):
        export.export("weights", Path("foreign"))
    export.export("weights", Path("foreign"), format="safetensors")
    assert [path.name for path in (working_dir / "foreign").iterdir()] == ["compressor.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [DEFAULT_ENCODER], indirect=True)
def test_served_model_under_load(place, exported, vectors, tmp_path, capsys):
    """Eight clients with valid and invalid requests, as in `python -m benchmarks.serving`."""
    model = SentenceTransformer(str(exported / "folder"), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), vectors, atol=1e-6)
    expected = {text: model.encode([text])[0] for text in serving.TEXTS}
    with serving.serve_model(URI, tmp_path, place.environment) as (server, url):
        predictions = requests.post(url, json={"inputs": TEXTS}).json()["predictions"]
        np.testing.assert_allclose(predictions, vectors, atol=1e-6)
        counts = serving.run_load(url, 8, 10, expected, lambda: serving.resident_memory(server))
    assert counts.failures == []
    assert set(counts.outcomes) == {"correct", "rejected"}
    assert min(counts.outcomes.values()) > 20
    output = capsys.readouterr().out
    assert f"{counts.outcomes['correct']:,} correct, 0 wrong" in output
    # The memory of a server that leaks requests grows with their number; a fifth is the share of its threads.
    sizes = re.search(r"([\d,]+) MB after.* ([\d,]+) MB at", output).groups()
    start, end = (float(size.replace(",", "")) for size in sizes)
    assert end < 1.2 * start
