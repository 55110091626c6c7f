"""Baselines against scikit-learn and FAISS themselves, and what of them is kept between runs."""

import subprocess
import sys
from itertools import permutations

import faiss
import numpy as np
import pytest
import torch
from scipy import stats
from sentence_transformers.util.quantization import quantize_embeddings
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.random_projection import GaussianRandomProjection

from tests.helpers.commands import ROOT
from tests.helpers.pairs import random_pairs
from twinsqueeze.evaluation import baselines, faiss_baselines
from twinsqueeze.evaluation.baselines import BaselineTask, cached_baselines, missing_baselines_note
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.evaluation.metrics import METRICS, RetrievalScores
from twinsqueeze.reporting.ablation_table import SCORES, baseline_family
from twinsqueeze.utils.disk_cache import DiskCache

DIM = 8


@pytest.fixture(autouse=True, scope="module")
def single_threaded_faiss():
    """Run FAISS as the baselines do: on one thread, since its threads busy-wait for occupied cores."""
    before = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = 20
    yield
    faiss.omp_set_num_threads(before[0])
    faiss.cvar.distance_compute_blas_threshold = before[1]


@pytest.fixture(scope="module")
def task() -> BaselineTask:
    """Vectors of 64 floats, enough of them for FAISS's 256 centroids."""
    train = random_pairs(pairs=400, sentences=600, dimension=64, seed=1)
    dev = random_pairs(pairs=150, sentences=120, dimension=64, seed=2)
    return BaselineTask(train.embeddings, {"dev": Evaluator(dev, "linear", torch.device("cpu"))})


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> DiskCache:
    return DiskCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def found(task, cache):
    return {row.name: row for row in cached_baselines(task, DIM, cache)}


def expected_scores(stored: np.ndarray, task: BaselineTask) -> tuple[float, float]:
    """Spearman and neighbor recall, computed independently."""
    pairs = task.evaluators["dev"].split
    stored = np.asarray(stored, dtype=np.float64)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    spearman = stats.spearmanr((unit[pairs.first] * unit[pairs.second]).sum(1).round(6), pairs.scores)[0]
    nearest = [
        NearestNeighbors(n_neighbors=10, metric="cosine").fit(v).kneighbors()[1] for v in (pairs.embeddings, unit)
    ]
    return spearman, np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)])


def test_bytes_per_vector(found):
    assert {name: row.bytes for name, row in found.items()} == {
        "uncompressed": 256,
        "first 8": 32,
        "random projection to 8": 32,
        "PCA to 8": 32,
        "PCA to 8, whitened": 32,
        "signs of 64, centered": 8,
        "signs of 64, centered, float queries": 8,
        "first 8, int8": 8,
        "random projection to 8, int8": 8,
        "PCA to 8, int8": 8,
        "first 8, signs": 1,
        "random projection to 8, signs": 1,
        "PCA to 8, signs": 1,
        "uncompressed, int8": 64,
        "FAISS PQ, 16 bytes": 16,
        "FAISS PQ, float queries, 16 bytes": 16,
        "FAISS PQ, 32 bytes": 32,
        "FAISS PQ, float queries, 32 bytes": 32,
        "FAISS PQ, 64 bytes": 64,
        "FAISS PQ, float queries, 64 bytes": 64,
        "FAISS OPQ+PQ, 16 bytes": 16,
        "FAISS OPQ+PQ, float queries, 16 bytes": 16,
        "FAISS OPQ+PQ, 32 bytes": 32,
        "FAISS OPQ+PQ, float queries, 32 bytes": 32,
        "FAISS OPQ+PQ, 64 bytes": 64,
        "FAISS OPQ+PQ, float queries, 64 bytes": 64,
    }
    assert [name for name, row in found.items() if not row.search_only][-1] == "signs of 64, centered"
    assert {baseline_family(row.name, row.dim) for row in found.values()} == {
        "uncompressed",
        "uncompressed, int8",
        "first",
        "first, int8",
        "first, signs",
        "random projection",
        "random projection, int8",
        "random projection, signs",
        "PCA",
        "PCA, int8",
        "PCA, signs",
        "PCA, whitened",
        "signs of 64, centered",
        "signs of 64, centered, float queries",
        "FAISS PQ",
        "FAISS PQ, float queries",
        "FAISS OPQ+PQ",
        "FAISS OPQ+PQ, float queries",
    }


