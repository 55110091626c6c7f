"""Baselines that need no labels: a compressor is useful only if it beats them.

Everything that a baseline learns, it learns from the distinct sentences of the train split.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain, count
from typing import NamedTuple, Protocol

import numpy as np

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.evaluation.faiss_baselines import (
    CODE_SIZES,
    NUM_CENTROIDS,
    OPQ,
    Transform,
    faiss_version,
    product_quantizers,
    scalar_quantizers,
)
from twinsqueeze.model.precision import dequantize, int8_calibration_ranges
from twinsqueeze.recipe import FLOAT_QUERIES, bytes_per_vector
from twinsqueeze.task import SIMILARITY
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.compute import BLAS_LOCK
from twinsqueeze.utils.console import SILENT, OpenProgress
from twinsqueeze.utils.disk_cache import DiskCache

PROJECTION_DRAWS = 20
# Part of every cache key: increase it when a baseline is computed differently.
CACHE_VERSION = "7"


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
    query_transform: Transform | None = None  # of query vectors, if they are not stored vectors


class VectorEvaluator(Protocol):
    """An evaluator of any vectors of a split."""

    split: EncodedSplit
    labels: FloatArray

    def score_vectors(self, stored: FloatArray, queries: FloatArray | None = None) -> dict[str, float]:
        """Return all scores of stored vectors (N, dim), which are also the queries unless others are given."""


@dataclass(frozen=True)
class BaselineTask:
    """Vectors (N, d) that baselines are fitted on, and an evaluator for each split that they are scored on."""

    train: FloatArray
    evaluators: Mapping[str, VectorEvaluator]

    @property
    def has_scores(self) -> bool:
        """Whether the data are scored pairs."""
        return all(evaluator.split.task == SIMILARITY for evaluator in self.evaluators.values())

    @property
    def digest(self) -> str:
        """SHA-256 over all arrays."""
        digest = hashlib.sha256(np.ascontiguousarray(self.train).data)
        for name, evaluator in sorted(self.evaluators.items()):
            split = evaluator.split
            digest.update(name.encode())
            for array in (split.embeddings, split.examples, split.scores, split.stored_rows, evaluator.labels):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def dimension_reductions(train: FloatArray, dim: int) -> Iterator[Baseline]:
    """Yield reductions to `dim` dimensions, fitted on `train` (N, d), stored as floats, int8 and signs."""
    # scikit-learn takes a second to import, which a run with cached baselines does not need
    from sklearn.decomposition import PCA  # noqa: PLC0415 - as above
    from sklearn.random_projection import GaussianRandomProjection  # noqa: PLC0415 - as above

    projections = [GaussianRandomProjection(dim, random_state=i) for i in range(PROJECTION_DRAWS)]
    reductions: dict[str, list[Transform]] = {
        f"first {dim}": [lambda vectors: vectors[:, :dim]],
        f"random projection to {dim}": [projection.fit(train).transform for projection in projections],
    }
    quantized = dict(reductions)
    if dim <= len(train):  # PCA has at most as many components as there are vectors
        with BLAS_LOCK:
            pca, whitened = (PCA(dim, whiten=w, svd_solver="covariance_eigh").fit(train) for w in (False, True))
        reductions |= {f"PCA to {dim}": [pca.transform], f"PCA to {dim}, whitened": [whitened.transform]}
        # Whitening changes nothing at fewer bits: int8 scales every dimension to the same range, and signs no scale.
        quantized[f"PCA to {dim}"] = [pca.transform]
    for name, transforms in reductions.items():
        yield Baseline(name, dim, bytes_per_vector("float32", dim), False, transforms)
    for label, precision, quantize in (("int8", "int8", _int8), ("signs", "binary", _signs)):
        for name, transforms in quantized.items():
            stored = [quantize(transform, train) for transform in transforms]
            yield Baseline(f"{name}, {label}", dim, bytes_per_vector(precision, dim), True, stored)


def full_dim_encodings(task: BaselineTask, cache: DiskCache, progress: OpenProgress) -> Iterator[Baseline]:
    """Yield baselines with all d dimensions: floats, int8, signs and FAISS's product quantizers, fitted on train.

    Codes are scored with stored queries and with float queries, but of data without scores with float queries alone.
    """
    train, dimension = task.train, task.train.shape[1]
    yield Baseline("uncompressed", None, bytes_per_vector("float32", dimension), False, [_identity])
    signs, center = _signs(_identity, train), train.mean(0)
    name, size = f"signs of {dimension}, centered", bytes_per_vector("binary", dimension)
    yield from _with_float_queries(Baseline(name, None, size, False, [signs], lambda vectors: vectors - center), task)
    yield Baseline("uncompressed, int8", None, bytes_per_vector("int8", dimension), True, [_int8(_identity, train)])
    quantizers = ((*each, _identity) for each in product_quantizers(train, cache, progress))
    for name, size, decode, transform_query in chain(quantizers, scalar_quantizers(train)):
        for row in _with_float_queries(Baseline(name, None, size, True, [decode], transform_query), task):
            yield row._replace(name=f"{row.name}, {size} bytes")


def _with_float_queries(encoding: Baseline, task: BaselineTask) -> Iterator[Baseline]:
    """Yield an encoding with stored and with float queries, the latter under a name of its own."""
    if task.has_scores:
        yield encoding._replace(query_transform=None)
        yield encoding._replace(name=f"{encoding.name}, {FLOAT_QUERIES}", search_only=True)
    else:
        yield encoding._replace(search_only=False)


def _identity(vectors: FloatArray) -> FloatArray:
    return vectors


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
    baselines: Iterable[Baseline], evaluators: Mapping[str, VectorEvaluator], on_scored: Callable[[], None]
) -> list[BaselineScores]:
    """Score baselines on every split; `on_scored` is called after each draw on a split."""
    results = []
    for baseline in baselines:
        scores, deviations = {}, {}
        for split, evaluator in evaluators.items():
            vectors = evaluator.split.embeddings
            queries = baseline.query_transform(vectors) if baseline.query_transform else None
            draws = []
            for transform in baseline.transforms:
                draws.append(evaluator.score_vectors(transform(vectors), queries))
                on_scored()
            table = np.array([list(draw.values()) for draw in draws])
            deviation = table.std(0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
            scores[split] = dict(zip(draws[0], table.mean(0).tolist(), strict=True))
            deviations[split] = dict(zip(draws[0], deviation.tolist(), strict=True))
        results.append(BaselineScores(*baseline[:4], len(baseline.transforms), scores, deviations))
    return results


def cached_baselines(
    task: BaselineTask, dim: int, cache: DiskCache, progress: OpenProgress = SILENT.progress
) -> list[BaselineScores]:
    """Return the scores of all baselines, computed once for equal vectors, pairs and labels."""
    digest = task.digest

    def cache_key(settings: str) -> str:
        text = f"{CACHE_VERSION}\0{settings}\0{digest}"
        return f"baselines-{hashlib.sha256(text.encode()).hexdigest()}.json"

    # Both are generators, which fit nothing if the cache has their scores.
    groups = {
        cache_key(f"faiss {faiss_version()}"): full_dim_encodings(task, cache, progress),
        cache_key(f"scikit-learn {version('scikit-learn')}, {dim}"): dimension_reductions(task.train, dim),
    }
    rows: dict[str, list[BaselineScores]] = {}
    missing: dict[str, list[Baseline]] = {}
    for key, group in groups.items():
        if (payload := cache.get(key)) is not None:
            rows[key] = [BaselineScores(**row) for row in json.loads(payload)]
        else:
            missing[key] = list(group)
    steps, num_draws = count(1), sum(len(baseline.transforms) for group in missing.values() for baseline in group)
    with progress("evaluating baselines", "step") as advance:

        def on_scored() -> None:
            advance(next(steps), num_draws * len(task.evaluators), {})

        for key, unscored in missing.items():
            rows[key] = score_baselines(unscored, task.evaluators, on_scored)
            cache.put(key, json.dumps([asdict(row) for row in rows[key]]).encode())
    (uncompressed, *encoded), reduced = (rows[key] for key in groups)
    return sorted([uncompressed, *reduced, *encoded], key=lambda row: row.search_only)
