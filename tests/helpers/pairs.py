"""Small sets of sentence pairs, as files, as texts and as vectors."""

from pathlib import Path

import numpy as np

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.data.sentence_pairs import ScoredPairs
from twinsqueeze.task import RETRIEVAL

SUBJECTS = ["a cat", "the man", "my sister", "a small dog", "the teacher", "our neighbour", "a tired nurse", "the cook"]
VERBS = ["is eating", "carries", "has lost", "wants to buy", "is painting", "throws away"]
OBJECTS = ["an apple", "a red chair", "the newspaper", "a box of nails", "some bread", "the kitchen table"]


def write_pairs(folder: Path, *, train: int = 60, dev: int = 24, test: int = 24) -> Path:
    """A folder of small splits, scored by how many of three parts agree."""
    folder.mkdir(parents=True)
    number = 0
    for split, count in (("train", train), ("dev", dev), ("test", test)):
        lines = ["sentence1,sentence2,score"]
        for _ in range(count):
            a = (number % 8, number // 8 % 6, number // 3 % 6)
            same = number % 4
            b = tuple(x if i < same else (x + 1 + number % 3) % 6 for i, x in enumerate(a))
            first, second = (f"{SUBJECTS[i]} {VERBS[j]} {OBJECTS[k]} in {split}" for i, j, k in (a, b))
            lines.append(f"{first},{second},{same * 5 / 3:.2f}")
            number += 1
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def random_pairs(pairs: int, sentences: int, dimension: int, seed: int) -> EncodedSplit:
    """Unit vectors around a few directions, paired at random and scored by their cosine, with ties."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(8, dimension))
    vectors = centres[generator.integers(8, size=sentences)] + 0.7 * generator.normal(size=(sentences, dimension))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    first, second = generator.integers(sentences, size=(2, pairs))
    cosine = (vectors[first] * vectors[second]).sum(1)
    scores = np.round(np.clip(5 * cosine + generator.normal(size=pairs) * 0.3, 0, 5), 1).astype(np.float64)
    return EncodedSplit(vectors, first, second, scores)


def random_queries(queries: int, dimension: int, seed: int, *, negatives: bool = False) -> EncodedSplit:
    """Unit vectors of 20 passages and of queries near them, of which the first 10 have a second passage."""
    generator = np.random.default_rng(seed)
    passages = generator.normal(size=(20, dimension))
    answer = generator.integers(20, size=queries)
    vectors = np.concatenate([passages, passages[answer] + 0.8 * generator.normal(size=(queries, dimension))])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    first = np.concatenate([20 + np.arange(queries), 20 + np.arange(10)])
    second = np.concatenate([answer, (answer[:10] + 1) % 20])
    relevance = generator.integers(1, 4, size=len(first)).astype(float)
    wrong = (second + 7) % 20 if negatives else None
    return EncodedSplit(vectors, first, second, relevance, None, wrong, np.arange(20), RETRIEVAL)


def scored_pairs(*rows):
    """Return pairs of sentences with scores spread evenly from 0 to 5."""
    first, second = zip(*rows, strict=True)
    return ScoredPairs(first, second, np.linspace(0, 5, len(rows)))


def rows_of(pairs: ScoredPairs) -> list[tuple[str, str, float]]:
    """Return the pairs of a split as rows."""
    return list(zip(pairs.sentence1, pairs.sentence2, pairs.scores, strict=True))