def test_int8_and_signs_match_sentence_transformers(found, task):
    pca = PCA(DIM, svd_solver="full").fit(task.train)
    transforms = {"uncompressed": lambda x: x, "PCA to 8": pca.transform, "first 8": lambda x: x[:, :DIM]}
    for name, transform in transforms.items():
        train, dev = (transform(v).astype(np.float32) for v in (task.train, task.evaluators["dev"].split.embeddings))
        stored = {f"{name}, int8": quantize_embeddings(dev, "int8", ranges=np.stack([train.min(0), train.max(0)]))}
        bits = np.unpackbits(quantize_embeddings(dev - train.mean(0), "ubinary"), axis=1)
        stored["signs of 64, centered" if name == "uncompressed" else f"{name}, signs"] = 2.0 * bits - 1
        for row, vectors in stored.items():
            scores = found[row].scores["dev"]
            spearman, recall = expected_scores(vectors, task)
            assert scores["spearman"] == pytest.approx(spearman, abs=0.01), row
            if not row.endswith("8, signs"):  # signs tie, and the order of ties is arbitrary
                assert scores["neighbor_recall"] == pytest.approx(recall, abs=0.01), row


def test_quantized_random_projections_match_scikit_learn(found, task):
    train, dev = task.train, task.evaluators["dev"].split.embeddings
    spearmans: dict[str, list[float]] = {"int8": [], "signs": []}
    for seed in range(20):
        project = GaussianRandomProjection(DIM, random_state=seed).fit(train).transform
        narrow, queries = (project(v).astype(np.float32) for v in (train, dev))
        stored = quantize_embeddings(queries, "int8", ranges=np.stack([narrow.min(0), narrow.max(0)]))
        bits = np.unpackbits(quantize_embeddings(queries - narrow.mean(0), "ubinary"), axis=1)
        spearmans["int8"].append(expected_scores(stored, task)[0])
        spearmans["signs"].append(expected_scores(2.0 * bits - 1, task)[0])
    for precision, values in spearmans.items():
        row = found[f"random projection to 8, {precision}"]
        assert row.draws == 20
        assert row.scores["dev"]["spearman"] == pytest.approx(np.mean(values), abs=0.005)
        assert row.deviations["dev"]["spearman"] == pytest.approx(np.std(values, ddof=1), abs=0.005)


def test_quantizers_match_faiss(found, task):
    dev = task.evaluators["dev"].split.embeddings
    # np: without polysemous training, which renames the codes and takes a minute
    for kind, factory in (("PQ", "PQ16np"), ("OPQ+PQ", "OPQ16,PQ16np")):
        index = faiss.index_factory(64, factory)
        if kind == "OPQ+PQ":  # fewer iterations, as in the baselines
            rotation = faiss.downcast_VectorTransform(index.chain.at(0))
            rotation.niter, rotation.niter_pq_0 = 20, 10
        index.train(task.train)
        scores = found[f"FAISS {kind}, 16 bytes"].scores["dev"]
        # OPQ starts from a random rotation
        tolerance = 0.002 if kind == "PQ" else 0.05
        expected = expected_scores(index.sa_decode(index.sa_encode(dev)), task)
        assert (scores["spearman"], scores["neighbor_recall"]) == pytest.approx(expected, abs=tolerance)
    recalls = [found[f"FAISS PQ, {size} bytes"].scores["dev"]["neighbor_recall"] for size in faiss_baselines.CODE_SIZES]
    assert recalls == sorted(recalls)


def test_float_queries_match_faiss_search_of_decoded_vectors(found, task):
    """Asymmetric distance computation: cosines of float queries with decoded vectors."""
    split = task.evaluators["dev"].split
    unit = split.embeddings / np.linalg.norm(split.embeddings, axis=1, keepdims=True)
    index = faiss.index_factory(64, "PQ16np", faiss.METRIC_INNER_PRODUCT)
    index.train(task.train)
    restored = index.sa_decode(index.sa_encode(split.embeddings))
    flat = faiss.IndexFlatIP(64)
    flat.add(restored / np.linalg.norm(restored, axis=1, keepdims=True))
    similarity, ids = flat.search(unit, len(unit))
    table = np.empty((len(unit), len(unit)))
    np.put_along_axis(table, ids, similarity, 1)
    spearmans = [stats.spearmanr(table[a, b], split.scores)[0] for a, b in permutations((split.first, split.second))]
    scores = found["FAISS PQ, float queries, 16 bytes"].scores["dev"]
    assert scores["spearman"] == pytest.approx(np.mean(spearmans), abs=0.002)
    np.fill_diagonal(table, -1)
    reference = NearestNeighbors(n_neighbors=10, metric="cosine").fit(split.embeddings).kneighbors()[1]
    pairs = zip(reference, np.argsort(-table, 1)[:, :10], strict=True)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in pairs])
    assert scores["neighbor_recall"] == pytest.approx(recall, abs=0.002)
    assert recall > found["FAISS PQ, 16 bytes"].scores["dev"]["neighbor_recall"]


