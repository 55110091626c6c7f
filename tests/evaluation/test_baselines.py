"""Baselines against scikit-learn, sentence-transformers and FAISS, and what is cached between runs."""

import multiprocessing
import re
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from unittest.mock import Mock

import faiss
import numpy as np
import pytest
import torch
from scipy import stats
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sentence_transformers.util.quantization import quantize_embeddings
from sklearn.decomposition import PCA
from sklearn.metrics import mean_squared_error
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.random_projection import GaussianRandomProjection

from tests.helpers.pairs import random_pairs
from tests.helpers.search import nearest, recall
from twinsqueeze.evaluation import baselines, faiss_baselines
from twinsqueeze.evaluation.baselines import BaselineTask, cached_baselines, missing_baselines_note
from twinsqueeze.evaluation.dense_baseline import cosent_loss, fit_dense
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
    return BaselineTask(train, {"dev": Evaluator(dev, "linear", torch.device("cpu"))})


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
    """Returns transformed vectors of dev, rounded to int8 with one scale, and their signs of sentence-transformers."""
    dev = task.evaluators["dev"].split.embeddings
    train, dev = (transform(vectors).astype(np.float32) for vectors in (task.train.embeddings, dev))
    bits = np.unpackbits(quantize_embeddings(dev - train.mean(0), "ubinary"), axis=1)
    return np.clip(np.rint(dev * (126.5 / np.abs(train).max())), -128, 127), 2.0 * bits - 1


def test_bytes_per_vector_and_families(found):
    sizes = {"uncompressed": 256, "centered": 256, "uncompressed, int8": 64, "signs of 64, centered": 8}
    sizes["signs of 64, centered, float queries"] = 8
    expected = {name: (size, name) for name, size in sizes.items()}
    expected["PCA to 8, rotated signs"] = 1, "PCA, rotated signs"
    reductions = {"first 8": "first", "random projection to 8": "random projection", "PCA to 8": "PCA"}
    reductions |= {f"PCA to 8, {label}": f"PCA, {label}" for label in ("whitened", "half-whitened")}
    for name, family in reductions.items():
        expected |= {name: (32, family), f"{name}, int8": (8, f"{family}, int8")}
    expected |= {f"{name}, signs": (1, f"{reductions[name]}, signs") for name in ("first 8", "random projection to 8")}
    quantizers = [(family, size) for family in ("FAISS PQ", "FAISS OPQ+PQ") for size in (16, 32, 64)]
    quantizers += [("RaBitQ", 16), ("CoSENT, OPQ+PQ", 32)]  # 8 bytes of signs and two floats
    for family, size in quantizers:
        for name in (family, f"{family}, float queries"):
            expected[f"{name}, {size} bytes"] = size, name
    assert {name: (row.bytes, baseline_family(name, row.dim)) for name, row in found.items()} == expected
    assert [name for name, row in found.items() if not row.search_only][-1] == "signs of 64, centered"


def test_every_row_has_every_score(found):
    assert {*METRICS, *RetrievalScores._fields} == set(SIMILARITY.scores)
    for row in found.values():
        assert set(row.scores["dev"]) == set(SIMILARITY.scores)
    assert found["uncompressed"].scores["dev"]["neighbor_recall"] == 1


def test_int8_and_signs_match_scikit_learn_and_sentence_transformers(found, task):
    pca = PCA(DIM, svd_solver="full").fit(task.train.embeddings)
    half = pca.explained_variance_**-0.25
    transforms = {
        "uncompressed": (lambda x: x, "signs of 64, centered"),
        "first 8": (lambda x: x[:, :DIM], "first 8, signs"),
        "PCA to 8": (pca.transform, None),
        "PCA to 8, whitened": (PCA(DIM, svd_solver="full", whiten=True).fit(task.train.embeddings).transform, None),
        "PCA to 8, half-whitened": (lambda x: pca.transform(x) * half, None),
    }
    for name, (transform, signs) in transforms.items():
        floats = transform(task.evaluators["dev"].split.embeddings)
        for row, vectors in zip((f"{name}, int8", signs, name), (*quantize(transform, task), floats), strict=True):
            if row:
                scores = found[row].scores["dev"]
                expected = expected_scores(vectors, task)
                assert scores["spearman"] == pytest.approx(expected[0], abs=0.01), row
                if row != "first 8, signs":  # signs tie, and the order of ties is arbitrary
                    assert scores["neighbor_recall"] == pytest.approx(expected[1], abs=0.02), row


