"""Cosine similarity and exact nearest neighbors."""

import numpy as np
import torch

from twinsqueeze.types import FloatArray, IntArray

NUM_NEIGHBORS = 10


def pair_cosines(vectors: FloatArray, first: IntArray, second: IntArray) -> FloatArray:
    """Return cos(vectors[first[i]], vectors[second[i]]) for each i, (P,); 0 where a vector is all zeros."""
    unit = normalize_rows(vectors)
    cosine: FloatArray = np.einsum("pd,pd->p", unit[first], unit[second])
    return cosine


def normalize_rows(vectors: FloatArray) -> FloatArray:
    """Return the rows scaled to unit length; rows of zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = vectors / np.maximum(length, np.finfo(np.float32).tiny)
    return unit


def nearest_neighbors(
    vectors: FloatArray, k: int = NUM_NEIGHBORS, *, queries: FloatArray | None = None, block: int = 1024
) -> IntArray:
    """Return the k nearest other vectors of each vector by cosine.

    Args:
        vectors: (N, d) of any length.
        k: Number of neighbors, at most N - 1.
        queries: (N, d) vectors to search with instead of `vectors`, row by row.
        block: Rows of the N x N similarities in memory at a time.

    Returns:
        (N, k) int64 row numbers, nearest first, without the row itself.
    """
    stored, asked = normalized_tensors(vectors, queries)
    k = min(k, len(stored) - 1)
    found = []
    for start in range(0, len(stored), block):
        similarity = asked[start : start + block] @ stored.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    neighbors: IntArray = torch.cat(found).numpy()
    return neighbors


def normalized_tensors(vectors: FloatArray, queries: FloatArray | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors and queries as float32 tensors of unit rows; without queries, the vectors twice."""
    stored = torch.nn.functional.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=1)
    return stored, stored if queries is None else normalized_tensors(queries, None)[0]


def pairwise_cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosines of corresponding unit vectors: (..., P, d) twice gives (..., P)."""
    return (first * second).sum(-1)
