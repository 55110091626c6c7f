"""FAISS indexes that `export` and `compress` write: FAISS alone, given the encoder's vectors, finds what we do."""

import re
import signal
from unittest.mock import patch

import faiss
import numpy as np
import pytest

from tests.helpers.models import metadata_for, write_model
from tests.helpers.search import nearest, recall
from tests.helpers.vectors import unit_rows, unit_vectors, write_rows
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.model.precision import int8_calibration_ranges
from twinsqueeze.model.quantizers import ProductQuantizer, fit_codebooks
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.signals import Interrupted

ROWS, QUERIES, DIM = 9_001, 100, 20  # three blocks; signs do not fill the last byte
# Vectors with neighbors: with random ones, codes find chance.
CENTERS = unit_vectors(300, 64)[np.random.default_rng(1).integers(300, size=ROWS)]
VECTORS = unit_rows(CENTERS + unit_vectors(ROWS, 64, seed=2) / 2)
NETWORK = CompressorNetwork(kaiming_uniform_layers((64, DIM), np.random.default_rng(0)))
(WEIGHT, BIAS) = (tensor.numpy() for tensor in NETWORK.layers[0])
OUTPUTS = unit_rows(VECTORS @ WEIGHT.T + BIAS)
LOW, HIGH = np.array(int8_calibration_ranges(OUTPUTS[:5000]), np.float32)
# Fewer centroids than bytes have values.
NETWORK.quantizer = ProductQuantizer(fit_codebooks(OUTPUTS[:200], 4, 0)[None])
RESIDUAL = CompressorNetwork(
    NETWORK.layers, ProductQuantizer(fit_codebooks(OUTPUTS, 10, 0, 3)[None, :, :200].contiguous(), 3)
)
PRECISIONS = ("float32", "int8", "product", "residual", "binary", "ubinary")


