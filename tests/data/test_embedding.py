from itertools import chain

import numpy as np
import pytest

from tests.helpers.commands import ROOT
from tests.helpers.encoders import CountingEncoder, vector_of
from tests.helpers.forks import ForkedProcess
from tests.helpers.pairs import scored_pairs
from twinsqueeze.data.embedding import cache_key, embed_splits, encode_texts
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.utils.disk_cache import DiskCache

SPLITS = {
    "train": scored_pairs(("a cat", "the cat sat on the mat"), ("a dog", "a cat")),
    "dev": scored_pairs(("a dog", "a bird"), ("one fish", "two fish")),
    "test": scored_pairs(("two fish", "a tree"), ("a bird", "a tree")),
}


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache")


def test_every_distinct_sentence_is_encoded_once(cache):
    encoder, progress = CountingEncoder(), []
    encoded = embed_splits(SPLITS, encoder, cache, on_progress=lambda *counts: progress.append(counts))
    assert progress == [(3, 7), (6, 7), (7, 7)]
    assert sorted(encoder.texts) == sorted({t for s in SPLITS.values() for t in s.sentence1 + s.sentence2})
    for name, split in SPLITS.items():
        for sentences, rows in ((split.sentence1, encoded[name].first), (split.sentence2, encoded[name].second)):
            np.testing.assert_array_equal(encoded[name].embeddings[rows], list(map(vector_of, sentences)))
        np.testing.assert_array_equal(encoded[name].scores, split.scores)
        assert len(encoded[name].embeddings) == len({*split.sentence1, *split.sentence2})


def test_a_batch_has_texts_of_similar_length_the_longest_first():
    texts = [" ".join([f"w{i}"] * (1 + i * 7 % 50)) for i in range(100)]
    encoder = CountingEncoder()
    np.testing.assert_array_equal(encode_texts(encoder, [*texts, texts[0]]), [*map(vector_of, [*texts, texts[0]])])
    batches = sorted((list(encoder.count_tokens(batch)) for batch in encoder.batches), reverse=True)
    assert [*chain(*batches)] == sorted(encoder.count_tokens(texts), reverse=True)
    assert all(len(batch) * batch[0] <= encoder.max_batch_tokens for batch in batches)  # with the padding
    assert all((len(batch) + 1) * batch[0] > encoder.max_batch_tokens for batch in batches[:-1])


def test_the_encoder_is_loaded_again_only_for_damaged_cache_files(cache):
    first = embed_splits(SPLITS, CountingEncoder(), cache)
    for times_loaded in (0, 1):
        encoder = CountingEncoder()
        again = embed_splits(SPLITS, encoder, cache)
        assert encoder.times_loaded == times_loaded
        for name in SPLITS:
            np.testing.assert_array_equal(first[name].embeddings, again[name].embeddings)
        for path in cache.folder.iterdir():
            path.write_bytes(path.read_bytes()[:-3] + b"xyz")


def test_splits_are_cached_the_same_with_and_without_test(cache):
    """Otherwise the last bits of vectors would depend on which command runs first."""
    embed_splits({name: SPLITS[name] for name in ("train", "dev")}, CountingEncoder(), cache)
    encoder = CountingEncoder()
    embed_splits(SPLITS, encoder, cache)
    assert encoder.batches == [["a tree"]]


def test_cache_keys_differ_by_encoder_and_sentences():
    keys = [("a", ["x", "yz"]), ("a", ["xy", "z"]), ("a", ["yz", "x"]), ("b", ["x", "yz"])]
    assert len({cache_key(*key) for key in keys}) == 4


def test_the_dimension_is_checked_after_one_batch_and_when_cached(cache):
    def refuse(dimension):
        raise InputError(f"not {dimension}")

    encoder = CountingEncoder()
    with pytest.raises(InputError, match="not 6"):
        embed_splits(SPLITS, encoder, cache, validate_dim=refuse)
    embed_splits(SPLITS, CountingEncoder(), cache)
    with pytest.raises(InputError, match="not 6"):
        embed_splits(SPLITS, encoder, cache, validate_dim=refuse)
    assert len(encoder.batches) == 1


def test_vectors_that_are_not_finite_are_refused(cache):
    encoder = CountingEncoder()
    encoder.encode = lambda texts: np.full((len(texts), 6), np.nan)
    with pytest.raises(InputError, match="not finite"):
        embed_splits(SPLITS, encoder, cache)
    assert not cache.folder.exists()


def test_cached_vectors_are_read_without_importing_sentence_transformers(cache, tiny_encoder):
    program = """
import sys
from pathlib import Path
from tests.data.test_embedding import SPLITS
from twinsqueeze.data.embedding import embed_splits
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.utils.disk_cache import DiskCache
encoded = embed_splits(SPLITS, resolve_encoder(sys.argv[1]), DiskCache(Path(sys.argv[2])))
print("sentence_transformers" in sys.modules, encoded["train"].embeddings.tobytes().hex())
"""
    encoded = embed_splits(SPLITS, resolve_encoder(str(tiny_encoder)), cache)
    with ForkedProcess(["-c", program, str(tiny_encoder), str(cache.folder)], {}, ROOT) as process:
        assert process.finish() == (f"False {encoded['train'].embeddings.tobytes().hex()}\n", "")
