"""What can be had without labels: a compressor that loses to these is of no use.

Whatever a baseline must learn it learns from the distinct sentences of the train split.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from twinsqueeze.cache import Cache
from twinsqueeze.embeddings import EncodedPairs
from twinsqueeze.metrics import cosines, nearest, neighbours_kept, score

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
Transform = Callable[[FloatArray], FloatArray]

PROJECTION_DRAWS = 20
FLOAT_BYTES = 4
# Part of the cache key: raise it when a baseline is computed in another way.
CACHE_VERSION = "2"


@dataclass(frozen=True)
class BaselineScores:
    """A baseline on some splits.

    Attributes:
        name: Such as "PCA to 32".
        dim: Numbers that vectors are reduced to, None where the baseline is the same at every dim.
        bytes: Of a vector.
        draws: How many random draws the figures are the mean of; 1 where nothing is random.
        scores: For each split the means of mse, mae, pearson, spearman and neighbours_kept.
        deviations: Their sample standard deviations over the draws, 0 where nothing is random.
    """

    name: str
    dim: int | None
    bytes: int
    draws: int
    scores: dict[str, dict[str, float]]
    deviations: dict[str, dict[str, float]]


def baselines(train: FloatArray, dim: int) -> Iterator[tuple[str, int | None, int, list[Transform]]]:
    """The baselines at `dim` numbers, fitted on `train`, (N, d): name, dim, bytes a vector, and a transform a draw."""
    # scikit-learn takes a second to import, which a run that finds its baselines cached need not pay
    from sklearn.decomposition import PCA  # noqa: PLC0415
    from sklearn.random_projection import GaussianRandomProjection  # noqa: PLC0415

    dimension = train.shape[1]
    yield "uncompressed", None, dimension * FLOAT_BYTES, [lambda vectors: vectors]
    yield f"first {dim}", dim, dim * FLOAT_BYTES, [lambda vectors: vectors[:, :dim]]
    projections = [GaussianRandomProjection(dim, random_state=i) for i in range(PROJECTION_DRAWS)]
    yield (
        f"random projection to {dim}",
        dim,
        dim * FLOAT_BYTES,
        [projection.fit(train).transform for projection in projections],
    )
    if dim <= len(train):  # PCA finds no more components than there are sentences
        for name, whiten in ((f"PCA to {dim}", False), (f"PCA to {dim}, whitened", True)):
            pca = PCA(dim, whiten=whiten, svd_solver="covariance_eigh").fit(train)
            yield name, dim, dim * FLOAT_BYTES, [pca.transform]
    centre = train.mean(0)
    yield (
        f"signs of {dimension}, centred",
        None,
        (dimension + 7) // 8,
        [lambda vectors: np.where(vectors > centre, np.float32(1), np.float32(-1))],
    )


def score_baselines(
    train: FloatArray,
    splits: Mapping[str, EncodedPairs],
    labels: Mapping[str, FloatArray],
    dim: int,
) -> list[BaselineScores]:
    """Every baseline's scores.

    Args:
        train: (N, d), the vectors that baselines are fitted on.
        splits: What they are scored on.
        labels: (P,) labels of each of the splits.
        dim: Numbers that vectors are reduced to.
    """
    reference = {name: nearest(split.embeddings) for name, split in splits.items()}
    results = []
    for name, own_dim, size, transforms in baselines(train, dim):
        scores, deviations = {}, {}
        for split_name, split in splits.items():
            draws = [_score(t, split, labels[split_name], reference[split_name]) for t in transforms]
            table = np.array([list(draw.values()) for draw in draws])
            spread = table.std(0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
            scores[split_name] = dict(zip(draws[0], map(float, table.mean(0)), strict=True))
            deviations[split_name] = dict(zip(draws[0], map(float, spread), strict=True))
        results.append(BaselineScores(name, own_dim, size, len(transforms), scores, deviations))
    return results


def _score(transform: Transform, split: EncodedPairs, labels: FloatArray, reference: Any) -> dict[str, float]:
    vectors = transform(split.embeddings)
    scores = score(cosines(vectors, split.first, split.second), labels).as_floats()
    return scores | {"neighbours_kept": neighbours_kept(reference, nearest(vectors))}


def cached_baselines(
    train: FloatArray,
    splits: Mapping[str, EncodedPairs],
    labels: Mapping[str, FloatArray],
    dim: int,
    cache: Cache,
) -> list[BaselineScores]:
    """`score_baselines`, computed once for equal vectors, pairs and labels."""
    made_with = version("scikit-learn")
    digest = hashlib.sha256(f"{CACHE_VERSION}\0{made_with}\0{dim}\0".encode())
    digest.update(np.ascontiguousarray(train).data)
    for name in sorted(splits):
        split = splits[name]
        digest.update(name.encode())
        for array in (split.embeddings, split.first, split.second, labels[name]):
            digest.update(np.ascontiguousarray(array).data)
    key = f"baselines-{digest.hexdigest()}.json"
    if (payload := cache.get(key)) is not None:
        return [BaselineScores(**row) for row in json.loads(payload)]
    results = score_baselines(train, splits, labels, dim)
    cache.put(key, json.dumps([asdict(row) for row in results]).encode())
    return results