@pytest.fixture(scope="module")
def models(tiny_encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    metadata = metadata_for(tiny_encoder, [LOW.tolist(), HIGH.tolist()], architecture="linear", quantizer="product")
    write_model(folder / "linear", NETWORK, metadata)
    write_model(folder / "residual", RESIDUAL, metadata)
    write_model(folder / "foreign", CompressorNetwork(NETWORK.layers), None)
    write_model(folder / "mlp", CompressorNetwork(kaiming_uniform_layers((64, 8, 8), np.random.default_rng(0))), None)
    return folder


@pytest.fixture
def compress(workplace, models):
    """Compresses in.npy or another file with a linear model at one of `PRECISIONS`; returns the path of the output."""
    np.save(workplace.folder / "in.npy", VECTORS)

    def run(output: str, *options: str, precision: str = "product", name: str = "in.npy"):
        model, precision = model_and_precision(models, precision)
        options = (*options, "--precision", precision)
        workplace.run("compress", "--input", name, "--model", model, "--output", output, *options)
        return workplace.folder / output

    return run


def model_and_precision(models, precision: str) -> tuple[str, str]:
    return (str(models / "residual"), "product") if precision == "residual" else (str(models / "linear"), precision)


def restore(codes: np.ndarray, precision: str) -> FloatArray:
    """What codes stand for."""
    if precision == "int8":
        return LOW + (HIGH - LOW) * (codes.astype(np.float32) + 128.5) / 255
    if precision == "product":
        return np.concatenate([c[i] for c, i in zip(NETWORK.codebooks.numpy(), codes.T, strict=True)], 1)
    if precision == "residual":
        centroids = np.stack([c[i] for c, i in zip(RESIDUAL.codebooks.numpy(), codes.T, strict=True)], 1)
        return centroids.reshape(len(codes), 2, 3, 10).sum(2).reshape(len(codes), DIM)
    if precision in {"binary", "ubinary"}:
        bits = np.unpackbits(codes if precision == "ubinary" else codes.view(np.uint8) ^ 0x80, axis=1)[:, :DIM]
        return (2 * bits - 1.0) / np.sqrt(DIM)
    return codes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_index_stores_our_codes_and_finds_the_nearest_by_cosine(workplace, models, compress, precision):
    model, stored_as = model_and_precision(models, precision)
    workplace.run("export", "--model", model, "--output", "model", "--format", "faiss", "--precision", stored_as)
    index = faiss.read_index(str(workplace.folder / "model" / "index.faiss"))
    assert (index.ntotal, index.d) == (0, 64)
    index.add(VECTORS)
    codes = np.load(compress("codes.npy", precision=precision))
    filled = faiss.read_index(str(compress("out.faiss", precision=precision)))
    similarities, found = index.search(VECTORS[:QUERIES], 10)
    np.testing.assert_allclose(filled.search(VECTORS[:QUERIES], 10)[0], similarities, atol=2e-6)
    stored = faiss.vector_to_array(faiss.downcast_index(filled.index).codes).reshape(ROWS, -1)[:, : codes[0].nbytes]
    offset = 128 if precision in {"int8", "binary"} else 0
    np.testing.assert_array_equal(stored, (codes.view(np.uint8) + offset).astype(np.uint8))
    if precision != "float32":
        added = faiss.vector_to_array(faiss.downcast_index(index.index).codes).reshape(ROWS, -1)[:, : codes.shape[1]]
        assert (added != stored).mean() < 1e-4  # rounding errors
    restored = restore(codes, precision)
    inner_products = OUTPUTS[:QUERIES] @ restored.T
    if precision == "product":  # whose norms differ
        near_cosines = inner_products + 0.25 * (1 - np.square(restored).sum(1))
    elif precision == "residual":  # by distance, with a byte for the norm
        near_cosines = inner_products - 0.25 * np.square(restored).sum(1)
        similarities = np.square(OUTPUTS[:QUERIES]).sum(1, keepdims=True) - similarities
    else:
        near_cosines = inner_products / np.linalg.norm(restored, axis=1).mean()
    for rows in (found, nearest_rows(near_cosines)):  # up to ties
        np.testing.assert_allclose(
            np.take_along_axis(near_cosines, rows, 1), similarities, atol=2e-3 if precision == "residual" else 6e-4
        )
    cosines = OUTPUTS[:QUERIES] @ unit_rows(restored).T
    best, ours, plain = (
        np.take_along_axis(cosines, rows, 1).mean()
        for rows in (nearest(restored, OUTPUTS[:QUERIES]), found, nearest_rows(inner_products))
    )
    assert best - ours < {"product": (best - plain) / 2, "residual": (best - plain) / 2}.get(precision, 1e-4)


def nearest_rows(similarities: np.ndarray) -> np.ndarray:
    return np.argsort(-similarities, 1)[:, :10]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_inverted_file_holds_the_same_codes_in_lists(compress, precision):
    flat = faiss.read_index(str(compress("flat.faiss", precision=precision)))
    index = faiss.read_index(str(compress("lists.faiss", "--ivf", "auto", precision=precision)))
    lists = faiss.extract_index_ivf(index)
    assert lists.nlist == ROWS // 30
    assert lists.nprobe == 69
    similarities, found = flat.search(VECTORS[:QUERIES], 10)
    assert recall(found, index.search(VECTORS[:QUERIES], 10)[1]) > 0.9
    lists.nprobe = lists.nlist
    np.testing.assert_allclose(index.search(VECTORS[:QUERIES], 10)[0], similarities, atol=2e-6)


@pytest.mark.parametrize(("rows", "ivf", "nlist"), [(1000, "auto", 33), (40, "auto", None), (40, "40", 40)])
def test_the_number_of_lists_follows_the_number_of_vectors(compress, workplace, rows, ivf, nlist):
    np.save(workplace.folder / "few.npy", VECTORS[:rows])
    index = faiss.read_index(str(compress("out.faiss", "--ivf", ivf, name="few.npy")))
    assert index.ntotal == rows
    found = faiss.try_extract_index_ivf(index)
    assert (found.nlist if found else None) == nlist


def test_texts_are_searched_by_the_vectors_of_their_encoder(compress, workplace, tiny_encoder):
    from sentence_transformers import SentenceTransformer

    texts = [f"{number} men are playing chess" for number in range(50)]
    write_rows(workplace.folder / "in.txt", texts)
    index = faiss.read_index(str(compress("out.faiss", precision="float32", name="in.txt")))
    queries = SentenceTransformer(str(tiny_encoder), device="cpu").encode(texts, normalize_embeddings=True)
    similarities, found = index.search(queries, 1)
    assert recall(np.arange(50)[:, None], found) > 0.09  # of ten
    np.testing.assert_allclose(similarities, 1, atol=1e-5)


def test_an_index_needs_no_encoder(workplace, models):
    workplace.run("export", "--model", str(models / "foreign"), "--output", "model", "--format", "faiss")
    assert sorted(path.name for path in (workplace.folder / "model").iterdir()) == [
        "compressor.safetensors", "index.faiss"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("export", {"model": "mlp"}, "'.*mlp' has a ReLU, for which FAISS has no transform: compress to .npy"),
        ("compress", {"model": "mlp"}, "or train with architecture linear"),
        ("compress", {"ivf": "many"}, "ivf must be none, auto or a number of lists, not 'many'"),
        ("compress", {"ivf": "0"}, "ivf must be none, auto or a number of lists, not '0'"),
        ("compress", {"ivf": "9002"}, "9002 lists need at least as many vectors, not 9,001: pass auto or none"),
        ("compress", {"ivf": "4", "output": "out.npy"}, "'out.npy' does not end in .faiss"),
        ("export", {"precision": "int8", "format": "onnx"}, "precision is for format faiss"),
        ("export", {"precision": "int4"}, "precision must be one of float32, int8"),
        ("export", {"model": "foreign", "precision": "int8"}, "has no ranges to scale int8 by"),
    ],
)
def test_what_can_not_be_indexed_is_refused_and_nothing_is_left(workplace, models, command, options, message):
    np.save(workplace.folder / "in.npy", VECTORS)
    defaults = {"model": "linear", "output": "out.faiss"} | ({"input": "in.npy"} if command == "compress" else {})
    options = {"format": "faiss"} | defaults | options if command == "export" else defaults | options
    options["model"] = str(models / options["model"])
    done = workplace.command(command, *(word for item in options.items() for word in (f"--{item[0]}", item[1])))
    assert done.returncode == 2
    assert re.search(message, done.stderr.splitlines()[-1])
    assert [path.name for path in workplace.folder.iterdir()] == ["in.npy"]


def test_an_interruption_leaves_no_index(workplace, models):
    np.save(workplace.folder / "in.npy", VECTORS)
    model = str(models / "linear")
    with patch("twinsqueeze.commands.compress.check_interrupted", side_effect=[None, Interrupted(signal.SIGTERM)]):
        done = workplace.command("compress", "--input", "in.npy", "--model", model, "--output", "out.faiss")
    assert done.returncode == 128 + signal.SIGTERM
    assert [path.name for path in workplace.folder.iterdir()] == ["in.npy"]


def test_without_faiss_one_line_names_the_package(workplace, models, monkeypatch):
    monkeypatch.setattr("twinsqueeze.model.faiss_index.importlib.util.find_spec", lambda name: None)
    done = workplace.command("export", "--model", str(models / "linear"), "--output", "model", "--format", "faiss")
    assert (done.returncode, done.stderr) == (2, "twinsqueeze: a FAISS index needs faiss: pip install faiss-cpu\n")
