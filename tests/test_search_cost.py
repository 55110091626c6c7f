import faiss
import numpy as np
import pytest
import torch
from sentence_transformers.util.quantization import quantize_embeddings
from sklearn.neighbors import NearestNeighbors

from tests.processes import Workplace, write_pairs
from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import int8_calibration_ranges
from twinsqueeze.model.quantizers import ProductQuantizer, SignQuantizer, fit_codebooks
from twinsqueeze.search_cost import IndexCost, corpus, measure

VECTORS, QUERIES = 1500, 40


@pytest.fixture(scope="module")
def sentences() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def linear(dim: int, quantiser=None) -> CompressorNetwork:
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(dim, 64)).astype(np.float32))
    return CompressorNetwork([(weight, torch.zeros(dim))], quantiser)


def costs_of(compressor: CompressorNetwork, sentences: np.ndarray, ranges=None) -> dict[str, IndexCost]:
    found = measure(sentences, sentences, compressor, ranges, vectors=VECTORS, queries=QUERIES, alone=5, rounds=2)
    assert all(len(cost.alone) == len(cost.together) == 2 and min(cost.alone) > 0 for cost in found)
    return {cost.key: cost for cost in found}


def share_found(wide, asked, narrow, queries, metric) -> float:
    """By scikit-learn: of the ten nearest by cosine among all numbers, what is found in the others."""
    exact = NearestNeighbors(n_neighbors=10, metric="cosine").fit(wide).kneighbors(asked)[1]
    found = NearestNeighbors(n_neighbors=10, metric=metric).fit(narrow).kneighbors(queries)[1]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]))


def test_what_is_found_is_what_scikit_learn_finds(sentences):
    compressor = linear(16)
    ranges = int8_calibration_ranges(compressor.compress(torch.from_numpy(sentences)).numpy())
    costs = costs_of(compressor, sentences, ranges)
    sizes = {"flat_uncompressed": 256, "flat_signs": 8, "flat_pq": 32, "flat_float32": 64, "flat_int8": 16}
    links = {"hnsw_uncompressed": 256 + 256, "hnsw_float32": 64 + 256}
    assert {key: cost.bytes for key, cost in costs.items()} == sizes | {"flat_binary": 2} | links
    wide, asked = corpus(sentences, VECTORS, 0), corpus(sentences, QUERIES, 1)
    narrow, queries = (compressor.compress(torch.from_numpy(v)).numpy() for v in (wide, asked))
    stored = {
        "flat_uncompressed": (wide, asked, "cosine"),
        "flat_float32": (narrow, queries, "cosine"),
        "flat_int8": (
            *(quantize_embeddings(v, "int8", ranges=np.array(ranges, np.float32)) for v in (narrow, queries)),
            "euclidean",
        ),
    }
    for key, (vectors, of_queries, metric) in stored.items():
        expected = share_found(wide, asked, vectors.astype(float), of_queries.astype(float), metric)
        assert costs[key].found == pytest.approx(expected, abs=0.02), key
    assert costs["hnsw_uncompressed"].found > 0.95
    assert costs["flat_binary"].found < costs["flat_int8"].found


def test_indexes_hold_what_a_compressor_was_trained_as(sentences):
    assert "flat_binary" in costs_of(linear(16, SignQuantizer()), sentences)
    assert "flat_float32" not in costs_of(linear(16, SignQuantizer()), sentences)
    begun = linear(16).compress(torch.from_numpy(sentences)).numpy()
    codes = ProductQuantizer(fit_codebooks(begun, 4, 0)[None])
    costs = costs_of(linear(16, codes), sentences)
    assert costs["flat_product"].bytes == 4
    assert {"flat_float32", "flat_binary", "hnsw_float32"}.isdisjoint(costs)
    # Four numbers a byte lose less than eight to a byte do, of the same vectors.
    assert costs["flat_product"].found > costs_of(linear(16, SignQuantizer()), sentences)["flat_binary"].found


def test_threads_and_thresholds_of_faiss_are_left_as_they_were(sentences):
    before = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    costs_of(linear(8), sentences)
    assert (faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold) == before


def test_ratios_are_taken_round_by_round():
    slow = IndexCost("a", "a", 4, 1.0, alone=[0.4, 0.6], together=[0.1, 0.1])
    fast = IndexCost("b", "b", 4, 1.0, alone=[0.1, 0.2], together=[0.2, 0.05])
    assert fast.times_as_fast(slow) == (pytest.approx([4, 3]), pytest.approx([0.5, 2]))
    assert slow.milliseconds() == pytest.approx(500)


@pytest.mark.parametrize("vectors", [-1, 1, 999])
def test_a_search_in_a_few_vectors_is_refused(run_here, vectors):
    code, _, error = run_here("evaluate", "--model", "x", "--search-vectors", str(vectors))
    assert (code, error.count("\n")) == (2, 1)
    assert "at least 1,000" in error


def test_too_few_train_sentences_are_refused(sentences):
    with pytest.raises(InputError, match="256 distinct train sentences, and there are 200"):
        measure(sentences[:200], sentences, linear(8), None, vectors=1000)


def test_evaluate_times_a_search_and_compare_shows_it(workplace: Workplace, run_here, tmp_path):
    folder = write_pairs(tmp_path / "pairs", train=200)
    lines = (folder / "train.csv").read_text().splitlines()  # FAISS wants 256 that differ
    (folder / "train.csv").write_text("\n".join(line.replace("in train", f"in {i}") for i, line in enumerate(lines)))
    assert run_here("main", "--dataset", str(folder), "--epochs", "1", "--dim", "8")[0] == 0
    (trained,) = workplace.runs()
    assert trained.data.metrics["search_cost/bytes_per_vector"] == 32
    code, out, error = run_here("evaluate", "--model", trained.info.run_id, "--search-vectors", "1000")
    assert code == 0, error
    assert "what search costs" in out
    evaluation = workplace.runs()[0]
    metrics = evaluation.data.metrics
    assert evaluation.data.params["search_vectors"] == "1000"
    assert metrics["search_cost/flat_uncompressed_times_as_fast"] == 1
    assert metrics["search_cost/flat_float32_times_as_fast"] > 0
    assert metrics["search_cost/hnsw_float32_ms"] > 0
    assert "What search costs:" in evaluation.data.tags["mlflow.note.content"]

    code, out, _ = run_here("compare", "--output", str(tmp_path / "table"))
    assert code == 0
    assert "times as fast, flat" in out
    table = (tmp_path / "table" / "table.md").read_text()
    line = next(line for line in table.splitlines() if line.startswith("| mlp8, alpha 0.75, float32 "))
    assert f"| {metrics['search_cost/flat_float32_times_as_fast']:.1f} | " in line
    line = next(line for line in table.splitlines() if line.startswith("| uncompressed | 1,536 | ") and "1.0 |" in line)
    assert line.endswith(f"| 1.0 | {metrics['search_cost/hnsw_uncompressed_times_as_fast']:.1f} |")
