"""Baselines against scikit-learn, sentence-transformers and FAISS, and what is cached between runs."""

from collections import defaultdict
from contextlib import contextmanager
from itertools import permutations
from unittest.mock import Mock

import faiss
import numpy as np
import pytest
import torch
from scipy import stats
from sentence_transformers.util.quantization import quantize_embeddings
from sklearn.decomposition import PCA
from sklearn.random_projection import GaussianRandomProjection

from tests.helpers.pairs import random_pairs
from tests.helpers.search import nearest, recall
from twinsqueeze.evaluation import baselines, faiss_baselines
from twinsqueeze.evaluation.baselines import BaselineTask, cached_baselines, missing_baselines_note
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.evaluation.metrics import METRICS, RetrievalScores
from twinsqueeze.reporting.ablation_table import baseline_family
from twinsqueeze.task import SIMILARITY
from twinsqueeze.utils.console import SILENT
from twinsqueeze.utils.disk_cache import DiskCache

DIM = 8


@pytest.fixture(autouse=True)
def single_threaded_faiss(monkeypatch):
    """Run FAISS as the baselines do: on one thread, since its threads busy-wait for occupied cores."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 20)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.fixture(scope="module")
def task() -> BaselineTask:
    """Vectors of 64 floats, enough of them for FAISS's 256 centroids."""
    train = random_pairs(pairs=400, sentences=600, dimension=64, seed=1)
    dev = random_pairs(pairs=150, sentences=120, dimension=64, seed=2)
    return BaselineTask(train.embeddings, {"dev": Evaluator(dev, "linear", torch.device("cpu"))})


@pytest.fixture(scope="module")
def cache(make_once, task) -> DiskCache:
    """A cache with the baselines of the task."""
    return DiskCache(make_once("baselines", lambda folder: cached_baselines(task, DIM, DiskCache(folder))))


@pytest.fixture(scope="module")
def found(task, cache):
    return {row.name: row for row in cached_baselines(task, DIM, cache)}


def expected_scores(stored: np.ndarray, task: BaselineTask) -> tuple[float, float]:
    """Spearman and neighbor recall, computed independently."""
    pairs = task.evaluators["dev"].split
    stored = np.asarray(stored, dtype=np.float64)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    spearman = stats.spearmanr((unit[pairs.first] * unit[pairs.second]).sum(1).round(6), pairs.scores)[0]
    return spearman, recall(nearest(pairs.embeddings), nearest(unit))


def quantize(transform, task):
    """Returns transformed vectors of dev as sentence-transformers stores them, as int8 and signs."""
    train, dev = (transform(v).astype(np.float32) for v in (task.train, task.evaluators["dev"].split.embeddings))
    bits = np.unpackbits(quantize_embeddings(dev - train.mean(0), "ubinary"), axis=1)
    return quantize_embeddings(dev, "int8", ranges=np.stack([train.min(0), train.max(0)])), 2.0 * bits - 1


def test_bytes_per_vector_and_families(found):
    sizes = {"uncompressed": 256, "uncompressed, int8": 64, "signs of 64, centered": 8}
    sizes["signs of 64, centered, float queries"] = 8
    expected = {name: (size, name) for name, size in sizes.items()} | {"PCA to 8, whitened": (32, "PCA, whitened")}
    for name, family in (("first 8", "first"), ("random projection to 8", "random projection"), ("PCA to 8", "PCA")):
        for precision, size in (("", 32), (", int8", 8), (", signs", 1)):
            expected[name + precision] = size, family + precision
    for family in ("FAISS PQ", "FAISS PQ, float queries", "FAISS OPQ+PQ", "FAISS OPQ+PQ, float queries"):
        for size in (16, 32, 64):
            expected[f"{family}, {size} bytes"] = size, family
    assert {name: (row.bytes, baseline_family(name, row.dim)) for name, row in found.items()} == expected
    assert [name for name, row in found.items() if not row.search_only][-1] == "signs of 64, centered"


def test_every_row_has_every_score(found):
    assert {*METRICS, *RetrievalScores._fields} == set(SIMILARITY.scores)
    for row in found.values():
        assert set(row.scores["dev"]) == set(SIMILARITY.scores)
    assert found["uncompressed"].scores["dev"]["neighbor_recall"] == 1


