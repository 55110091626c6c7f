"""Baselines: a compressor is useful only if it beats them.

Everything that a baseline learns, it learns from the distinct sentences of the train split. Only the one with CoSENT
uses their scores. Vectors are compared by the cosine of what is decoded.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain, count, groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import ortho_group

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.evaluation.faiss_baselines import (
    CODE_SIZES,
    OPQ,
    QUANTIZERS,
    Transform,
    faiss_version,
    fit_quantizers,
    quantizers_to_fit,
)
from twinsqueeze.evaluation.faiss_fitting import NUM_CENTROIDS, ROTATIONS, FaissBaseline
from twinsqueeze.evaluation.retrieval import RetrievalEvaluator
from twinsqueeze.model.precision import dequantize, int8_calibration_ranges
from twinsqueeze.recipe import FLOAT_QUERIES, bytes_per_vector
from twinsqueeze.task import SIMILARITY
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.compute import BLAS_LOCK, map_threaded
from twinsqueeze.utils.console import SILENT, OpenProgress
from twinsqueeze.utils.disk_cache import DiskCache

SplitEvaluator = Evaluator | RetrievalEvaluator
PROJECTION_DRAWS = 10
# Part of every cache key: increase it when a baseline is computed differently.
CACHE_VERSION = "10"


@dataclass(frozen=True)
class BaselineScores:
    """Scores of a baseline on some splits."""

    name: str  # for display, such as "PCA to 32"
    dim: int | None  # None for baselines that are the same at every dimension
    bytes: int  # per vector
    search_only: bool  # whether only the search tables list it: its vectors are not stored as floats
    draws: int  # random draws that scores are averaged over; 1 if nothing is random
    scores: dict[str, dict[str, float]]  # by split, as from `Evaluator.score_vectors`
    deviations: dict[str, dict[str, float]]  # sample standard deviations over draws; 0 if nothing is random


class Baseline(NamedTuple):
    """A baseline to score; the first four fields are those of `BaselineScores`."""

    name: str
    dim: int | None
    bytes: int
    search_only: bool
    transforms: Sequence[Transform]  # one for each random draw
    query_transforms: Sequence[Transform] = ()  # of query vectors for each draw, if they are not stored vectors


@dataclass(frozen=True)
class BaselineTask:
    """The split that baselines are fitted on, and an evaluator for each split that they are scored on."""

    train: EncodedSplit
    evaluators: Mapping[str, SplitEvaluator]

    @property
    def has_scores(self) -> bool:
        """Whether the data are scored pairs."""
        return all(evaluator.split.task == SIMILARITY for evaluator in self.evaluators.values())

    @property
    def pairs_digest(self) -> str:
        """SHA-256 over the scored pairs of train."""
        digest = hashlib.sha256()
        for array in (self.train.first, self.train.second, self.train.scores):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def quantizers(self) -> list[FaissBaseline]:
        """FAISS's baselines that are fitted on the sentences of train."""
        return quantizers_to_fit(self.train, self.pairs_digest if self.has_scores else None)

    @property
    def unlabeled_quantizers(self) -> list[FaissBaseline]:
        """FAISS's strongest product quantizers, fitted on the unpaired sentences of train as well, if any."""
        if self.train.unpaired is None:
            return []
        factories = [factory for name, factory in QUANTIZERS if name == "OPQ+PQ of PCA 128"]
        return [FaissBaseline("OPQ+PQ, unlabeled", factory, self.train.sentences) for factory in factories]

    @property
    def digest(self) -> str:
        """SHA-256 over all arrays but the unpaired sentences of train."""
        digest = hashlib.sha256(np.ascontiguousarray(self.train.embeddings).data)
        if self.has_scores:
            digest.update(self.pairs_digest.encode())
        for name, evaluator in sorted(self.evaluators.items()):
            split = evaluator.split
            digest.update(name.encode())
            for array in (split.embeddings, split.examples, split.scores, split.stored_rows):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def dimension_reductions(train: FloatArray, dim: int) -> Iterator[Baseline]:
    """Yield reductions to `dim` dimensions, fitted on `train` (N, d), stored as floats, int8 and signs."""
    # scikit-learn takes a second to import, which a run with cached baselines does not need
    from sklearn.random_projection import GaussianRandomProjection  # noqa: PLC0415 - as above

    projections = [GaussianRandomProjection(dim, random_state=i) for i in range(PROJECTION_DRAWS)]
    reductions: dict[str, list[Transform]] = {
        f"first {dim}": [lambda vectors: vectors[:, :dim]],
        f"random projection to {dim}": [projection.fit(train).transform for projection in projections],
    }
    signs = dict(reductions)
    if dim <= len(train):  # PCA has at most as many components as there are vectors
        pca = _principal_components(train, dim)
        reductions |= {f"PCA to {dim}{label}": [transform] for label, transform in pca.items()}
        # Without a rotation, the signs of the first components would hold most of the variance.
        rotations = (ortho_group.rvs(dim, random_state=i).astype(np.float32) for i in range(ROTATIONS))
        signs[f"PCA to {dim}, rotated"] = [partial(_rotate, pca[""], rotation) for rotation in rotations]
    for name, transforms in reductions.items():
        yield Baseline(name, dim, bytes_per_vector("float32", dim), False, transforms)
    stored_forms = ("int8", "int8", _int8, reductions), ("signs", "binary", _signs, signs)
    for label, precision, quantize, reduced in stored_forms:
        for name, transforms in reduced.items():
            stored = [quantize(transform, train) for transform in transforms]
            separator = " " if name.endswith("rotated") else ", "
            yield Baseline(f"{name}{separator}{label}", dim, bytes_per_vector(precision, dim), True, stored)


