"""Baselines that need no labels: a compressor is useful only if it beats them.

Everything that a baseline learns, it learns from the distinct sentences of the train split.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.evaluation.faiss_baselines import CODE_SIZES, NUM_CENTROIDS, faiss_version, product_quantizers
from twinsqueeze.evaluation.metrics import asymmetric_scores, score
from twinsqueeze.evaluation.retrieval import RetrievalTask
from twinsqueeze.model.precision import dequantize, int8_calibration_ranges
from twinsqueeze.recipe import FLOAT_QUERIES, bytes_per_vector
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.similarity import pair_cosines
from twinsqueeze.utils.threads import BLAS_LOCK

Transform = Callable[[FloatArray], FloatArray]
PROJECTION_DRAWS = 20
# Part of every cache key: increase it when a baseline is computed differently.
CACHE_VERSION = "6"


@dataclass(frozen=True)
class BaselineScores:
    """Scores of a baseline on some splits.

    Attributes:
        name: Display name, such as "PCA to 32".
        dim: Output dimension; None for baselines that are the same at every dimension.
        bytes: Bytes per vector.
        search_only: Whether only the search tables list it: its vectors are not stored as floats.
        draws: Number of random draws that scores are averaged over; 1 if nothing is random.
        scores: For each split, means of the fields of `metrics.Scores` and `retrieval.RetrievalScores`.
        deviations: Their sample standard deviations over draws; 0 if nothing is random.
    """

    name: str
    dim: int | None
    bytes: int
    search_only: bool
    draws: int
    scores: dict[str, dict[str, float]]
    deviations: dict[str, dict[str, float]]


class Baseline(NamedTuple):
    """A baseline to score: a transform for each random draw; the other fields are those of `BaselineScores`.

    `query_transform` maps query vectors, if they are not stored vectors.
    """

    name: str
    dim: int | None
    bytes: int
    search_only: bool
    transforms: Sequence[Transform]
    query_transform: Transform | None = None


@dataclass(frozen=True)
class BaselineTask:
    """Data that baselines are fitted and scored on.

    Attributes:
        train: (N, d) vectors to fit on.
        splits: Splits to score on.
        labels: (P,) labels of each split.
    """

    train: FloatArray
    splits: Mapping[str, EncodedPairs]
    labels: Mapping[str, FloatArray]

    @property
    def digest(self) -> str:
        """SHA-256 over all arrays."""
        digest = hashlib.sha256(np.ascontiguousarray(self.train).data)
        for name in sorted(self.splits):
            split = self.splits[name]
            digest.update(name.encode())
            for array in (split.embeddings, split.first, split.second, split.scores, self.labels[name]):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def dimension_reductions(train: FloatArray, dim: int) -> Iterator[Baseline]:
    """Yield reductions to `dim` dimensions, fitted on `train` (N, d), stored as floats, int8 and signs."""
    # scikit-learn takes a second to import, which a run with cached baselines does not need
    from sklearn.decomposition import PCA  # noqa: PLC0415 - as above
    from sklearn.random_projection import GaussianRandomProjection  # noqa: PLC0415 - as above

    projections = [GaussianRandomProjection(dim, random_state=i) for i in range(PROJECTION_DRAWS)]
    reductions: list[tuple[str, list[Transform]]] = [
        (f"first {dim}", [lambda vectors: vectors[:, :dim]]),
        (f"random projection to {dim}", [projection.fit(train).transform for projection in projections]),
    ]
    if dim <= len(train):  # PCA has at most as many components as there are vectors
        for name, whiten in ((f"PCA to {dim}", False), (f"PCA to {dim}, whitened", True)):
            with BLAS_LOCK:
                pca = PCA(dim, whiten=whiten, svd_solver="covariance_eigh").fit(train)
            reductions.append((name, [pca.transform]))
    for name, transforms in reductions:
        yield Baseline(name, dim, bytes_per_vector("float32", dim), False, transforms)
    # Whitening changes nothing at fewer bits: int8 scales every dimension to the same range, and signs have no scale.
    quantized = reductions[:3]
    for name, transforms in quantized:
        as_int8 = [_int8(transform, train) for transform in transforms]
        yield Baseline(f"{name}, int8", dim, bytes_per_vector("int8", dim), True, as_int8)
    for name, transforms in quantized:
        as_signs = [_signs(transform, train) for transform in transforms]
        yield Baseline(f"{name}, signs", dim, bytes_per_vector("binary", dim), True, as_signs)


def full_dim_encodings(train: FloatArray, cache: DiskCache, on_training: Callable[[str], None]) -> Iterator[Baseline]:
    """Yield baselines with all d dimensions: floats, int8, signs and FAISS's product quantizers, fitted on `train`."""
    dimension = train.shape[1]
    yield Baseline("uncompressed", None, bytes_per_vector("float32", dimension), False, [_identity])
    signs, center = [_signs(_identity, train)], train.mean(0)
    name, size = f"signs of {dimension}, centered", bytes_per_vector("binary", dimension)
    yield Baseline(name, None, size, False, signs)
    yield Baseline(f"{name}, {FLOAT_QUERIES}", None, size, True, signs, lambda vectors: vectors - center)
    yield Baseline("uncompressed, int8", None, bytes_per_vector("int8", dimension), True, [_int8(_identity, train)])
    for name, size, reconstruct in product_quantizers(train, cache, on_training):
        yield Baseline(f"{name}, {size} bytes", None, size, True, [reconstruct])
        yield Baseline(f"{name}, {FLOAT_QUERIES}, {size} bytes", None, size, True, [reconstruct], _identity)


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
    """Return why FAISS's rows are missing among baselines and how to get them; None if they are all there."""
    if any(baseline.name.startswith("FAISS OPQ") for baseline in baselines):
        return None
    if any(baseline.name.startswith("FAISS") for baseline in baselines):
        return "FAISS's OPQ is left out: it needs at least as many distinct train sentences as a vector has dimensions"
    if not faiss_version():
        return "FAISS's rows are left out, since FAISS is not installed: pip install faiss-cpu"
    return (
        f"FAISS's rows are left out: they need {NUM_CENTROIDS} distinct train sentences, and a dimension that is a "
        f"multiple of {', '.join(map(str, CODE_SIZES[:-1]))} or {CODE_SIZES[-1]}"
    )


