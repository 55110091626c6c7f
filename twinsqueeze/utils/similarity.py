"""Cosine similarity and exact nearest neighbors."""

from typing import Any

import numpy as np
import torch

from twinsqueeze.types import FloatArray

NEIGHBOURS = 10


def pair_cosines(vectors: FloatArray, first: Any, second: Any) -> FloatArray:
    """res[i] = cos(vectors[first[i]], vectors[second[i]]); 0 where a vector is all zeros.

    Args:
        vectors: (N, d) of any length.
        first: (P,) row numbers.
        second: (P,) row numbers.
    """
    unit = normalize_rows(vectors)
    cosine: FloatArray = np.einsum("pd,pd->p", unit[first], unit[second])
    return cosine


def normalize_rows(vectors: FloatArray) -> FloatArray:
    """Returns the rows scaled to unit length; rows of zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = vectors / np.maximum(length, np.finfo(np.float32).tiny)
    return unit


def nearest_neighbors(
    vectors: FloatArray, k: int = NEIGHBOURS, *, queries: FloatArray | None = None, block: int = 1024
) -> Any:
    """Each vector's nearest others by cosine.

    Args:
        vectors: (N, d) of any length.
        k: How many, or all the others where there are fewer.
        queries: (N, d) what asks for each vector's nearest, where that is another than the vector itself.
        block: Rows of the N x N similarities that are held at a time, so that memory stays bounded.

    Returns:
        (N, k) int64 row numbers, nearest first, the vector itself left out.
    """
    unit, asked = unit_tensors(vectors, queries)
    k = min(k, len(unit) - 1)
    found = []
    for start in range(0, len(unit), block):
        similarity = asked[start : start + block] @ unit.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found).numpy()


def unit_tensors(vectors: FloatArray, queries: FloatArray | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors scaled to length 1 and what asks for them, float32: the same where there are no queries."""
    unit = torch.nn.functional.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=1)
    return unit, unit if queries is None else unit_tensors(queries, None)[0]


def pairwise_cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """res[…, i] = first[…, i] · second[…, i], the cosine of unit vectors: (…, P, d) twice gives (…, P)."""
    return (first * second).sum(-1)
