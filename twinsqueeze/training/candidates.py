"""Candidates of the losses that search: the stored rows among which each query of a batch is to find some."""

import numpy as np
import torch
from torch.nn import functional

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.recipe import Recipe
from twinsqueeze.types import IntArray
from twinsqueeze.utils.similarity import nearest_neighbors

# Of a query's so many nearest rows, `num_neighbors` random ones are candidates.
NEAREST = 20


class CandidateSampler:
    """Samples the candidates of a step: the batch's passages, random stored rows, and neighbors of the queries."""

    def __init__(self, train: EncodedSplit, recipe: Recipe) -> None:
        self._stored = train.stored_rows
        self._num_random: int = min(recipe.num_candidates, len(self._stored))
        self._num_neighbors: int = recipe.num_neighbors
        if recipe.num_neighbors:
            queries, vectors = np.unique(train.examples[0]), train.embeddings
            own_rows = np.where(np.isin(queries, self._stored), np.searchsorted(self._stored, queries), -1)
            found = nearest_neighbors(vectors[self._stored], NEAREST, queries=vectors[queries], own_rows=own_rows)
            self._neighbors = np.empty((len(vectors), found.shape[1]), np.int64)
            self._neighbors[queries] = self._stored[found]

    def num_rows(self, sides: int, batch: int) -> int:
        """Returns the number of rows of a step: queries and candidates."""
        return batch + self._num_passages(sides) * batch + self._num_random + self._num_neighbors * batch

    def sample(self, generator: np.random.Generator, examples: IntArray) -> IntArray:
        """Returns candidate rows (C,) for the examples (k, B) of a batch, their passages first."""
        candidates = [examples[-self._num_passages(len(examples)) :].ravel()]
        if self._num_random:
            candidates.append(self._stored[generator.integers(len(self._stored), size=self._num_random)])
        if self._num_neighbors:
            nearest = self._neighbors[examples[0]]
            columns = generator.integers(nearest.shape[1], size=(len(nearest), self._num_neighbors))
            candidates.append(np.take_along_axis(nearest, columns, 1).ravel())
        return np.concatenate(candidates)

    @staticmethod
    def _num_passages(sides: int) -> int:
        """Returns the passages per example; rows alone are their own candidates."""
        return max(sides - 1, 1)


def candidate_mask(queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Returns which candidates a query has, (S, B, C) bool: distinct rows other than the query's own.

    `queries` (S, B) and `candidates` (S, C) are rows.
    """
    first = first_columns(candidates)
    is_distinct = first == torch.arange(candidates.shape[1], device=first.device)
    return is_distinct[:, None] & (queries[:, :, None] != candidates[:, None])


def first_columns(rows: torch.Tensor) -> torch.Tensor:
    """Returns the first column with an equal row, (S, C), of each of (S, C) rows."""
    order = torch.argsort(rows, dim=1, stable=True)
    ordered = rows.gather(1, order)
    is_start = torch.ones_like(ordered, dtype=torch.bool)
    is_start[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    columns = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    start = torch.where(is_start, columns, 0).cummax(1).values
    return torch.empty_like(rows).scatter_(1, order, order.gather(1, start))


def other_answers(queries: torch.Tensor, targets: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """Returns which candidates answer a query by another example of the batch, (S, B, C) bool.

    `targets` (S, B) are the columns of the passages that answer the `queries`, (S, B) rows.
    """
    same_query = (queries[:, :, None] == queries[:, None]).float()
    is_target = functional.one_hot(targets, num_candidates)
    return (same_query @ is_target.float() > 0) & ~is_target.bool()
