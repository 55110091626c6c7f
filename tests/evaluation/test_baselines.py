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
from tests.helpers.vectors import unit_rows
from twinsqueeze.evaluation import baselines, faiss_baselines
from twinsqueeze.evaluation.baselines import BaselineTask, cached_baselines, missing_baselines_note
from twinsqueeze.evaluation.dense_baseline import cosent_loss, fit_dense
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.evaluation.faiss_fitting import single_threaded
from twinsqueeze.evaluation.metrics import METRICS, RetrievalScores
from twinsqueeze.reporting.ablation_table import baseline_family
from twinsqueeze.task import SIMILARITY
from twinsqueeze.utils.console import SILENT
from twinsqueeze.utils.disk_cache import DiskCache

DIM = 8


@pytest.fixture(autouse=True)
def faiss_as_the_baselines_run_it():
    with single_threaded(faiss):
        yield


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
    pairs, unit = task.evaluators["dev"].split, unit_rows(stored.astype(np.float64))
    spearman = stats.spearmanr((unit[pairs.first] * unit[pairs.second]).sum(1).round(6), pairs.scores)[0]
    return spearman, recall(nearest(pairs.embeddings), nearest(unit))


def quantize(transform, task):
    """Returns transformed vectors of dev, rounded to int8 with one scale, and their signs of sentence-transformers."""
    dev = task.evaluators["dev"].split.embeddings
    train, dev = (transform(vectors).astype(np.float32) for vectors in (task.train.embeddings, dev))
    bits = np.unpackbits(quantize_embeddings(dev - train.mean(0), "ubinary"), axis=1)
    return np.clip(np.rint(dev * (126.5 / np.abs(train).max())), -128, 127), 2.0 * bits - 1


def test_every_row_has_its_size_its_family_and_all_scores(found):
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


def test_random_projections_match_scikit_learn(found, task):
    projections = [GaussianRandomProjection(DIM, random_state=seed).fit(task.train.embeddings) for seed in range(10)]
    draws = [[expected_scores(v, task)[0] for v in quantize(each.transform, task)] for each in projections]
    for precision, spearmans in zip(("int8", "signs"), np.transpose(draws), strict=True):
        row = found[f"random projection to 8, {precision}"]
        assert row.draws == 10
        assert row.scores["dev"]["spearman"] == pytest.approx(spearmans.mean(), abs=0.005)
        assert row.deviations["dev"]["spearman"] == pytest.approx(spearmans.std(ddof=1), abs=0.005)
    rotated = found["PCA to 8, rotated signs"]
    assert rotated.draws == 3
    assert rotated.deviations["dev"]["spearman"] > 0  # unlike those of the first components alone


def fit(factory: str, train: np.ndarray, tmp_path) -> faiss_baselines.FaissQuantizer:
    baseline = faiss_baselines.FaissBaseline("name", factory, train)
    (quantizer,) = faiss_baselines.fit_quantizers([baseline], DiskCache(tmp_path), SILENT.progress)
    return quantizer


@pytest.mark.parametrize(
    ("factory", "size", "rotations"),
    [
        ("PCAR32,L2norm,SQtqmse1", 4, 3),
        ("PCAR32,L2norm,SQtqmse2", 8, 3),
        ("PCAR32,L2norm,SQtqmse4", 16, 3),
        ("RR64,RaBitQ", 16, 3),
        ("PQ16np", 16, 1),
        ("PCA32,PQ16np", 16, 1),
    ],
)
def test_quantizers_decode_as_faiss_does_and_rotations_keep_products(factory, size, rotations, tmp_path):
    train, other = (random_pairs(pairs=2, sentences=400, dimension=64, seed=seed).embeddings for seed in (1, 2))
    quantizer = fit(factory, train, tmp_path)
    index = faiss.index_factory(64, factory)
    index.train(train)
    expected, storage = other, index
    if isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            expected = faiss.downcast_VectorTransform(index.chain.at(i)).apply(expected)
        storage = faiss.downcast_index(index.index)
    assert quantizer.bytes == storage.sa_code_size() == size
    vectors, codes = [[f(other) for f in fs] for fs in (quantizer.transform_queries, quantizer.decode)]
    np.testing.assert_allclose(vectors[0], expected, atol=1e-6)
    np.testing.assert_allclose(codes[0], storage.sa_decode(storage.sa_encode(expected)), atol=1e-5)
    assert len(vectors) == len(codes) == rotations
    errors = [np.square(code - vector).mean() for code, vector in zip(codes, vectors, strict=True)]
    assert errors == pytest.approx([errors[0]] * rotations, rel=0.25)  # the center of RaBitQ is rotated as well
    for i in range(1, rotations):
        np.testing.assert_allclose(vectors[i] @ vectors[i].T, vectors[0] @ vectors[0].T, atol=1e-4)
        assert np.abs(vectors[i] - vectors[0]).max() > 0.1
        assert np.abs(codes[i] @ vectors[i].T - codes[0] @ vectors[0].T).max() > 0.01


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
    index = faiss.index_factory(64, "PQ16np", faiss.METRIC_INNER_PRODUCT)
    index.train(task.train.embeddings)
    restored = index.sa_decode(index.sa_encode(split.embeddings))
    table = unit_rows(split.embeddings) @ unit_rows(restored).T
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