def test_int8_and_signs_match_sentence_transformers(found, task):
    pca = PCA(DIM, svd_solver="full").fit(task.train)
    transforms = {"uncompressed": lambda x: x, "PCA to 8": pca.transform, "first 8": lambda x: x[:, :DIM]}
    for name, transform in transforms.items():
        signs = "signs of 64, centered" if name == "uncompressed" else f"{name}, signs"
        for row, vectors in zip((f"{name}, int8", signs), quantize(transform, task), strict=True):
            scores = found[row].scores["dev"]
            expected = expected_scores(vectors, task)
            assert scores["spearman"] == pytest.approx(expected[0], abs=0.01), row
            if not row.endswith("8, signs"):  # signs tie, and the order of ties is arbitrary
                assert scores["neighbor_recall"] == pytest.approx(expected[1], abs=0.01), row


def test_quantized_random_projections_match_scikit_learn(found, task):
    projections = [GaussianRandomProjection(DIM, random_state=seed).fit(task.train) for seed in range(20)]
    draws = [[expected_scores(v, task)[0] for v in quantize(each.transform, task)] for each in projections]
    for precision, spearmans in zip(("int8", "signs"), np.transpose(draws), strict=True):
        row = found[f"random projection to 8, {precision}"]
        assert row.draws == 20
        assert row.scores["dev"]["spearman"] == pytest.approx(spearmans.mean(), abs=0.005)
        assert row.deviations["dev"]["spearman"] == pytest.approx(spearmans.std(ddof=1), abs=0.005)


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
        tolerance = 0.002 if kind == "PQ" else 0.05  # OPQ starts from a random rotation
        expected = expected_scores(index.sa_decode(index.sa_encode(dev)), task)
        assert (scores["spearman"], scores["neighbor_recall"]) == pytest.approx(expected, abs=tolerance)
    recalls = [found[f"FAISS PQ, {size} bytes"].scores["dev"]["neighbor_recall"] for size in faiss_baselines.CODE_SIZES]
    assert recalls == sorted(recalls)


def test_float_queries_are_compared_with_vectors_that_faiss_decodes(found, task):
    """Asymmetric distance computation (Jégou et al. 2011)."""
    split = task.evaluators["dev"].split
    unit = split.embeddings / np.linalg.norm(split.embeddings, axis=1, keepdims=True)
    index = faiss.index_factory(64, "PQ16np", faiss.METRIC_INNER_PRODUCT)
    index.train(task.train)
    restored = index.sa_decode(index.sa_encode(split.embeddings))
    table = unit @ (restored / np.linalg.norm(restored, axis=1, keepdims=True)).T
    spearmans = [stats.spearmanr(table[a, b], split.scores)[0] for a, b in permutations((split.first, split.second))]
    scores = found["FAISS PQ, float queries, 16 bytes"].scores["dev"]
    assert scores["spearman"] == pytest.approx(np.mean(spearmans), abs=0.002)
    np.fill_diagonal(table, -1)
    expected = recall(nearest(split.embeddings), np.argsort(-table, 1)[:, :10])
    assert scores["neighbor_recall"] == pytest.approx(expected, abs=0.002)
    assert expected > found["FAISS PQ, 16 bytes"].scores["dev"]["neighbor_recall"]


@pytest.mark.parametrize("bits", [1, 2])
def test_rotated_components_are_searched_as_faiss_does(bits, monkeypatch):
    name = {1: "rotated signs", 2: "TurboQuant 2 bits"}[bits]
    monkeypatch.setattr(faiss_baselines, "SCALAR_QUANTIZERS", ((name, 32, bits), (name, 128, bits)))
    train, other = (random_pairs(pairs=2, sentences=200, dimension=64, seed=seed).embeddings for seed in (1, 2))
    ((found, size, decode, transform_query),) = faiss_baselines.scalar_quantizers(train)  # 128 are too many
    assert (found, size) == (name, 4 * bits)
    index = faiss.index_factory(64, f"PCAR32,L2norm,SQtqmse{bits}", faiss.METRIC_INNER_PRODUCT)
    index.train(train)
    index.add(other)
    similarities, rows = index.search(train[:20], 10)
    products = transform_query(train[:20]) @ decode(other).T
    np.testing.assert_allclose(np.take_along_axis(products, rows, 1), similarities, atol=1e-5)


