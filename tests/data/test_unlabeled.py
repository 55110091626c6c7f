"""The unlabeled sentences of the package."""

import numpy as np

from tests.helpers.encoders import CountingEncoder, vector_of
from twinsqueeze.data.embedding import sort_by_length
from twinsqueeze.data.unlabeled import FILE, embed_unlabeled
from twinsqueeze.recipe_fields import MAX_UNLABELED_SENTENCES
from twinsqueeze.utils.disk_cache import DiskCache

SENTENCES = FILE.read_text(encoding="utf-8").splitlines()


def test_the_sentences_are_distinct_and_come_with_their_license():
    assert len(SENTENCES) == len(set(SENTENCES)) == MAX_UNLABELED_SENTENCES
    assert "Having material or physical form or substance" in SENTENCES
    assert "Princeton University" in FILE.with_name("wordnet_license.txt").read_text(encoding="utf-8")


def test_the_first_sentences_of_an_encoder_are_encoded_once(tmp_path):
    progress = []
    first = embed_unlabeled(100, CountingEncoder(), DiskCache(tmp_path), lambda *counts: progress.append(counts))
    assert len(progress) > 1
    assert progress[-1] == (100, 100)
    np.testing.assert_array_equal(first, [vector_of(text) for text in sort_by_length(SENTENCES[:100])])
    for count, fingerprint, times_loaded in ((100, "aa", 0), (101, "aa", 1), (100, "bb", 1)):
        encoder = CountingEncoder(fingerprint)
        assert len(embed_unlabeled(count, encoder, DiskCache(tmp_path))) == count
        assert encoder.times_loaded == times_loaded
