"""Sentences that the project makes itself, for all that needs no scores.

The train split's sentences are of a few kinds, and a compressor that sees no others forgets what the encoder knows of
the rest: of forum posts more than of headlines. Two kinds are added. Variants of train sentences, with some words
replaced by any, show what a word is worth. Sentences about subjects, templates filled with words that the encoder puts
near each other, some to a subject, lie where train sentences do not, and in all degrees of nearness. The words are
those of the encoder's tokenizer, so that nothing has to be fetched; as text they make little sense, which the encoder
does not mind.
"""

import re
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import save

from twinsqueeze.data.encoder import Encoder, OnProgress, cache_key, cached_vectors, encode_in_batches, sort_by_length
from twinsqueeze.data.sentence_pairs import ScoredPairs
from twinsqueeze.errors import InputError
from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.similarity import nearest_neighbors

# Part of every cache key: raise it when other sentences are made.
VERSION = "1"


# Of the tokenizer's words in its order, which is that of frequency in WordPiece: the first are function words.
SKIPPED, WORDS = 150, 10_000


# Of the sentences, those that are variants of train sentences, and the share of their longer words that is replaced.
VARIANTS, REPLACED = 1 / 3, 0.3


# Sentences about a subject, the words nearest to its own that they are filled with, and the share that are of it.
SENTENCES_PER_TOPIC, NUM_NEIGHBORS, OF_SUBJECT = 4, 23, 0.8


WORD = re.compile(r"[a-z]{3,}")
REPLACEABLE = re.compile(r"[A-Za-z]{4,}")
# What tokenizers mark the beginning of a word with: SentencePiece and byte-level BPE. WordPiece marks the others.
MARKS = ("\u2581", "\u0120")
TEMPLATES = tuple(
    """
I think {} is more about {} than about {}.
How do I {} a {}?
How can I tell if my {} is {}?
What is the best way to {} the {} without {}?
You should {} the {} before you {} it.
It depends on the {} and on how {} your {} is.
Yes, you can use {} for {}, but it will not be {}.
No, {} is not the same as {}.
There is no {} in {}, as far as I know.
In my experience, {} works better with {} than with {}.
I would suggest that you {} first and then {}.
Is it {} to {} when there is no {}?
Why does {} need {}?
The {} of {} was {} in the {}.
If you want to {}, you need a {} and some {}.
According to {}, the {} is {}.
A {} is a kind of {} that is used for {}.
He said the {} had {} the {}.
{} and {} are two different things.
I don't see why {} would be {}.
This question is about {}, not {}.
Have you tried {} with {}?
The answer is {}, because {} means {}.
They {} the {} for {} reasons.
My {} is {} and I want to {} it.
A man is {} a {}.
A woman with a {} stands next to a {}.
Two {} are in front of a {}.
The {} sits on the {}.
{} {} {} after {}
{} says {} is {}
{} calls for {} in {}
New {} {} near {}
Officials said {} was {} on Monday.
Shares of {} rose {} percent after the {}.
The {} has {} its {} to {}.
It would be better to {} the {}.
You can't {} a {} with a {}.
Some people {} their {} because of the {}.
The {} was {}, but the {} was not.
What does {} mean in {}?
Don't {} the {}; {} it instead.
{} is one of the most {} {} in the {}.
We bought a {} {} for the {}.
She wrote about {} and {}.
""".strip().split("\n")
)


def embed_synthetic(
    count: int, train: ScoredPairs, encoder: Encoder, cache: DiskCache, on_progress: OnProgress = lambda *_: None
) -> FloatArray:
    """The vectors of synthetic sentences, encoded where the cache lacks them.

    Args:
        count: How many sentences.
        train: Whose sentences some of them are variants of.
        encoder: Whose words they are made of, and whose vectors they get.
        cache: Where vectors are kept.
        on_progress: Told how many words and sentences are encoded, and how many there are.

    Returns:
        (count, d) float32, each of length 1.

    Raises:
        InputError: If the encoder can't be loaded, has no words, or gives vectors that are not finite.
    """
    sentences = sort_by_length({*train.sentence1, *train.sentence2})
    key = cache_key(encoder.fingerprint, [f"synthetic {VERSION}, {count}", *sentences])
    found = cached_vectors(cache, key, count)
    if found is not None:
        return found
    words = whole_words(encoder.vocabulary())[SKIPPED : SKIPPED + WORDS]
    if len(words) < 2:
        raise InputError(
            "the encoder's vocabulary has no words to make sentences of: choose another, or train with synthetic 0"
        )
    encode = encoder.load()
    vectors: list[FloatArray] = []

    def embed(texts: Sequence[str]) -> FloatArray:
        begun = len(vectors)
        for batch in encode_in_batches(encode, texts):
            vectors.append(batch)
            on_progress(sum(map(len, vectors)), len(words) + count)
        return np.concatenate(vectors[begun:])

    made = make_sentences(count, sentences, words, nearest_neighbors(embed(words), NUM_NEIGHBORS))
    encoded = embed(sort_by_length(made))
    cache.put(key, save({"embeddings": encoded}))
    return encoded


def whole_words(vocabulary: Sequence[str]) -> list[str]:
    """The lower-case words of three letters or more in a tokenizer's vocabulary, in its order, each once.

    Args:
        vocabulary: Its tokens, parts of words included.
    """
    # A vocabulary may have the mark as a letter of its own.
    marked = {mark: sum(token.startswith(mark) for token in vocabulary) for mark in MARKS}
    mark = next((mark for mark, count in marked.items() if count > len(vocabulary) / 10), "")
    whole = (token[len(mark) :] for token in vocabulary if token.startswith(mark))
    return list(dict.fromkeys(word for word in whole if WORD.fullmatch(word)))


def make_sentences(count: int, train: Sequence[str], words: Sequence[str], near: IntArray) -> list[str]:
    """Sentences, the same for the same arguments.

    Args:
        count: How many.
        train: Distinct sentences of the train split, in an order of its own.
        words: That sentences are made of, at least 2.
        near: (len(words), k) for each word the places of those that the encoder puts nearest to it, k at least 1.

    Returns:
        Variants of train sentences and then sentences about subjects. Some may be there twice.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    variants = int(count * VARIANTS)
    made = [_variant(train[int(generator.integers(len(train)))], words, generator) for _ in range(variants)]
    while len(made) < count:
        subject, other = map(int, generator.integers(len(words), size=2))
        some = min(SENTENCES_PER_TOPIC, count - len(made))
        made += [_topic_sentence(subject, other, words, near, generator) for _ in range(some)]
    return made


def _variant(sentence: str, words: Sequence[str], generator: np.random.Generator) -> str:
    def kept_or_replaced(word: str) -> str:
        if REPLACEABLE.fullmatch(word) and generator.random() < REPLACED:
            return words[int(generator.integers(len(words)))]
        return word

    return " ".join(map(kept_or_replaced, sentence.split()))


def _topic_sentence(
    subject: int, other: int, words: Sequence[str], near: IntArray, generator: np.random.Generator
) -> str:
    template = TEMPLATES[int(generator.integers(len(TEMPLATES)))]
    places = [subject]
    while len(places) < template.count("{}"):
        choice = near[subject if generator.random() < OF_SUBJECT else other]
        places.append(int(choice[generator.integers(len(choice))]))
    generator.shuffle(places)
    sentence = template.format(*(words[place] for place in places))
    return sentence[0].upper() + sentence[1:]
