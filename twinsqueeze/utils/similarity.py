"""Cosine similarity and exact nearest neighbors."""

import numpy as np
import torch

from twinsqueeze.types import FloatArray, IntArray

NUM_NEIGHBORS = 10


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
    vectors: FloatArray, k: int = NUM_NEIGHBORS, *, queries: FloatArray | None = None, block: int = 1024
) -> IntArray:
    """Return the rows (N, k) of the nearest of (N, d) vectors by cosine, nearest first, without the row itself.

    `queries` (N, d) are searched with instead of the vectors. `block` rows of the similarities are in memory at a time.
    """
    stored, asked = normalized_tensors(vectors, queries)
    k = min(k, len(stored) - 1)
    found = []
    for start in range(0, len(stored), block):
        similarity = asked[start : start + block] @ stored.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    return np.asarray(torch.cat(found).numpy())


def normalized_tensors(vectors: FloatArray, queries: FloatArray | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors and queries as float32 tensors of unit rows; without queries, the vectors twice."""
    stored = torch.nn.functional.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=1)
    return stored, stored if queries is None else normalized_tensors(queries, None)[0]


def pairwise_cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosines of corresponding unit vectors: (..., P, d) twice gives (..., P)."""
    return (first * second).sum(-1)
