"""Embeddings of texts, in batches of similar length, and a cache with which every distinct sentence is encoded once.

The unit of encoding and caching is the set of a split's distinct sentences that no earlier split contains. The last
bits of a vector depend on the other sentences in its batch. With whole units, train, main and evaluate get the same
bits, whichever of them runs first.

A batch is padded to its longest text. Texts are sorted by their tokens, so that batches need almost no padding. Sorted
by their characters, as `SentenceTransformer.encode` does, STS-B's sentences become 1.36 times as many tokens.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain

import numpy as np
import torch
from safetensors.numpy import load, save

from twinsqueeze.data.dataset import SPLITS, EncodedSplit, Split
from twinsqueeze.data.encoder import BatchEncoder, SentenceEncoder
from twinsqueeze.errors import InputError
from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.compute import map_threaded
from twinsqueeze.utils.disk_cache import DiskCache

OnProgress = Callable[[int, int], None]  # called with the number of sentences done, and in all
# Part of every cache key: increase it when the vectors of the same sentences change.
CACHE_VERSION = "3"


def embed_splits(
    splits: Mapping[str, Split],
    encoder: SentenceEncoder | None,
    cache: DiskCache,
    *,
    validate_dim: Callable[[int], None] = lambda _: None,
    on_progress: OnProgress = lambda *_: None,
) -> dict[str, EncodedSplit]:
    """Return the splits with embeddings; the encoder is loaded only for texts that the cache lacks.

    Splits of vectors need no encoder.

    `validate_dim` gets their dimension after the first batch; `on_progress` the sentences encoded so far, and in all.
    """
    if encoder is None:
        encoded = {name: split.encode(np.empty((0, 0)), {}) for name, split in splits.items()}
        validate_dim(next(iter(encoded.values())).dimension)
        return encoded
    units = _split_into_units(splits)
    embeddings = embed_units(list(units.values()), encoder, cache, validate_dim=validate_dim, on_progress=on_progress)
    row = {text: i for i, text in enumerate(chain.from_iterable(units.values()))}
    return {name: split.encode(embeddings, row) for name, split in splits.items()}


def embed_units(
    units: Sequence[list[str]],
    encoder: SentenceEncoder,
    cache: DiskCache,
    *,
    validate_dim: Callable[[int], None] = lambda _: None,
    on_progress: OnProgress = lambda *_: None,
) -> FloatArray:
    """Return the unit vectors of the sentences of all units, (n, d); arguments as for `embed_splits`."""
    keys = [cache_key(encoder.fingerprint, unit) for unit in units]
    found = {key: vectors for key in keys if (vectors := cached_vectors(cache, key)) is not None}
    missing = {key: unit for key, unit in zip(keys, units, strict=True) if key not in found}
    if missing:
        batch_encoder = encoder.load()
        done, total = 0, sum(map(len, missing.values()))

        def on_batch(batch: FloatArray) -> None:
            nonlocal done
            validate_dim(batch.shape[1])
            done += len(batch)
            on_progress(done, total)

        for key, unit in missing.items():
            found[key] = encode_texts(batch_encoder, unit, on_batch)
            cache.put(key, save({"embeddings": found[key]}))
    embeddings = np.concatenate([found[key] for key in keys])
    validate_dim(embeddings.shape[1])
    return embeddings


def _split_into_units(splits: Mapping[str, Split]) -> dict[str, list[str]]:
    """Return the sentences to encode, by the split that first has them; see the module's docstring."""
    units: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name in (name for name in SPLITS if name in splits):
        if new := set(splits[name].texts) - seen:
            units[name] = sort_by_length(new)
            seen |= new
    return units


def sort_by_length(texts: Iterable[str]) -> list[str]:
    """Return texts from longest to shortest, equally long ones by the alphabet."""
    return sorted(texts, key=lambda text: (-len(text), text))


def encode_texts(
    encoder: BatchEncoder, texts: Sequence[str], on_batch: Callable[[FloatArray], None] = lambda _: None
) -> FloatArray:
    """Return the vectors of texts, (n, d) float32; raise `InputError` if they are not finite.

    Equal texts are encoded once. Every core of a CPU encodes a batch of its own, the longest texts first; `on_batch`
    gets the vectors of each.
    """
    distinct = sort_by_length(set(texts))
    batches = split_by_tokens(encoder.count_tokens(distinct), encoder.max_batch_tokens)
    vectors = np.empty((len(distinct), 0), np.float32)

    def encode(rows: IntArray) -> FloatArray:
        return encoder.encode([distinct[row] for row in rows])

    with closing(map_threaded(batches, encode, encoder_threads())) as encoded:
        for rows, batch in encoded:
            if not np.isfinite(batch).all():
                raise InputError("the encoder's vectors are not finite: choose another encoder")
            if not vectors.size:
                vectors = np.empty((len(distinct), batch.shape[1]), np.float32)
            vectors[rows] = batch
            on_batch(batch)
    row = {text: i for i, text in enumerate(distinct)}
    return vectors[[row[text] for text in texts]]


def split_by_tokens(num_tokens: IntArray, max_tokens: int) -> Iterator[IntArray]:
    """Yield the positions of each batch's texts, from the most tokens to the fewest."""
    order = np.argsort(-num_tokens, kind="stable")
    start = 0
    while start < len(order):
        size = max(max_tokens // max(int(num_tokens[order[start]]), 1), 1)
        yield order[start : start + size]
        start += size


def encoder_threads() -> int:
    """Return how many batches are encoded at a time: one per core, or one on a GPU."""
    return 1 if torch.cuda.is_available() else torch.get_num_threads()


def cache_key(fingerprint: str, sentences: Iterable[str]) -> str:
    """Return a key made of the SHA-256 over an encoder's fingerprint and sentences in their order."""
    digest = hashlib.sha256(f"{CACHE_VERSION}\0{fingerprint}\0".encode())
    for text in sentences:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return f"embeddings-{digest.hexdigest()}"


def cached_vectors(cache: DiskCache, key: str) -> FloatArray | None:
    """Return the cached vectors of a key, (n, d), or None if there are none."""
    payload = cache.get(key)
    return None if payload is None else load(payload)["embeddings"]