def test_int8_keeps_the_scores_of_off_center_floats(task):
    """The range of each dimension would move the origin and scale dimensions differently."""
    shifted = task.train.embeddings @ np.diag(np.geomspace(1, 0.05, 64)).astype(np.float32) + 0.3
    split = replace(task.train, embeddings=shifted / np.linalg.norm(shifted, axis=1, keepdims=True))
    shifted_task = BaselineTask(split, {"dev": Evaluator(split, "linear", torch.device("cpu"))})
    rows = {row.name: row for row in baselines.dimension_reductions(split.embeddings, DIM)}
    rows = [rows["first 8"], rows["first 8, int8"]]
    scored = baselines.score_baselines(rows, shifted_task.evaluators, lambda: None)["linear"]
    floats, int8 = (row.scores["dev"] for row in scored)
    assert int8["neighbor_recall"] > 0.95 * floats["neighbor_recall"]
    assert int8["spearman"] == pytest.approx(floats["spearman"], abs=0.01)


def test_random_projections_match_scikit_learn(found, task):
    projections = [GaussianRandomProjection(DIM, random_state=seed).fit(task.train.embeddings) for seed in range(10)]
    draws = [[expected_scores(v, task)[0] for v in quantize(each.transform, task)] for each in projections]
    for precision, spearmans in zip(("int8", "signs"), np.transpose(draws), strict=True):
        row = found[f"random projection to 8, {precision}"]
        assert row.draws == 10
        assert row.scores["dev"]["spearman"] == pytest.approx(spearmans.mean(), abs=0.005)
        assert row.deviations["dev"]["spearman"] == pytest.approx(spearmans.std(ddof=1), abs=0.005)


def test_signs_of_components_are_rotated(found):
    """The signs of the first components alone would differ between three draws by nothing."""
    row = found["PCA to 8, rotated signs"]
    assert row.draws == 3
    assert row.deviations["dev"]["spearman"] > 0


def fit(factory: str, train: np.ndarray, tmp_path) -> faiss_baselines.FaissQuantizer:
    baseline = faiss_baselines.FaissBaseline("name", factory, train)
    (quantizer,) = faiss_baselines.fit_quantizers([baseline], DiskCache(tmp_path), SILENT.progress)
    return quantizer


@pytest.mark.parametrize(
    ("factory", "size"),
    [
        ("PCAR32,L2norm,SQtqmse1", 4),
        ("PCAR32,L2norm,SQtqmse2", 8),
        ("PCAR32,L2norm,SQtqmse4", 16),
        ("RR64,RaBitQ", 16),
        ("PQ16np", 16),
        ("PCA32,PQ16np", 16),
    ],
)
def test_quantizers_decode_as_faiss_does(factory, size, tmp_path):
    train, other = (random_pairs(pairs=2, sentences=400, dimension=64, seed=seed).embeddings for seed in (1, 2))
    quantizer = fit(factory, train, tmp_path)
    index = faiss.index_factory(64, factory)
    index.train(train)
    vectors, codes = other, index
    if isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            vectors = faiss.downcast_VectorTransform(index.chain.at(i)).apply(vectors)
        codes = faiss.downcast_index(index.index)
    assert quantizer.bytes == codes.sa_code_size() == size
    np.testing.assert_allclose(quantizer.transform_queries[0](other), vectors, atol=1e-6)
    np.testing.assert_allclose(quantizer.decode[0](other), codes.sa_decode(codes.sa_encode(vectors)), atol=1e-5)


