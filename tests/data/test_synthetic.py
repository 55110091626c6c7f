import re
from itertools import chain

import numpy as np
import pytest
from scipy import stats

from tests.helpers.encoders import CountingEncoder, vector_of
from tests.helpers.pairs import scored_pairs
from twinsqueeze.data import synthetic
from twinsqueeze.data.encoder import resolve_encoder, sort_by_length
from twinsqueeze.data.synthetic import (
    SENTENCES_PER_TOPIC,
    SKIPPED_WORDS,
    TEMPLATES,
    embed_synthetic,
    generate_sentences,
    whole_words,
)
from twinsqueeze.errors import InputError
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.similarity import nearest_neighbors

TRAIN = [f"Seventeen {a} cat(s) saw the {b} dog in May" for a in ("small", "large", "old") for b in ("brown", "white")]
WORDS = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(600)]
PAIRS = scored_pairs(("a cat", "the cat sat on the mat"), ("a dog", "a cat"))
# (600, 10) neighbors of each word: the ten that follow it.
NEIGHBORS = (np.arange(600)[:, None] + np.arange(1, 11)) % 600


class WordsEncoder(CountingEncoder):
    """Also has a tokenizer whose tokens are the words."""

    def vocabulary(self):
        return ["[CLS]", "##ing", *WORDS]


@pytest.mark.parametrize("mark", ["", "\u2581", "\u0120"])
def test_whole_words_are_found_by_the_tokenizers_mark(mark):
    part = "" if mark else "##"
    words = [mark + word for word in ("house", "House", "x9", "an", "tree", "house")]
    assert whole_words([f"{part}hold", *words, "!"]) == ["house", "tree"]
    letters = [chr(code) for code in range(0x2581, 0x2590)]
    assert whole_words([*letters, *WORDS]) == WORDS


def test_the_vocabulary_is_the_tokenizers(tiny_encoder):
    vocabulary = resolve_encoder(str(tiny_encoder)).vocabulary()
    assert vocabulary[:2] == ["[PAD]", "[UNK]"]
    assert whole_words(vocabulary)[:2] == ["baba", "babe"]


@pytest.mark.slow
def test_the_default_encoder_has_enough_words():
    words = whole_words(resolve_encoder("all-MiniLM-L6-v2").vocabulary())
    assert len(words) == len(set(words)) > SKIPPED_WORDS + synthetic.MAX_WORDS
    assert {"and", "house", "weather", "philosophy"} <= set(words)
    assert words.index("the") < SKIPPED_WORDS < words.index("philosophy")


def test_variants_keep_the_place_of_every_word_and_replace_three_of_ten_longer_ones():
    variants = generate_sentences(9000, TRAIN, WORDS, NEIGHBORS)[:3000]
    candidates = [sentence.split() for sentence in TRAIN]
    replaced = replaceable = 0
    for words in map(str.split, variants):
        original = min(candidates, key=lambda known: sum(a != b for a, b in zip(known, words, strict=True)))
        for before, after in zip(original, words, strict=True):
            longer = before.isalpha() and len(before) >= 4
            assert before == after or (longer and after in WORDS)
            replaceable += longer
            replaced += before != after
    low, high = stats.binomtest(replaced, replaceable, 0.3).proportion_ci(0.999)
    assert low < 0.3 < high


def test_topic_sentences_use_the_topics_words():
    sentences = generate_sentences(6000, TRAIN, WORDS, NEIGHBORS)[2000:]
    shapes = [re.compile(re.escape(t).replace(r"\{\}", "([a-z]+)"), re.IGNORECASE) for t in TEMPLATES]
    used, of_topic, drawn = set(), 0, 0
    for start in range(0, len(sentences), SENTENCES_PER_TOPIC):
        found = []
        for sentence in sentences[start : start + SENTENCES_PER_TOPIC]:
            shape, match = next((s, m) for s in shapes if (m := s.fullmatch(sentence)))
            used.add(shape)
            found.append([WORDS.index(word.lower()) for word in match.groups()])
        # The topic is in all four, and most of the other words are among the ten after it.
        topics = set.intersection(*map(set, found))
        assert topics
        of_topic += max(sum((p - s) % 600 in range(1, 11) for p in chain(*found)) for s in topics)
        drawn += sum(len(places) - 1 for places in found)
    assert used == set(shapes)
    assert of_topic / drawn == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("count", [1, 2, 50, 301])
def test_sentences_have_the_requested_count_and_are_deterministic(count):
    sentences = generate_sentences(count, TRAIN, WORDS, NEIGHBORS)
    assert len(sentences) == count
    assert sentences == generate_sentences(count, TRAIN, WORDS, NEIGHBORS)


def test_words_and_sentences_are_encoded_once_and_cached(tmp_path):
    encoder, seen = WordsEncoder(), []
    first = embed_synthetic(100, PAIRS.texts, encoder, DiskCache(tmp_path), lambda *counts: seen.append(counts))
    words = WORDS[SKIPPED_WORDS:]
    neighbors = nearest_neighbors(np.stack(list(map(vector_of, words))), synthetic.NUM_NEIGHBORS)
    sentences = generate_sentences(100, sort_by_length({*PAIRS.sentence1, *PAIRS.sentence2}), words, neighbors)
    assert encoder.texts == [*words, *sort_by_length(sentences)]
    assert seen[-1] == (len(words) + 100, len(words) + 100)
    assert first.shape == (100, 6)

    again = WordsEncoder()
    np.testing.assert_array_equal(embed_synthetic(100, PAIRS.texts, again, DiskCache(tmp_path)), first)
    assert again.times_loaded == 0
    for count, train, fingerprint in ((101, PAIRS, "aa"), (100, scored_pairs(("x y", "z")), "aa"), (100, PAIRS, "bb")):
        other = WordsEncoder(fingerprint)
        embed_synthetic(count, train.texts, other, DiskCache(tmp_path))
        assert other.times_loaded == 1


@pytest.mark.parametrize("tokens", [[], ["##ing", "x9"]])
def test_an_encoder_without_words_is_refused(tokens, tmp_path):
    encoder = WordsEncoder()
    encoder.vocabulary = lambda: tokens
    with pytest.raises(InputError, match=r"no words to make sentences of: .* or set synthetic_sentences to 0"):
        embed_synthetic(10, PAIRS.texts, encoder, DiskCache(tmp_path))


@pytest.mark.slow
def test_sentences_of_a_topic_are_near_each_other(tmp_path, monkeypatch):
    """With the default encoder and some of its words."""
    monkeypatch.setattr(synthetic, "MAX_WORDS", 800)
    monkeypatch.setattr(synthetic, "VARIANT_SHARE", 0)
    monkeypatch.setattr(synthetic, "sort_by_length", list)  # the sentences of a topic stay together
    found = embed_synthetic(200, PAIRS.texts, resolve_encoder("all-MiniLM-L6-v2"), DiskCache(tmp_path))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosine = found @ found.T
    same = np.kron(np.eye(50, dtype=bool), np.ones((4, 4), dtype=bool))
    among = cosine[same & ~np.eye(200, dtype=bool)]
    assert among.mean() > cosine[~same].mean() + 0.2
    assert stats.ttest_ind(among, cosine[~same], equal_var=False).pvalue < 1e-9
