"""Synthetic sentences for losses that need no scores.

A compressor that is trained on one kind of sentence loses what the encoder knows about others: a training on news
headlines costs more on forum posts. Two kinds of sentences are added. Variants are train sentences with some words
replaced at random. Topic sentences are templates filled with words that are neighbors under the encoder, with several
sentences per topic, so that their similarities cover all degrees. The words come from the encoder's tokenizer, so that
nothing is downloaded. As text, most of these sentences make little sense.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from twinsqueeze.data.encoder import (
    OnProgress,
    SentenceEncoder,
    cache_key,
    cached_vectors,
    encode_in_batches,
    sort_by_length,
)
from twinsqueeze.errors import InputError
from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.similarity import nearest_neighbors

# Part of every cache key: increase it when other sentences are generated.
VERSION = "1"
# WordPiece orders its vocabulary by frequency: the first words, which are function words, are skipped.
SKIPPED_WORDS, MAX_WORDS = 150, 10_000
# Share of variants among the sentences, and probability that a longer word of a variant is replaced.
VARIANT_SHARE, REPLACE_PROBABILITY = 1 / 3, 0.3
# Sentences per topic, words that belong to a topic, and probability that a word comes from the topic.
SENTENCES_PER_TOPIC, NUM_NEIGHBORS, TOPIC_PROBABILITY = 4, 23, 0.8
WORD = re.compile(r"[a-z]{3,}")
REPLACEABLE_WORD = re.compile(r"[A-Za-z]{4,}")
# Prefixes of tokens that start a word: SentencePiece, byte-level BPE. WordPiece marks the other tokens instead.
WORD_START_MARKS = ("\u2581", "\u0120")
TEMPLATES = tuple(Path(__file__).with_name("synthetic_templates.txt").read_text(encoding="utf-8").splitlines())


def embed_synthetic(
    count: int,
    train_texts: Collection[str],
    encoder: SentenceEncoder,
    cache: DiskCache,
    on_progress: OnProgress = lambda *_: None,
) -> FloatArray:
    """Return unit vectors (count, d) of synthetic sentences, generated and encoded unless the cache has them."""
    train_sentences = sort_by_length(train_texts)
    key = cache_key(encoder.fingerprint, [f"synthetic {VERSION}, {count}", *train_sentences])
    if (cached := cached_vectors(cache, key)) is not None:
        return cached
    words = whole_words(encoder.vocabulary())[SKIPPED_WORDS : SKIPPED_WORDS + MAX_WORDS]
    if len(words) < 2:
        raise InputError(
            "the encoder's vocabulary has no words to make sentences of: choose another encoder, or set "
            "synthetic_sentences to 0"
        )
    encode = encoder.load()

    def embed(texts: Sequence[str], done: int) -> FloatArray:
        batches = []
        for batch in encode_in_batches(encode, texts):
            batches.append(batch)
            done += len(batch)
            on_progress(done, len(words) + count)
        return np.concatenate(batches)

    neighbors = nearest_neighbors(embed(words, 0), NUM_NEIGHBORS)
    sentences = generate_sentences(count, train_sentences, words, neighbors)
    embeddings = embed(sort_by_length(sentences), len(words))
    cache.put(key, save({"embeddings": embeddings}))
    return embeddings


def whole_words(vocabulary: Sequence[str]) -> list[str]:
    """Return the distinct lower-case words of at least three letters among a tokenizer's tokens, in their order."""
    # A vocabulary may contain the mark as an ordinary character as well.
    counts = {mark: sum(token.startswith(mark) for token in vocabulary) for mark in WORD_START_MARKS}
    mark = next((mark for mark, count in counts.items() if count > len(vocabulary) / 10), "")
    words = (token[len(mark) :] for token in vocabulary if token.startswith(mark))
    return list(dict.fromkeys(word for word in words if WORD.fullmatch(word)))


def generate_sentences(
    count: int, train_sentences: Sequence[str], words: Sequence[str], neighbors: IntArray
) -> list[str]:
    """Return variants of train sentences, then topic sentences; `neighbors` (W, k) are each word's nearest words."""
    generator = np.random.Generator(np.random.PCG64(0))
    sentences = []
    for _ in range(int(count * VARIANT_SHARE)):
        sentence = train_sentences[int(generator.integers(len(train_sentences)))]
        sentences.append(_replace_words(sentence, words, generator))
    while len(sentences) < count:
        topic, other_topic = map(int, generator.integers(len(words), size=2))
        for _ in range(min(SENTENCES_PER_TOPIC, count - len(sentences))):
            template = TEMPLATES[int(generator.integers(len(TEMPLATES)))]
            chosen = [topic]
            while len(chosen) < template.count("{}"):
                candidates = neighbors[topic if generator.random() < TOPIC_PROBABILITY else other_topic]
                chosen.append(int(candidates[generator.integers(len(candidates))]))
            generator.shuffle(chosen)
            sentence = template.format(*(words[i] for i in chosen))
            sentences.append(sentence[0].upper() + sentence[1:])
    return sentences


def _replace_words(sentence: str, words: Sequence[str], generator: np.random.Generator) -> str:
    result = []
    for word in sentence.split():
        replaced = REPLACEABLE_WORD.fullmatch(word) and generator.random() < REPLACE_PROBABILITY
        result.append(words[int(generator.integers(len(words)))] if replaced else word)
    return " ".join(result)