@pytest.mark.parametrize("factory", ["PCAR32,L2norm,SQtqmse1", "RR64,RaBitQ"])
def test_every_random_rotation_keeps_the_products_of_vectors(factory, tmp_path):
    train, other = (random_pairs(pairs=2, sentences=400, dimension=64, seed=seed).embeddings for seed in (1, 2))
    quantizer = fit(factory, train, tmp_path)
    vectors, codes = [[f(other) for f in fs] for fs in (quantizer.transform_queries, quantizer.decode)]
    assert len(vectors) == len(codes) == 3
    for i in (1, 2):
        np.testing.assert_allclose(vectors[i] @ vectors[i].T, vectors[0] @ vectors[0].T, atol=1e-4)
        assert np.abs(vectors[i] - vectors[0]).max() > 0.1
        assert np.abs(codes[i] @ vectors[i].T - codes[0] @ vectors[0].T).max() > 0.01
        error = [np.square(codes[draw] - vectors[draw]).mean() for draw in (0, i)]
        assert error[1] == pytest.approx(error[0], rel=0.25)  # its center is rotated as well


@pytest.mark.parametrize("factory", ["OPQ16,PQ16np", "PCA32,OPQ8,PQ8np", "PCA32,OPQ4,PRQ4x2x8"])
def test_quantizers_err_no_more_than_those_of_faiss(factory, tmp_path):
    """The iterations of OPQ and PRQ are fewer than FAISS's, and start from better rotations."""
    generator = np.random.default_rng(3)
    hidden = generator.normal(size=(900, 64)) * np.geomspace(1, 0.01, 64)
    vectors = (hidden @ np.linalg.qr(generator.normal(size=(64, 64)))[0]).astype(np.float32)
    train, others = vectors[:600], vectors[600:]
    quantizer = fit(factory, train, tmp_path)
    index = faiss.index_factory(64, factory)
    index.train(train)
    theirs = np.square(index.sa_decode(index.sa_encode(others)) - others).sum()
    decoded, kept = quantizer.decode[0](others), quantizer.transform_queries[0](others)
    lost = np.square(others - others.mean(0)).sum() - np.square(kept - kept.mean(0)).sum()  # by the PCA
    assert np.square(decoded - kept).sum() + max(lost, 0) < 1.03 * theirs


def test_float_queries_are_compared_with_vectors_that_faiss_decodes(found, task):
    """Asymmetric distance computation (Jégou et al. 2011)."""
    split = task.evaluators["dev"].split
    unit = split.embeddings / np.linalg.norm(split.embeddings, axis=1, keepdims=True)
    index = faiss.index_factory(64, "PQ16np", faiss.METRIC_INNER_PRODUCT)
    index.train(task.train.embeddings)
    restored = index.sa_decode(index.sa_encode(split.embeddings))
    table = unit @ (restored / np.linalg.norm(restored, axis=1, keepdims=True)).T
    spearmans = [stats.spearmanr(table[a, b], split.scores)[0] for a, b in permutations((split.first, split.second))]
    scores = found["FAISS PQ, float queries, 16 bytes"].scores["dev"]
    assert scores["spearman"] == pytest.approx(np.mean(spearmans), abs=0.002)
    np.fill_diagonal(table, -1)
    expected = recall(nearest(split.embeddings), np.argsort(-table, 1)[:, :10])
    assert scores["neighbor_recall"] == pytest.approx(expected, abs=0.002)
    assert expected > found["FAISS PQ, 16 bytes"].scores["dev"]["neighbor_recall"]


def test_cosent_loss_is_that_of_sentence_transformers():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 30, 8, generator=generator)
    scores = torch.randint(6, (30,), generator=generator) / 5
    expected = CoSENTLoss(Mock()).compute_loss_from_embeddings(list(vectors), scores)
    torch.testing.assert_close(cosent_loss(torch.cosine_similarity(*vectors), scores), expected)