def test_a_dense_layer_learns_scores(tmp_path, monkeypatch):
    """Scores that depend on the first 16 of 200 dimensions alone, found on other pairs."""
    monkeypatch.setattr(faiss_baselines, "QUANTIZERS", ())
    splits = [random_pairs(pairs=1000, sentences=1000, dimension=200, seed=seed) for seed in (1, 2)]
    units = [unit_rows(split.embeddings[:, :16]) for split in splits]
    cosines = [(unit[split.first] * unit[split.second]).sum(1) for unit, split in zip(units, splits, strict=True)]
    train, dev = (replace(split, scores=2.5 + 2.5 * c) for split, c in zip(splits, cosines, strict=True))
    weight, bias = fit_dense(train)
    assert (weight.shape, bias.shape) == ((128, 200), (128,))
    outputs = torch.from_numpy(dev.embeddings @ weight.T + bias)
    learned = torch.cosine_similarity(outputs[dev.first], outputs[dev.second])
    before = (dev.embeddings[dev.first] * dev.embeddings[dev.second]).sum(1)
    assert stats.spearmanr(learned, dev.scores)[0] > stats.spearmanr(before, dev.scores)[0] + 0.1
    found = []
    for scored in (train, replace(train, scores=train.scores[::-1].copy())):  # the second, of other pairs
        scored_task = BaselineTask(scored, {"dev": Evaluator(dev, "linear", torch.device("cpu"))})
        rows = {row.name: row.scores["dev"] for row in cached_baselines(scored_task, DIM, DiskCache(tmp_path))}
        found.append(rows["CoSENT, OPQ+PQ, 32 bytes"]["spearman"])
    assert found[0] > found[1] + 0.1


def test_unlabeled_sentences_make_rows_of_their_own(task, tmp_path, monkeypatch):
    for module in (faiss_baselines, baselines):
        monkeypatch.setattr(module, "QUANTIZERS", [("OPQ+PQ of PCA 128", "PCA32,OPQ8,PQ8np")])
    others = random_pairs(pairs=2, sentences=300, dimension=64, seed=5).embeddings

    def find_scores(train):
        found = cached_baselines(BaselineTask(train, task.evaluators), DIM, DiskCache(tmp_path))
        return {row.name: row.scores for row in found}

    scores, name = find_scores(replace(task.train, unpaired=others)), "OPQ+PQ of PCA 128, 8 bytes"
    assert scores["OPQ+PQ, unlabeled, 8 bytes"] != scores[name]
    joined = replace(task.train, embeddings=np.concatenate([task.train.embeddings, others]))
    assert find_scores(joined)[name] == scores["OPQ+PQ, unlabeled, 8 bytes"]


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
    broken = Mock(side_effect=AssertionError("computed again"))
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "full_dim_encodings", lambda *_: (broken() for _ in "1"))
        other_dim = cached_baselines(task, 4, cache)
    assert {row.dim for row in other_dim} == {None, 4}
    assert [row for row in other_dim if row.dim is None] == [row for row in found.values() if row.dim is None]
    monkeypatch.setattr(baselines, "score_baselines", broken)
    assert {row.name: row for row in cached_baselines(task, DIM, cache)} == found
    shifted = replace(task.train, embeddings=task.train.embeddings + 1)
    with pytest.raises(AssertionError, match="computed again"):
        cached_baselines(BaselineTask(shifted, task.evaluators), DIM, cache)