def _principal_components(train: FloatArray, dim: int) -> dict[str, Transform]:
    """PCA, and PCA with components scaled to unit variance, or half-way: to the root of their deviation."""
    from sklearn.decomposition import PCA  # noqa: PLC0415 - as in `dimension_reductions`

    with BLAS_LOCK:
        pca = PCA(dim, svd_solver="covariance_eigh").fit(train)
    variances = np.maximum(pca.explained_variance_, np.finfo(np.float32).eps)
    return {
        "": pca.transform,
        ", whitened": lambda vectors: pca.transform(vectors) / variances**0.5,
        ", half-whitened": lambda vectors: pca.transform(vectors) / variances**0.25,
    }


def full_dim_encodings(task: BaselineTask, cache: DiskCache, progress: OpenProgress) -> Iterator[Baseline]:
    """Yield baselines that do not depend on a dimension: floats, int8, signs and FAISS's quantizers, fitted on train.

    Codes are scored with stored queries and with float queries, but of data without scores with float queries alone.
    """
    train = task.train.embeddings
    dimension, center = train.shape[1], train.mean(0)
    yield Baseline("uncompressed", None, bytes_per_vector("float32", dimension), False, [_identity])
    yield Baseline("centered", None, bytes_per_vector("float32", dimension), True, [lambda vectors: vectors - center])
    name, size = f"signs of {dimension}, centered", bytes_per_vector("binary", dimension)
    signs = Baseline(name, None, size, False, [_signs(_identity, train)], [lambda vectors: vectors - center])
    yield from _with_float_queries(signs, task)
    yield Baseline("uncompressed, int8", None, bytes_per_vector("int8", dimension), True, [_int8(_identity, train)])
    yield from quantized_encodings(task.quantizers, task, cache, progress)


def quantized_encodings(
    baselines: Sequence[FaissBaseline], task: BaselineTask, cache: DiskCache, progress: OpenProgress
) -> Iterator[Baseline]:
    """Yield FAISS's quantizers, after they are fitted."""
    for name, size, decode, transform_queries in fit_quantizers(baselines, cache, progress):
        for row in _with_float_queries(Baseline(name, None, size, True, decode, transform_queries), task):
            yield row._replace(name=f"{row.name}, {size} bytes")


def _with_float_queries(encoding: Baseline, task: BaselineTask) -> Iterator[Baseline]:
    """Yield an encoding with stored and with float queries, the latter under a name of its own."""
    if task.has_scores:
        yield encoding._replace(query_transforms=())
        yield encoding._replace(name=f"{encoding.name}, {FLOAT_QUERIES}", search_only=True)
    else:
        yield encoding._replace(search_only=False)


def _identity(vectors: FloatArray) -> FloatArray:
    return vectors


def _rotate(transform: Transform, rotation: FloatArray, vectors: FloatArray) -> FloatArray:
    return np.asarray(transform(vectors) @ rotation)


def _int8(transform: Transform, train: FloatArray) -> Transform:
    ranges = int8_calibration_ranges(transform(train))
    return lambda vectors: dequantize(transform(vectors), "int8", ranges)


def _signs(transform: Transform, train: FloatArray) -> Transform:
    """Signs after subtracting the mean of `train`; of random projections, those of Charikar (2002)."""
    center = transform(train).mean(0)
    return lambda vectors: dequantize(transform(vectors) - center, "binary")


