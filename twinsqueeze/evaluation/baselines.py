"""What can be had without labels: a compressor that loses to these is of no use.

Whatever a baseline must learn it learns from the distinct sentences of the train split.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.evaluation.faiss_baselines import CENTROIDS, SIZES, faiss_version, product_quantizers
from twinsqueeze.evaluation.metrics import asymmetric_scores, score
from twinsqueeze.evaluation.retrieval import RelevantPairs, relevant_pairs, retrieval_scores
from twinsqueeze.model.precision import dequantize, int8_calibration_ranges
from twinsqueeze.recipe import FLOAT_QUERIES, bytes_per_vector
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.similarity import nearest_neighbors, pair_cosines
from twinsqueeze.utils.threads import BLAS_LOCK

Transform = Callable[[FloatArray], FloatArray]
PROJECTION_DRAWS = 20
# Part of the cache key: raise it when a baseline is computed in another way.
CACHE_VERSION = "5"


@dataclass(frozen=True)
class BaselineScores:
    """A baseline on some splits.

    Attributes:
        name: Such as "PCA to 32".
        dim: Numbers that vectors are reduced to, None where the baseline is the same at every dim.
        bytes: Of a vector.
        search_only: Whether it is of interest only where a search is weighed against its bytes: it holds no floats.
        draws: How many random draws the figures are the mean of; 1 where nothing is random.
        scores: For each split the means of mse, mae, pearson, spearman and what `retrieval.SearchScores` has.
        deviations: Their sample standard deviations over the draws, 0 where nothing is random.
    """

    name: str
    dim: int | None
    bytes: int
    search_only: bool
    draws: int
    scores: dict[str, dict[str, float]]
    deviations: dict[str, dict[str, float]]


class Baseline(NamedTuple):
    """What is to be scored, as in `BaselineScores`, with a transform for each draw.

    `queries` is what those that search are made into, where that is another than what they search among.
    """

    name: str
    dim: int | None
    bytes: int
    search_only: bool
    transforms: Sequence[Transform]
    queries: Transform | None = None


@dataclass(frozen=True)
class BaselineTask:
    """What baselines are fitted and scored on.

    Attributes:
        train: (N, d), the vectors that they are fitted on.
        splits: What they are scored on.
        labels: (P,) labels of each of the splits.
    """

    train: FloatArray
    splits: Mapping[str, EncodedPairs]
    labels: Mapping[str, FloatArray]

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        digest = hashlib.sha256(np.ascontiguousarray(self.train).data)
        for name in sorted(self.splits):
            split = self.splits[name]
            digest.update(name.encode())
            for array in (split.embeddings, split.first, split.second, split.scores, self.labels[name]):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def dimension_reductions(train: FloatArray, dim: int) -> Iterator[Baseline]:
    """What makes `dim` numbers of a vector, fitted on `train`, (N, d): in floats, and some of it in fewer bits."""
    # scikit-learn takes a second to import, which a run that finds its baselines cached need not pay
    from sklearn.decomposition import PCA  # noqa: PLC0415 - as above
    from sklearn.random_projection import GaussianRandomProjection  # noqa: PLC0415 - as above

    single: list[tuple[str, Transform]] = [(f"first {dim}", lambda vectors: vectors[:, :dim])]
    if dim <= len(train):  # PCA finds no more components than there are sentences
        for name, whiten in ((f"PCA to {dim}", False), (f"PCA to {dim}, whitened", True)):
            with BLAS_LOCK:
                pca = PCA(dim, whiten=whiten, svd_solver="covariance_eigh").fit(train)
            single.append((name, pca.transform))
    projections = [GaussianRandomProjection(dim, random_state=i) for i in range(PROJECTION_DRAWS)]
    drawn = [projection.fit(train).transform for projection in projections]
    in_floats = [(name, [transform]) for name, transform in single]
    in_floats.insert(1, (f"random projection to {dim}", drawn))
    for name, transforms in in_floats:
        yield Baseline(name, dim, bytes_per_vector("float32", dim), False, transforms)
    kept = in_floats[:3]  # whitened or not, int8 stretches every number to the same steps, and a sign is a sign
    for name, transforms in kept:
        at_int8 = [_at_int8(transform, train) for transform in transforms]
        yield Baseline(f"{name}, int8", dim, bytes_per_vector("int8", dim), True, at_int8)
    for name, transforms in kept:
        signs = [_signs(transform, train) for transform in transforms]
        yield Baseline(f"{name}, signs", dim, bytes_per_vector("binary", dim), True, signs)


def full_dim_encodings(train: FloatArray, cache: DiskCache, on_training: Callable[[str], None]) -> Iterator[Baseline]:
    """What is the same at every dim: all numbers, in floats and fewer bits, and FAISS's product quantisers."""
    dimension = train.shape[1]
    yield Baseline("uncompressed", None, bytes_per_vector("float32", dimension), False, [_unchanged])
    signs, centre = [_signs(_unchanged, train)], train.mean(0)
    name, size = f"signs of {dimension}, centred", bytes_per_vector("binary", dimension)
    yield Baseline(name, None, size, False, signs)
    yield Baseline(f"{name}, {FLOAT_QUERIES}", None, size, True, signs, lambda vectors: vectors - centre)
    yield Baseline("uncompressed, int8", None, bytes_per_vector("int8", dimension), True, [_at_int8(_unchanged, train)])
    for name, size, transform in product_quantizers(train, cache, on_training):
        yield Baseline(f"{name}, {size} bytes", None, size, True, [transform])
        yield Baseline(f"{name}, {FLOAT_QUERIES}, {size} bytes", None, size, True, [transform], _unchanged)