def test_a_dense_layer_learns_scores(tmp_path):
    """Scores that depend on the first 16 of 200 dimensions alone, found on other pairs."""
    splits = [random_pairs(pairs=1500, sentences=1500, dimension=200, seed=seed) for seed in (1, 2)]
    unit = [s.embeddings[:, :16] / np.linalg.norm(s.embeddings[:, :16], axis=1, keepdims=True) for s in splits]
    cosines = [(u[s.first] * u[s.second]).sum(1) for u, s in zip(unit, splits, strict=True)]
    train, dev = (replace(split, scores=2.5 + 2.5 * c) for split, c in zip(splits, cosines, strict=True))
    weight, bias = fit_dense(train)
    assert (weight.shape, bias.shape) == ((128, 200), (128,))
    outputs = dev.embeddings @ weight.T + bias
    learned = torch.cosine_similarity(torch.from_numpy(outputs[dev.first]), torch.from_numpy(outputs[dev.second]))
    before = (dev.embeddings[dev.first] * dev.embeddings[dev.second]).sum(1)
    assert stats.spearmanr(learned, dev.scores)[0] > stats.spearmanr(before, dev.scores)[0] + 0.1
    found = []
    for scored in (train, replace(train, scores=train.scores[::-1].copy())):
        scored_task = BaselineTask(scored, {"dev": Evaluator(dev, "linear", torch.device("cpu"))})
        rows = {
            row.name: row.scores["dev"]["spearman"] for row in cached_baselines(scored_task, DIM, DiskCache(tmp_path))
        }
        found.append(rows["CoSENT, OPQ+PQ, 32 bytes"])
    assert found[0] > found[1] + 0.1  # whose scores belong to other pairs


def test_unlabeled_sentences_make_rows_of_their_own(task, tmp_path, monkeypatch):
    for module in (faiss_baselines, baselines):
        monkeypatch.setattr(module, "QUANTIZERS", [("OPQ+PQ of PCA 128", "PCA32,OPQ8,PQ8np")])
    others = random_pairs(pairs=2, sentences=300, dimension=64, seed=5).embeddings

    def find_rows(train):
        found = cached_baselines(BaselineTask(train, task.evaluators), DIM, DiskCache(tmp_path))
        return {row.name: row for row in found}

    rows = find_rows(replace(task.train, unpaired=others))
    name = "OPQ+PQ, unlabeled, 8 bytes"
    assert rows[name].scores != rows["OPQ+PQ of PCA 128, 8 bytes"].scores
    joined = np.concatenate([task.train.embeddings, others])
    assert find_rows(replace(task.train, embeddings=joined))["OPQ+PQ of PCA 128, 8 bytes"].scores == rows[name].scores


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
    shifted = replace(task.train, embeddings=task.train.embeddings + 1)
    for changed, dim in ((task, DIM + 1), (BaselineTask(shifted, task.evaluators), DIM)):
        with pytest.raises(AssertionError, match="computed again"):
            cached_baselines(changed, dim, cache)


def test_scores_by_other_labels_are_cached_as_well(task, cache, found, monkeypatch):
    monkeypatch.setattr(baselines, "score_baselines", Mock(side_effect=AssertionError("computed again")))
    dev = task.evaluators["dev"].split
    tanh = BaselineTask(task.train, {"dev": Evaluator(dev, "tanh", torch.device("cpu"))})
    rows = {row.name: row for row in cached_baselines(tanh, DIM, cache)}
    labels = (np.tanh(4 * (dev.scores / 5 - 0.5)) + 1) / 2
    cosines = 1 - paired_cosine_distances(dev.embeddings[dev.first], dev.embeddings[dev.second])
    assert rows["uncompressed"].scores["dev"]["mse"] == pytest.approx(mean_squared_error(labels, cosines), rel=1e-5)
    assert rows["RaBitQ, 16 bytes"].scores["dev"]["spearman"] == found["RaBitQ, 16 bytes"].scores["dev"]["spearman"]


def test_another_dim_recomputes_only_dimension_reductions(task, cache, found, monkeypatch):
    monkeypatch.setattr(baselines, "full_dim_encodings", lambda *_: (pytest.fail("computed again") for _ in "1"))
    rows = cached_baselines(task, 4, cache)
    assert [row for row in rows if row.dim is None] == [row for row in found.values() if row.dim is None]


def test_fitting_quantizers_prints_nothing_and_does_not_depend_on_the_thread_count(task, cache, tmp_path, capfd):
    faiss.omp_set_num_threads(2)
    quantizers = [("FAISS PQ", "PQ32np"), ("FAISS OPQ+PQ", "OPQ32,PQ32np")]
    fitted = [faiss_baselines.FaissBaseline(*each, task.train.embeddings) for each in quantizers]
    names = [each.name for each in faiss_baselines.fit_quantizers(fitted, DiskCache(tmp_path), SILENT.progress)]
    assert names == ["FAISS PQ", "FAISS OPQ+PQ"]
    assert faiss.omp_get_max_threads() == 2
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (cache.folder / file.name).read_bytes()  # fitted on one thread
    assert capfd.readouterr() == ("", "")


