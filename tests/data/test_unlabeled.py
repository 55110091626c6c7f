"""The unlabeled sentences of the package."""

import numpy as np
import pytest

from tests.helpers.encoders import CountingEncoder, vector_of
from twinsqueeze.data.embedding import sort_by_length
from twinsqueeze.data.unlabeled import FILE, MAX_SENTENCES, embed_unlabeled
from twinsqueeze.utils.disk_cache import DiskCache

SENTENCES = FILE.read_text(encoding="utf-8").splitlines()


def test_the_sentences_are_distinct_and_come_with_their_license():
    assert len(SENTENCES) == len(set(SENTENCES)) == MAX_SENTENCES
    assert "Having material or physical form or substance" in SENTENCES
    assert "Princeton University" in FILE.with_name("wordnet_license.txt").read_text(encoding="utf-8")


def test_the_first_sentences_are_encoded_once_and_cached(tmp_path):
    encoder, seen = CountingEncoder(), []
    first = embed_unlabeled(100, encoder, DiskCache(tmp_path), lambda *counts: seen.append(counts))
    assert sorted(encoder.texts) == sorted(SENTENCES[:100])
    assert seen[-1] == (100, 100)
    np.testing.assert_array_equal(first, [vector_of(text) for text in sort_by_length(SENTENCES[:100])])

    again = CountingEncoder()
    np.testing.assert_array_equal(embed_unlabeled(100, again, DiskCache(tmp_path)), first)
    assert again.times_loaded == 0


@pytest.mark.parametrize(("count", "fingerprint"), [(101, "aa"), (100, "bb")])
def test_other_sentences_and_other_encoders_are_encoded_again(tmp_path, count, fingerprint):
    embed_unlabeled(100, CountingEncoder(), DiskCache(tmp_path))
    other = CountingEncoder(fingerprint)
    assert len(embed_unlabeled(count, other, DiskCache(tmp_path))) == count
    assert other.times_loaded == 1