def _unchanged(vectors: FloatArray) -> FloatArray:
    return vectors


def _at_int8(transform: Transform, train: FloatArray) -> Transform:
    ranges = int8_calibration_ranges(transform(train))
    return lambda vectors: dequantize(transform(vectors), "int8", ranges)


def _signs(transform: Transform, train: FloatArray) -> Transform:
    """Signs about the centre of `train`; of random projections those of Charikar (2002)."""
    centre = transform(train).mean(0)
    return lambda vectors: dequantize(transform(vectors) - centre, "binary")


def missing_baselines_note(baselines: Sequence[BaselineScores]) -> str | None:
    """Why FAISS's rows are not among some baselines, and what brings them."""
    if any(baseline.name.startswith("FAISS OPQ") for baseline in baselines):
        return None
    if any(baseline.name.startswith("FAISS") for baseline in baselines):
        return "FAISS's OPQ is left out: it needs as many distinct train sentences as a vector has numbers"
    if not faiss_version():
        return "FAISS's rows are left out, since FAISS is not installed: pip install faiss-cpu"
    return (
        f"FAISS's rows are left out: its quantisers need {CENTROIDS} distinct train sentences, and vectors that can be "
        f"cut into {', '.join(map(str, SIZES[:-1]))} or {SIZES[-1]} parts"
    )


def score_baselines(
    baselines: Iterable[Baseline], task: BaselineTask, on_scored: Callable[[str], None] = lambda _: None
) -> list[BaselineScores]:
    """The scores of some baselines.

    Args:
        baselines: What to score.
        task: What on.
        on_scored: Told a baseline's name before each of its draws, on each split.
    """
    reference = {name: nearest_neighbors(split.embeddings) for name, split in task.splits.items()}
    wanted = {name: relevant_pairs(split.first, split.second, split.scores) for name, split in task.splits.items()}
    results = []
    for baseline in baselines:
        scores, deviations = {}, {}
        for name, split in task.splits.items():
            draws = []
            for transform in baseline.transforms:
                on_scored(baseline.name)
                measured_with = split, task.labels[name], reference[name], wanted[name]
                draws.append(_score(transform, baseline.queries, *measured_with))
            table = np.array([list(draw.values()) for draw in draws])
            spread = table.std(0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
            scores[name] = dict(zip(draws[0], map(float, table.mean(0)), strict=True))
            deviations[name] = dict(zip(draws[0], map(float, spread), strict=True))
        results.append(BaselineScores(*baseline[:4], len(baseline.transforms), scores, deviations))
    return results


def _score(
    transform: Transform,
    asks: Transform | None,
    split: EncodedPairs,
    labels: FloatArray,
    reference: Any,
    wanted: RelevantPairs,
) -> dict[str, float]:
    vectors = transform(split.embeddings)
    queries = asks(split.embeddings) if asks else None
    if queries is None:
        scores = score(pair_cosines(vectors, split.first, split.second), labels).as_floats()
    else:
        scores = asymmetric_scores(queries, vectors, split.first, split.second, labels)
    return scores | retrieval_scores(vectors, reference, wanted, queries=queries).as_floats()


def cached_baselines(
    task: BaselineTask,
    dim: int,
    cache: DiskCache,
    on_training: Callable[[str], None] = lambda _: None,
    on_scored: Callable[[str], None] = lambda _: None,
) -> list[BaselineScores]:
    """Every baseline at `dim` numbers, computed once for equal vectors, pairs and labels.

    Args:
        task: What they are fitted and scored on.
        dim: Numbers that vectors are reduced to.
        cache: Where scores are kept, and FAISS's quantisers.
        on_training: As for `product_quantizers`.
        on_scored: As for `score_baselines`.
    """
    digest = task.digest

    def kept(made_with: str, baselines: Callable[[], Iterable[Baseline]]) -> list[BaselineScores]:
        made = hashlib.sha256(f"{CACHE_VERSION}\0{made_with}\0{digest}".encode()).hexdigest()
        key = f"baselines-{made}.json"
        if (payload := cache.get(key)) is not None:
            return [BaselineScores(**row) for row in json.loads(payload)]
        results = score_baselines(baselines(), task, on_scored)
        cache.put(key, json.dumps([asdict(row) for row in results]).encode())
        return results

    all_numbers, *others = kept(f"faiss {faiss_version()}", lambda: full_dim_encodings(task.train, cache, on_training))
    reduced = kept(f"scikit-learn {version('scikit-learn')}, {dim}", lambda: dimension_reductions(task.train, dim))
    return sorted([all_numbers, *reduced, *others], key=lambda row: row.search_only)