def score_baselines(
    baselines: Iterable[Baseline], task: BaselineTask, on_scored: Callable[[str], None] = lambda _: None
) -> list[BaselineScores]:
    """Score baselines on every split of a task.

    Args:
        baselines: Baselines to score.
        task: Splits and labels.
        on_scored: Called with a baseline's name before each draw is scored on a split.
    """
    retrieval = {name: RetrievalTask(split) for name, split in task.splits.items()}
    results = []
    for baseline in baselines:
        scores, deviations = {}, {}
        for name, split in task.splits.items():
            draws = []
            for transform in baseline.transforms:
                on_scored(baseline.name)
                stored = transform(split.embeddings)
                queries = baseline.query_transform(split.embeddings) if baseline.query_transform else None
                similarity = _similarity_scores(stored, queries, split, task.labels[name])
                draws.append(similarity | retrieval[name].score(stored, queries))
            table = np.array([list(draw.values()) for draw in draws])
            deviation = table.std(0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
            scores[name] = dict(zip(draws[0], map(float, table.mean(0)), strict=True))
            deviations[name] = dict(zip(draws[0], map(float, deviation), strict=True))
        results.append(BaselineScores(*baseline[:4], len(baseline.transforms), scores, deviations))
    return results


def _similarity_scores(
    stored: FloatArray, queries: FloatArray | None, split: EncodedPairs, labels: FloatArray
) -> dict[str, float]:
    if queries is None:
        return score(pair_cosines(stored, split.first, split.second), labels).as_floats()
    return asymmetric_scores(queries, stored, split.first, split.second, labels)


def cached_baselines(
    task: BaselineTask,
    dim: int,
    cache: DiskCache,
    on_training: Callable[[str], None] = lambda _: None,
    on_scored: Callable[[str], None] = lambda _: None,
) -> list[BaselineScores]:
    """Return the scores of all baselines, computed once for equal vectors, pairs and labels.

    Args:
        task: Data to fit and score on.
        dim: Output dimension of dimension reductions.
        cache: Cache of scores and of FAISS's quantizers, read and written.
        on_training: As for `product_quantizers`.
        on_scored: As for `score_baselines`.
    """
    digest = task.digest

    def load_or_score(settings: str, baselines: Callable[[], Iterable[Baseline]]) -> list[BaselineScores]:
        settings_digest = hashlib.sha256(f"{CACHE_VERSION}\0{settings}\0{digest}".encode()).hexdigest()
        key = f"baselines-{settings_digest}.json"
        if (payload := cache.get(key)) is not None:
            return [BaselineScores(**row) for row in json.loads(payload)]
        results = score_baselines(baselines(), task, on_scored)
        cache.put(key, json.dumps([asdict(row) for row in results]).encode())
        return results

    uncompressed, *full_dim = load_or_score(
        f"faiss {faiss_version()}", lambda: full_dim_encodings(task.train, cache, on_training)
    )
    reduced = load_or_score(
        f"scikit-learn {version('scikit-learn')}, {dim}", lambda: dimension_reductions(task.train, dim)
    )
    return sorted([uncompressed, *reduced, *full_dim], key=lambda row: row.search_only)
