"""Nearest neighbors as scikit-learn finds them."""

import numpy as np
from sklearn.neighbors import NearestNeighbors


def nearest(vectors: np.ndarray, queries: np.ndarray | None = None, metric: str = "cosine") -> np.ndarray:
    """Returns each query's ten nearest vectors; each vector's ten nearest others if there are no queries."""
    return NearestNeighbors(n_neighbors=10, metric=metric).fit(vectors).kneighbors(queries)[1]


def recall(reference: np.ndarray, found: np.ndarray) -> float:
    """Returns the mean share of ten reference neighbors that are among those found."""
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(reference, found, strict=True)]))