def test_scores_by_other_labels_are_cached_as_well(task, cache, found, monkeypatch):
    monkeypatch.setattr(baselines, "score_baselines", Mock(side_effect=AssertionError("computed again")))
    dev = task.evaluators["dev"].split
    tanh = BaselineTask(task.train, {"dev": Evaluator(dev, "tanh", torch.device("cpu"))})
    rows = {row.name: row for row in cached_baselines(tanh, DIM, cache)}
    cosines = 1 - paired_cosine_distances(dev.embeddings[dev.first], dev.embeddings[dev.second])
    for by_name, labels in ((found, dev.scores / 5), (rows, (np.tanh(4 * (dev.scores / 5 - 0.5)) + 1) / 2)):
        expected = mean_squared_error(labels, cosines)
        assert by_name["uncompressed"].scores["dev"]["mse"] == pytest.approx(expected, rel=1e-5)
    assert rows["RaBitQ, 16 bytes"].scores["dev"]["spearman"] == found["RaBitQ, 16 bytes"].scores["dev"]["spearman"]


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
    def fit_all(train):
        fitted = BaselineTask(train, task.evaluators).quantizers
        quantizers = list(faiss_baselines.fit_quantizers(fitted, DiskCache(tmp_path), SILENT.progress))
        return [(each.name, each.bytes) for each in quantizers], missing_baselines_note(quantizers)

    assert missing_baselines_note(list(found.values())) is None
    names, note = fit_all(replace(task.train, embeddings=task.train.embeddings[:255]))
    assert names == [("RaBitQ", 16)]  # which has no centroids
    assert "need 256 distinct train sentences" in note

    # FAISS would abort the process if OPQ were trained on fewer sentences than dimensions.
    names, note = fit_all(random_pairs(pairs=9, sentences=300, dimension=320, seed=1))
    assert [name for name in names if "FAISS" in name[0]] == [("FAISS PQ", size) for size in (16, 32, 64)]
    assert "as many distinct train sentences" in note

    names, note = fit_all(random_pairs(pairs=9, sentences=300, dimension=70, seed=1))
    assert not [name for name in names if "FAISS" in name[0]]
    assert "a multiple of 16" in note

    for module in (faiss_baselines, baselines):
        monkeypatch.setattr(module, "faiss_version", lambda: None)
    rows = cached_baselines(task, DIM, DiskCache(tmp_path))
    assert not [row.name for row in rows if re.search("FAISS|RaBitQ", row.name)]
    assert missing_baselines_note(rows).endswith("pip install faiss-cpu")


@pytest.fixture
def worker_for_few_rows(forked_workers, monkeypatch) -> None:
    monkeypatch.setattr(faiss_baselines, "MIN_ROWS_FOR_WORKER", 1)


@pytest.mark.usefixtures("worker_for_few_rows")
def test_a_worker_fits_the_same_quantizers_until_the_block_ends(task, tmp_path):
    quantizers = task.quantizers[-4:]  # a worker begins with the last, which needs scores
    here, beside = DiskCache(tmp_path / "here"), DiskCache(tmp_path / "beside")
    expected = list(faiss_baselines.fit_quantizers(quantizers, here, SILENT.progress))
    with faiss_baselines.fitted_in_worker(quantizers, beside):
        while not beside.folder.exists():
            time.sleep(0.01)
    assert not multiprocessing.active_children()
    files = [{path.name for path in cache.folder.iterdir()} for cache in (beside, here)]
    assert files[0] <= files[1]
    # What the block's end left over is fitted here. The last bits of FAISS's PCA depend on the process.
    found = faiss_baselines.fit_quantizers(quantizers, beside, SILENT.progress)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.name, ours.bytes) == (theirs.name, theirs.bytes)
        assert mean_distance(ours, task) == pytest.approx(mean_distance(theirs, task), abs=1e-5)


def mean_distance(quantizer: faiss_baselines.FaissQuantizer, task: BaselineTask) -> float:
    vectors = task.train.embeddings
    return paired_cosine_distances(quantizer.transform_queries[0](vectors), quantizer.decode[0](vectors)).mean()


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
