"""Cosine similarity and exact nearest neighbors."""

import numpy as np
import torch

from twinsqueeze.types import FloatArray, IntArray

NUM_NEIGHBORS = 10
MAX_SIMILARITIES = 51_200_000  # in memory at a time: 200 MB


def pair_cosines(
    vectors: FloatArray, first: IntArray, second: IntArray, queries: FloatArray | None = None
) -> FloatArray:
    """Return cos(queries[first[i]], vectors[second[i]]) for each i, (P,), by default of vectors; 0 if one is zero."""
    stored = normalize_rows(vectors)
    asked = stored if queries is None else normalize_rows(queries)
    return np.asarray(np.einsum("pd,pd->p", asked[first], stored[second]))


def normalize_rows(vectors: FloatArray) -> FloatArray:
    """Return the rows scaled to unit length; rows of zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, np.finfo(np.float32).tiny))


def nearest_neighbors(
    vectors: FloatArray,
    k: int = NUM_NEIGHBORS,
    *,
    queries: FloatArray | None = None,
    own_rows: IntArray | None = None,
    block: int = 1024,
) -> IntArray:
    """Return the rows (Q, k) of the nearest of (N, d) vectors by cosine for each query, nearest first.

    Args:
        vectors: The vectors that are searched.
        k: Neighbors per query; fewer if there are fewer vectors.
        queries: (Q, d); None for the vectors themselves.
        own_rows: (Q,) row of each query among the vectors, which is left out; -1 for none. None: query i is row i.
        block: Queries whose similarities are in memory at a time; fewer if there are more than 50,000 vectors.
    """
    stored, asked = normalized_tensors(vectors, queries)
    own_rows = np.arange(len(asked)) if own_rows is None else own_rows
    block = max(1, min(block, MAX_SIMILARITIES // len(stored)))
    k = min(k, len(stored) - int((own_rows >= 0).any()))
    found = []
    for start in range(0, len(asked), block):
        similarity = asked[start : start + block] @ stored.T
        exclude_own_rows(similarity, own_rows[start : start + block])
        found.append(similarity.topk(k, dim=1).indices)
    return np.asarray(torch.cat(found).numpy())


def exclude_own_rows(similarity: torch.Tensor, own_rows: IntArray) -> None:
    """Set the (Q, N) similarity of each query with its own row, unless that is -1, to minus infinity."""
    queries = np.flatnonzero(own_rows >= 0)
    similarity[queries, own_rows[queries]] = -torch.inf


def normalized_tensors(vectors: FloatArray, queries: FloatArray | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors and queries as float32 tensors of unit rows; without queries, the vectors twice."""
    stored = torch.nn.functional.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=1)
    return stored, stored if queries is None else normalized_tensors(queries, None)[0]


def pairwise_cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosines of corresponding unit vectors: (..., P, d) twice gives (..., P)."""
    return (first * second).sum(-1)