def test_missing_quantizers_are_explained(task, tmp_path, monkeypatch, found):
    def rows_of_faiss(task):
        rows = cached_baselines(task, DIM, DiskCache(tmp_path))
        return [row.name for row in rows if re.search("FAISS|RaBitQ", row.name)], missing_baselines_note(rows)

    assert missing_baselines_note(list(found.values())) is None
    few = replace(task.train, embeddings=task.train.embeddings[:255])
    names, note = rows_of_faiss(BaselineTask(few, task.evaluators))
    assert names == ["RaBitQ, 16 bytes", "RaBitQ, float queries, 16 bytes"]  # which has no centroids
    assert "need 256 distinct train sentences" in note

    # FAISS would abort the process if OPQ were trained on fewer sentences than dimensions.
    wide = random_pairs(pairs=9, sentences=300, dimension=320, seed=1)
    names, note = rows_of_faiss(BaselineTask(wide, {"dev": Evaluator(wide, "linear", torch.device("cpu"))}))
    quantizers = [("RaBitQ", 48), *(("FAISS PQ", size) for size in (16, 32, 64))]
    assert names == [f"{name}{query}, {size} bytes" for name, size in quantizers for query in ("", ", float queries")]
    assert "as many distinct train sentences" in note

    for module in (faiss_baselines, baselines):
        monkeypatch.setattr(module, "faiss_version", lambda: None)
    names, note = rows_of_faiss(task)
    assert names == []
    assert note.endswith("pip install faiss-cpu")


@pytest.fixture
def worker_for_few_rows(monkeypatch):
    monkeypatch.setattr(faiss_baselines, "MIN_ROWS_FOR_WORKER", 1)


@pytest.mark.usefixtures("worker_for_few_rows")
def test_a_worker_fits_the_same_quantizers_until_the_block_ends(task, tmp_path):
    caches = here, beside = DiskCache(tmp_path / "here"), DiskCache(tmp_path / "beside")
    expected = list(faiss_baselines.fit_quantizers(task.quantizers, here, SILENT.progress))
    with faiss_baselines.fitted_in_worker(task.quantizers, beside):
        while not beside.folder.exists():
            time.sleep(0.01)
    assert not multiprocessing.active_children()
    files = [{path.name for path in cache.folder.iterdir()} for cache in caches]
    assert files[1] <= files[0]
    # What the block's end left over is fitted here. The last bits of FAISS's PCA depend on the process.
    found = list(faiss_baselines.fit_quantizers(task.quantizers, beside, SILENT.progress))
    quality = [mean_cosines(quantizers, task.train.embeddings) for quantizers in (expected, found)]
    assert quality[1] == pytest.approx(quality[0], abs=1e-5)


def mean_cosines(quantizers, vectors) -> dict[tuple[str, int], float]:
    """Returns the mean cosine of vectors with their decodings."""
    return {
        (each.name, each.bytes): 1
        - paired_cosine_distances(each.transform_queries[0](vectors), each.decode[0](vectors)).mean()
        for each in quantizers
    }


@pytest.mark.usefixtures("worker_for_few_rows")
def test_a_killed_worker_and_an_error_leave_the_quantizers_to_this_process(task, tmp_path):
    fitted, cache = [faiss_baselines.FaissBaseline("FAISS PQ", "PQ16np", task.train.embeddings)], DiskCache(tmp_path)
    with faiss_baselines.fitted_in_worker(fitted, cache):
        for child in multiprocessing.active_children():
            child.kill()
    with pytest.raises(ZeroDivisionError), faiss_baselines.fitted_in_worker(fitted, cache):
        _ = 1 / 0
    assert not multiprocessing.active_children()
    assert len(list(faiss_baselines.fit_quantizers(fitted, cache, SILENT.progress))) == 1


def test_few_vectors_are_fitted_without_a_worker(task, tmp_path, monkeypatch):
    monkeypatch.setattr(faiss_baselines, "WorkerPool", lambda *_: pytest.fail("a worker was started"))
    with faiss_baselines.fitted_in_worker(task.quantizers, DiskCache(tmp_path)):
        pass