def missing_baselines_note(baselines: Sequence[BaselineScores]) -> str | None:
    """Return why rows of FAISS are missing among baselines; None if they are all there."""
    if any(baseline.name.startswith(OPQ) for baseline in baselines):
        return None
    if not faiss_version():
        return "FAISS's rows are left out, since FAISS is not installed: pip install faiss-cpu"
    return (
        f"Rows of FAISS are left out: they need {NUM_CENTROIDS} distinct train sentences, OPQ as many distinct "
        f"train sentences as a vector has dimensions, and both a dimension that is a multiple of {CODE_SIZES[0]}"
    )


def score_baselines(
    baselines: Iterable[Baseline], evaluators: Mapping[str, SplitEvaluator], on_scored: Callable[[], None]
) -> dict[str, list[BaselineScores]]:
    """Score baselines on every split for each label transform, on all cores.

    `on_scored` is called for each draw on a split. Vectors are decoded once for successive baselines that share their
    transforms, with stored and with float queries.
    """

    def score_draw(job: tuple[list[Baseline], str, int]) -> list[dict[str, dict[str, float]]]:
        rows, split, draw = job
        vectors = evaluators[split].split.embeddings
        stored = rows[0].transforms[draw](vectors)
        queries = [row.query_transforms[draw](vectors) if row.query_transforms else None for row in rows]
        return [evaluators[split].score_by_labels(stored, each) for each in queries]

    sharing = [list(rows) for _, rows in groupby(baselines, key=lambda row: id(row.transforms))]
    jobs = ((rows, split, i) for rows in sharing for split in evaluators for i in range(len(rows[0].transforms)))
    draws: dict[tuple[str, str], dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for (rows, split, _), scores in map_threaded(jobs, score_draw, torch.get_num_threads()):
        for row, by_labels in zip(rows, scores, strict=True):
            for labels, of_draw in by_labels.items():
                draws[labels, row.name][split].append(of_draw)
            on_scored()
    results: dict[str, list[BaselineScores]] = defaultdict(list)
    described = {row.name: row for row in chain.from_iterable(sharing)}
    for (labels, name), by_split in draws.items():
        _, dim, size, search_only, transforms, _ = described[name]
        tables = {split: pd.DataFrame(of_split) for split, of_split in by_split.items()}
        means = {split: {**table.mean()} for split, table in tables.items()}
        deviations = {split: {**table.std().fillna(0)} for split, table in tables.items()}
        results[labels].append(BaselineScores(name, dim, size, search_only, len(transforms), means, deviations))
    return results


def cached_baselines(
    task: BaselineTask, dim: int, cache: DiskCache, progress: OpenProgress = SILENT.progress
) -> list[BaselineScores]:
    """Return the scores of all baselines, computed once for equal vectors and pairs."""
    digest = task.digest
    (labels,) = {evaluator.label_transform for evaluator in task.evaluators.values()}

    def cache_key(settings: str) -> str:
        text = f"{CACHE_VERSION}\0{settings}\0{digest}"
        return f"baselines-{hashlib.sha256(text.encode()).hexdigest()}.json"

    # All are generators, which fit nothing if the cache has their scores.
    groups = {
        cache_key(f"faiss {faiss_version()}"): full_dim_encodings(task, cache, progress),
        cache_key(f"scikit-learn {version('scikit-learn')}, {dim}"): dimension_reductions(task.train.embeddings, dim),
    }
    if task.train.unpaired is not None:
        unpaired = hashlib.sha256(np.ascontiguousarray(task.train.unpaired).data).hexdigest()
        encodings = quantized_encodings(task.unlabeled_quantizers, task, cache, progress)
        groups[cache_key(f"faiss {faiss_version()}, {unpaired}")] = encodings
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}  # by key and label transform
    missing: dict[str, list[Baseline]] = {}
    for key, group in groups.items():
        if (payload := cache.get(key)) is not None:
            rows[key] = json.loads(payload)
        else:
            missing[key] = list(group)
    steps, num_draws = count(1), sum(len(baseline.transforms) for group in missing.values() for baseline in group)
    with progress("evaluating baselines", "step") as advance:

        def on_scored() -> None:
            advance(next(steps), num_draws * len(task.evaluators), {})

        for key, unscored in missing.items():
            scored = score_baselines(unscored, task.evaluators, on_scored)
            rows[key] = {transform: [asdict(row) for row in of_labels] for transform, of_labels in scored.items()}
            cache.put(key, json.dumps(rows[key]).encode())
    (uncompressed, *encoded), *others = ([BaselineScores(**row) for row in rows[key].get(labels, [])] for key in groups)
    return sorted([uncompressed, *chain.from_iterable(others), *encoded], key=lambda row: row.search_only)