def test_opq_beats_pq_on_correlated_dimensions(tmp_path, monkeypatch):
    """PQ separates correlated dimensions, which OPQ's rotation (Ge et al. 2013) avoids."""
    monkeypatch.setattr(faiss_baselines, "CODE_SIZES", (16,))
    generator = np.random.default_rng(3)
    hidden = generator.normal(size=(900, 64)) * np.geomspace(1, 0.01, 64)
    vectors = (hidden @ np.linalg.qr(generator.normal(size=(64, 64)))[0]).astype(np.float32)
    train, others = vectors[:600], vectors[600:]
    errors = {
        name: np.square(transform(others) - others).sum()
        for name, _, transform in faiss_baselines.product_quantizers(train, DiskCache(tmp_path), SILENT.progress)
    }
    assert errors["FAISS OPQ+PQ"] < 0.9 * errors["FAISS PQ"]


def test_cached_baselines_are_neither_trained_nor_scored_again(task, cache, found, monkeypatch):
    steps = defaultdict(list)

    @contextmanager
    def progress(title, _unit):
        yield lambda done, total, _values: steps[title].append((done, total))

    other_splits = BaselineTask(task.train, {"test": task.evaluators["dev"]})
    cached_baselines(other_splits, DIM, cache, progress)
    assert list(steps) == ["evaluating baselines"]  # quantizers depend on the train sentences alone
    (done,) = steps.values()
    assert done == [(i, len(done)) for i in range(1, len(done) + 1)]
    monkeypatch.setattr(baselines, "score_baselines", Mock(side_effect=AssertionError("computed again")))
    assert {row.name: row for row in cached_baselines(task, DIM, cache)} == found
    for changed, dim in ((task, DIM + 1), (BaselineTask(task.train + 1, task.evaluators), DIM)):
        with pytest.raises(AssertionError, match="computed again"):
            cached_baselines(changed, dim, cache)


def test_another_dim_recomputes_only_dimension_reductions(task, cache, found, monkeypatch):
    monkeypatch.setattr(baselines, "full_dim_encodings", lambda *_: (pytest.fail("computed again") for _ in "1"))
    rows = cached_baselines(task, 4, cache)
    assert [row for row in rows if row.dim is None] == [row for row in found.values() if row.dim is None]


def test_training_quantizers_prints_nothing_and_does_not_depend_on_the_thread_count(
    task, cache, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(faiss_baselines, "CODE_SIZES", (32,))
    faiss.omp_set_num_threads(2)
    quantizers = faiss_baselines.product_quantizers(task.train, DiskCache(tmp_path), SILENT.progress)
    assert [name for name, *_ in quantizers] == ["FAISS PQ", "FAISS OPQ+PQ"]
    assert faiss.omp_get_max_threads() == 2
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (cache.folder / file.name).read_bytes()  # trained on one thread
    assert capfd.readouterr() == ("", "")


def test_missing_quantizers_are_explained(task, tmp_path, monkeypatch, found):
    def rows_of_faiss(task):
        rows = cached_baselines(task, DIM, DiskCache(tmp_path))
        return [row.name for row in rows if "FAISS" in row.name], missing_baselines_note(rows)

    assert missing_baselines_note(list(found.values())) is None
    names, note = rows_of_faiss(BaselineTask(task.train[:255], task.evaluators))
    assert names == []
    assert "need 256 distinct train sentences" in note

    # FAISS would abort the process if OPQ were trained on fewer sentences than dimensions.
    wide = random_pairs(pairs=9, sentences=300, dimension=320, seed=1)
    names, note = rows_of_faiss(BaselineTask(wide.embeddings, {}))
    assert names == [f"FAISS PQ{queries}, {size} bytes" for size in (16, 32, 64) for queries in ("", ", float queries")]
    assert "as many distinct train sentences" in note

    for module in (faiss_baselines, baselines):
        monkeypatch.setattr(module, "faiss_version", lambda: None)
    names, note = rows_of_faiss(task)
    assert names == []
    assert note.endswith("pip install faiss-cpu")
