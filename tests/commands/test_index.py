"""FAISS indexes that `export` and `compress` write: FAISS alone, given the encoder's vectors, finds what we do."""

import re

import faiss
import numpy as np
import pytest
import torch

from tests.helpers.models import metadata_for, write_model
from tests.helpers.search import nearest, recall
from tests.helpers.vectors import unit_rows, unit_vectors
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.faiss_index import num_lists
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.model.precision import int8_calibration_ranges
from twinsqueeze.model.quantizers import ProductQuantizer, fit_codebooks
from twinsqueeze.types import FloatArray

ROWS, QUERIES, DIM = 9_001, 100, 20  # three blocks; signs do not fill the last byte
# Vectors with neighbors: with random ones, codes find chance.
CENTERS = unit_vectors(300, 64)[np.random.default_rng(1).integers(300, size=ROWS)]
VECTORS = unit_rows(CENTERS + unit_vectors(ROWS, 64, seed=2) / 2)
LAYERS = kaiming_uniform_layers((64, DIM), np.random.default_rng(0))
(WEIGHT, BIAS) = (tensor.numpy() for tensor in LAYERS[0])
OUTPUTS = unit_rows(VECTORS @ WEIGHT.T + BIAS)
LOW, HIGH = np.array(int8_calibration_ranges(OUTPUTS[:5000]), np.float32)
# Fewer centroids than bytes have values.
PRODUCT = ProductQuantizer(fit_codebooks(OUTPUTS[:200], 4, 0)[None])
RESIDUAL = ProductQuantizer(fit_codebooks(OUTPUTS, 10, 0, 3)[None, :, :200].contiguous(), 3)
PRECISIONS = ("float32", "int8", "product", "residual", "binary", "ubinary")


@pytest.fixture(scope="module")
def models(tiny_encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    metadata = metadata_for(tiny_encoder, [LOW.tolist(), HIGH.tolist()], architecture="linear", quantizer="product")
    write_model(folder / "linear", CompressorNetwork(LAYERS, PRODUCT), metadata)
    write_model(folder / "residual", CompressorNetwork(LAYERS, RESIDUAL), metadata)
    write_model(folder / "foreign", CompressorNetwork(LAYERS), None)
    write_model(folder / "mlp", CompressorNetwork(kaiming_uniform_layers((64, 8, 8), np.random.default_rng(0))), None)
    return folder


def restore(codes: np.ndarray, precision: str) -> FloatArray:
    """What codes stand for."""
    if precision == "int8":
        return LOW + (HIGH - LOW) * (codes.astype(np.float32) + 128.5) / 255
    if precision in {"product", "residual"}:
        quantizer = PRODUCT if precision == "product" else RESIDUAL
        return quantizer.decode(torch.from_numpy(codes.astype(np.int64))[None])[0].numpy()
    if precision in {"binary", "ubinary"}:
        bits = np.unpackbits(codes if precision == "ubinary" else codes.view(np.uint8) ^ 0x80, axis=1)[:, :DIM]
        return (2 * bits - 1.0) / np.sqrt(DIM)
    return codes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_indexes_store_our_codes_and_find_the_nearest_by_cosine(workplace, models, precision):
    np.save(workplace.folder / "in.npy", VECTORS)
    name, stored_as = ("residual", "product") if precision == "residual" else ("linear", precision)
    options = ["--model", str(models / name), "--precision", stored_as]

    def compress(output: str, *more: str) -> str:
        workplace.run("compress", "--input", "in.npy", "--output", output, *options, *more)
        return str(workplace.folder / output)

    workplace.run("export", "--output", "model", "--format", "faiss", *options)
    index = faiss.read_index(str(workplace.folder / "model" / "index.faiss"))
    assert (index.ntotal, index.d) == (0, 64)
    index.add(VECTORS)
    codes = np.load(compress("codes.npy"))
    filled = faiss.read_index(compress("out.faiss"))
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
    assert best - ours < ((best - plain) / 2 if precision in {"product", "residual"} else 1e-4)

    inverted = faiss.read_index(compress("lists.faiss", "--ivf", "auto"))
    lists = faiss.extract_index_ivf(inverted)
    assert (lists.nlist, lists.nprobe) == (ROWS // 30, 69)
    similarities, found = filled.search(VECTORS[:QUERIES], 10)
    assert recall(found, inverted.search(VECTORS[:QUERIES], 10)[1]) > 0.9
    lists.nprobe = lists.nlist
    np.testing.assert_allclose(inverted.search(VECTORS[:QUERIES], 10)[0], similarities, atol=2e-6)


def nearest_rows(similarities: np.ndarray) -> np.ndarray:
    return np.argsort(-similarities, 1)[:, :10]


def test_the_number_of_lists_follows_the_number_of_vectors():
    assert [num_lists("auto", count) for count in (40, 1000, 1_000_000)] == [1, 33, 4000]
    assert num_lists("40", 40) == 40


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export --format faiss --model mlp", "mlp' has a ReLU, .* compress to .npy .* or train with architecture"),
        ("export --format faiss --model foreign --precision int8", "has no ranges to scale int8 by"),
        ("export --format onnx --model linear --precision int8", "precision is for format faiss"),
        ("compress --input in.npy --model linear --ivf many", "ivf must be none, auto or a number of lists, not 'ma"),
        ("compress --input in.npy --model linear --ivf 0", "not '0'"),
        ("compress --input in.npy --model linear --ivf 11", "11 lists need at least as many vectors, not 10: pass"),
        ("compress --input in.npy --model linear --ivf 4 --output out.npy", "'out.npy' does not end in .faiss"),
    ],
)
def test_what_can_not_be_indexed_is_refused_and_nothing_is_left(workplace, models, command, message):
    np.save(workplace.folder / "in.npy", VECTORS[:10])
    name, *options = command.replace("--model ", f"--model {models}/").split()
    done = workplace.command(name, "--output", "out.faiss", *options)
    assert done.returncode == 2
    assert re.search(message, done.stderr.splitlines()[-1])
    assert [path.name for path in workplace.folder.iterdir()] == ["in.npy"]


def test_without_faiss_one_line_names_the_package(workplace, models, monkeypatch):
    monkeypatch.setattr("twinsqueeze.model.faiss_index.importlib.util.find_spec", lambda name: None)
    done = workplace.command("export", "--model", str(models / "linear"), "--output", "model", "--format", "faiss")
    assert (done.returncode, done.stderr) == (2, "twinsqueeze: a FAISS index needs faiss: pip install faiss-cpu\n")
