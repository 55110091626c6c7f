import faiss
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import save_file
from sentence_transformers.util.quantization import quantize_embeddings

from benchmarks import search
from benchmarks.search import TimedIndex, build_indexes, faiss_threads, sample_corpus, time_indexes
from tests.helpers.pairs import write_pairs
from tests.helpers.search import nearest, recall
from tests.helpers.vectors import unit_vectors
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import int8_calibration_ranges
from twinsqueeze.model.quantizers import ProductQuantizer, SignQuantizer, fit_codebooks

VECTORS, QUERIES = 1500, 40
SENTENCES = unit_vectors(300, 64)


def linear(dim: int, quantizer=None) -> CompressorNetwork:
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(dim, 64)).astype(np.float32))
    return CompressorNetwork([(weight, torch.zeros(dim))], quantizer)


def timed_by_key(compressor: CompressorNetwork, ranges=None) -> dict[str, TimedIndex]:
    corpus, queries = sample_corpus(SENTENCES, VECTORS, 0), sample_corpus(SENTENCES, QUERIES, 1)
    indexes = time_indexes(build_indexes(SENTENCES, corpus, queries, compressor, ranges), single_queries=5, rounds=2)
    assert all(len(index.single_query) == len(index.batched) == 2 and min(index.single_query) > 0 for index in indexes)
    return {index.key: index for index in indexes}


def test_recall_equals_scikit_learns():
    compressor = linear(16)
    ranges = int8_calibration_ranges(compressor.compress(torch.from_numpy(SENTENCES)).numpy())
    indexes = timed_by_key(compressor, ranges)
    sizes = {"flat_uncompressed": 256, "flat_signs": 8, "flat_pq": 32, "flat_float32": 64, "flat_int8": 16}
    hnsw_sizes = {"hnsw_uncompressed": 256 + 256, "hnsw_float32": 64 + 256}
    assert {key: index.bytes for key, index in indexes.items()} == sizes | {"flat_binary": 2} | hnsw_sizes
    exact = sample_corpus(SENTENCES, VECTORS, 0), sample_corpus(SENTENCES, QUERIES, 1)
    compressed = [compressor.compress(torch.from_numpy(vectors)).numpy() for vectors in exact]
    int8 = [quantize_embeddings(vectors, "int8", ranges=np.array(ranges, np.float32)) for vectors in compressed]
    stored = [("flat_uncompressed", exact, "cosine"), ("flat_float32", compressed, "cosine")]
    for key, (corpus, queries), metric in [*stored, ("flat_int8", int8, "euclidean")]:
        expected = recall(nearest(*exact), nearest(corpus.astype(float), queries.astype(float), metric))
        assert indexes[key].recall == pytest.approx(expected, abs=0.02), key
    assert indexes["hnsw_uncompressed"].recall > 0.95
    assert indexes["flat_binary"].recall < indexes["flat_int8"].recall


def test_indexes_hold_the_codes_that_a_compressor_was_trained_for():
    settings_of_faiss = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    with faiss_threads(1):
        signs = timed_by_key(linear(16, SignQuantizer()))
    assert (faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold) == settings_of_faiss
    assert "flat_binary" in signs
    assert "flat_float32" not in signs
    outputs = linear(16).compress(torch.from_numpy(SENTENCES)).numpy()
    indexes = timed_by_key(linear(16, ProductQuantizer(fit_codebooks(outputs, 4, 0)[None])))
    assert indexes["flat_product"].bytes == 4
    assert {"flat_float32", "flat_binary", "hnsw_float32"}.isdisjoint(indexes)
    # A byte for four dims loses less than a byte for eight dims.
    assert indexes["flat_product"].recall > signs["flat_binary"].recall


def test_speedups_are_computed_round_by_round():
    slow = TimedIndex("a", "a", 4, None, None, single_query=[0.4, 0.6], batched=[0.1, 0.1])
    fast = TimedIndex("b", "b", 4, None, None, single_query=[0.1, 0.2], batched=[0.2, 0.05])
    assert fast.speedups(slow) == (pytest.approx([4, 3]), pytest.approx([0.5, 2]))


@pytest.mark.parametrize("saved", [False, True], ids=["trained here", "saved model"])
def test_the_command_prints_a_row_per_index(saved, tiny_encoder, workplace, monkeypatch, tmp_path):
    monkeypatch.setenv("TWINSQUEEZE_CACHE", str(workplace.cache))
    monkeypatch.setattr(search, "resolve_encoder", lambda _: resolve_encoder(str(tiny_encoder)))
    folder = write_pairs(tmp_path / "pairs", train=200)
    lines = (folder / "train.csv").read_text().splitlines()  # FAISS needs 256 distinct sentences
    (folder / "train.csv").write_text("\n".join(line.replace("in train", f"in {i}") for i, line in enumerate(lines)))
    arguments = f"--dataset {folder} --epochs 1 --dim 8 --vectors 1000 --queries 20 --single-queries 2 --rounds 1"
    if saved:
        arrays = {"0.weight": np.eye(8, 64, dtype=np.float32), "0.bias": np.zeros(8, np.float32)}
        save_file(arrays, tmp_path / "compressor.safetensors")
        arguments += f" --model {tmp_path}"
    result = CliRunner().invoke(search.main, arguments)
    assert result.exit_code == 0, result.output
    rows = {line[:36].strip(): line[36:].split() for line in result.output.splitlines()}
    assert rows["flat, 64 floats"][:2] == ["256", "1.0"]
    assert rows["flat, compressed, 8 floats"][0] == "32"
    assert rows["HNSW, compressed, 8 floats"][0] == "288"
