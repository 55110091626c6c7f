"""Cosine similarity and exact nearest neighbors."""

from collections.abc import Iterator

import numpy as np
import torch

from twinsqueeze.types import FloatArray, IntArray

NUM_NEIGHBORS = 10
# In memory at a time: the similarities of so many queries, and 200 MB.
QUERIES_AT_ONCE, MAX_SIMILARITIES = 1024, 51_200_000


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
) -> IntArray:
    """Return the rows (Q, k) of the nearest of (N, d) vectors by cosine for each query, nearest first.

    Args:
        vectors: The vectors that are searched.
        k: Neighbors per query; fewer if there are fewer vectors.
        queries: (Q, d); None for the vectors themselves.
        own_rows: (Q,) row of each query among the vectors, which is left out; -1 for none. None: query i is row i.
    """
    k = num_found(k, len(vectors), own_rows)
    blocks = similarity_blocks(vectors, queries, own_rows)
    return np.asarray(torch.cat([similarity.topk(k, dim=1).indices for _, similarity in blocks]).numpy())


def num_found(k: int, num_vectors: int, own_rows: IntArray | None) -> int:
    """Return how many neighbors every query has, at most k; `own_rows` are as for `nearest_neighbors`."""
    has_own = own_rows is None or bool((own_rows >= 0).any())
    return min(k, num_vectors - has_own)


def similarity_blocks(
    vectors: FloatArray, queries: FloatArray | None = None, own_rows: IntArray | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the number of a block's first query, and the block's (B, N) cosines, minus infinity with its own row.

    The arguments are those of `nearest_neighbors`.
    """
    stored, asked = normalized_tensors(vectors, queries)
    own_rows = np.arange(len(asked)) if own_rows is None else own_rows
    block = max(1, min(QUERIES_AT_ONCE, MAX_SIMILARITIES // len(stored)))
    for start in range(0, len(asked), block):
        similarity = asked[start : start + block] @ stored.T
        own = own_rows[start : start + block]
        with_own = np.flatnonzero(own >= 0)
        similarity[with_own, own[with_own]] = -torch.inf
        yield start, similarity


def normalized_tensors(vectors: FloatArray, queries: FloatArray | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors and queries as float32 tensors of unit rows; without queries, the vectors twice."""
    stored = torch.nn.functional.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=1)
    return stored, stored if queries is None else normalized_tensors(queries, None)[0]


def pairwise_cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosines of corresponding unit vectors: (..., P, d) twice gives (..., P)."""
    return (first * second).sum(-1)