def test_opq_is_left_out_for_fewer_sentences_than_dimensions(tmp_path):
    """FAISS would abort the process."""
    task = BaselineTask(random_pairs(pairs=9, sentences=300, dimension=320, seed=1).embeddings, {})
    rows = cached_baselines(task, DIM, DiskCache(tmp_path))
    names = [row.name for row in rows if row.name.startswith("FAISS")]
    assert names == [
        f"FAISS PQ{asked}, {size} bytes" for size in faiss_baselines.CODE_SIZES for asked in ("", ", float queries")
    ]
    assert "as many distinct train sentences" in missing_baselines_note(rows)


def test_opq_beats_pq_on_correlated_dimensions(tmp_path):
    """PQ separates correlated dimensions, which OPQ's rotation (Ge et al. 2013) avoids."""
    generator = np.random.default_rng(3)
    hidden = generator.normal(size=(900, 64)) * np.geomspace(1, 0.01, 64)
    vectors = (hidden @ np.linalg.qr(generator.normal(size=(64, 64)))[0]).astype(np.float32)
    train, others = vectors[:600], vectors[600:]
    errors = {
        (name, size): np.square(transform(others) - others).sum()
        for name, size, transform in faiss_baselines.product_quantizers(train, DiskCache(tmp_path), lambda _: None)
    }
    assert errors["FAISS OPQ+PQ", 16] < 0.9 * errors["FAISS PQ", 16]


def test_every_row_has_every_score(found):
    names = {*METRICS, *RetrievalScores._fields}
    assert names == set(SCORES)
    for row in found.values():
        assert set(row.scores["dev"]) == names
    assert set(found["uncompressed"].scores["dev"]) >= names
    assert found["uncompressed"].scores["dev"]["neighbor_recall"] == 1


def test_cached_baselines_are_neither_trained_nor_scored_again(task, cache, found, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("computed again")

    trained = []
    fewer = BaselineTask(task.train, {"test": task.evaluators["dev"]})
    cached_baselines(fewer, DIM, cache, trained.append)
    assert not trained  # quantizers depend on the train sentences alone
    monkeypatch.setattr(baselines, "score_baselines", refuse)
    assert {row.name: row for row in cached_baselines(task, DIM, cache)} == found
    with pytest.raises(AssertionError, match="computed again"):
        cached_baselines(task, DIM + 1, cache)
    others = BaselineTask(task.train + 1, task.evaluators)
    with pytest.raises(AssertionError, match="computed again"):
        cached_baselines(others, DIM, cache)


def test_another_dim_recomputes_only_dimension_reductions(task, cache, found, monkeypatch):
    asked = []

    def full_dim_encodings(*_):
        asked.append("encodings")
        yield from ()

    monkeypatch.setattr(baselines, "full_dim_encodings", full_dim_encodings)
    rows = cached_baselines(task, 4, cache)
    assert not asked
    assert [row for row in rows if row.dim is None] == [row for row in found.values() if row.dim is None]


def test_quantizers_do_not_depend_on_the_thread_count(task, tmp_path):
    payloads = []
    for threads in (1, 2):
        faiss.omp_set_num_threads(threads)
        cache = DiskCache(tmp_path / f"{threads}")
        names = [name for name, *_ in faiss_baselines.product_quantizers(task.train, cache, lambda _: None)]
        assert len(names) == 6
        payloads.append({file.name: file.read_bytes() for file in cache.folder.iterdir()})
        assert faiss.omp_get_max_threads() == threads
    assert payloads[0] == payloads[1]


def test_training_a_quantizer_prints_nothing(task, tmp_path):
    np.save(tmp_path / "train.npy", task.train)
    program = (
        "import sys, numpy as np; from pathlib import Path; from twinsqueeze.utils.disk_cache import DiskCache;"
        "from twinsqueeze.evaluation.faiss_baselines import product_quantizers;"
        "list(product_quantizers(np.load('train.npy'), DiskCache(Path('cache')), lambda name: None))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_missing_quantizers_are_explained(task, tmp_path, monkeypatch, found):
    assert missing_baselines_note(list(found.values())) is None
    few = BaselineTask(task.train[:255], task.evaluators)
    rows = cached_baselines(few, DIM, DiskCache(tmp_path))
    assert "need 256 distinct train sentences" in missing_baselines_note(rows)

    monkeypatch.setattr(faiss_baselines, "faiss_version", lambda: None)
    monkeypatch.setattr(baselines, "faiss_version", lambda: None)
    rows = cached_baselines(task, DIM, DiskCache(tmp_path))
    assert [row.name for row in rows if "FAISS" in row.name] == []
    assert missing_baselines_note(rows).endswith("pip install faiss-cpu")
