"""Unlabeled sentences that come with the package, for losses that need no scores.

A compressor that is trained on one kind of text loses what the encoder knows about others: a training on news headlines
costs more on forum posts. These sentences are definitions and examples of WordNet 3.0 (Miller 1995), on all topics, in
random order. `scripts/make_wordnet.py` makes them.
"""

from pathlib import Path

from twinsqueeze.data.embedding import OnProgress, embed_units, sort_by_length
from twinsqueeze.data.encoder import SentenceEncoder
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.disk_cache import DiskCache

FILE = Path(__file__).with_name("wordnet.txt")


def embed_unlabeled(
    count: int, encoder: SentenceEncoder, cache: DiskCache, on_progress: OnProgress = lambda *_: None
) -> FloatArray:
    """Return unit vectors (count, d) of the first sentences, the longest first, encoded unless the cache has them."""
    sentences = sort_by_length(FILE.read_text(encoding="utf-8").splitlines()[:count])
    return embed_units([sentences], encoder, cache, on_progress=on_progress)
