"""Encoder and compressor as one sentence-transformers model from texts to compressed vectors.

Its modules belong to sentence-transformers, so loading it needs neither this package nor `trust_remote_code`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from twinsqueeze.data.encoder import SentenceEncoder
from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.utils.files import public_name

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Name of sentence-transformers for the number of tokens of a prompt.
PROMPT_LENGTH = "prompt_length"
# Tokenizers without a limit have 1e30, infinity or the largest integer of a type.
MAX_TOKEN_LIMIT = 10**9


@dataclass(frozen=True)
class TextModelInfo:
    """What users of a text model need to know about its inputs."""

    token_limit: int | None  # tokens after which a text is truncated; None if it never is
    prompts: Mapping[str, str]  # texts that are prepended to a text, by name
    default_prompt: str | None  # the name of the prompt that is prepended if none is chosen
    excluded_lengths: Mapping[str, int]  # tokens of each prompt, if the vectors leave them out


def describe_text_model(model: "SentenceTransformer") -> TextModelInfo:
    """Returns what a model card says about a text model's inputs."""
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt}
    default = model.default_prompt_name if model.default_prompt_name in prompts else None
    lengths = prompt_lengths(model) if poolings_without_prompt(model) else {}
    return TextModelInfo(token_limit(model), prompts, default, lengths)


def token_limit(model: "SentenceTransformer") -> int | None:
    """Returns the number of tokens after which a model truncates texts; None if it does not."""
    limit = model.max_seq_length
    return None if limit is None or limit > MAX_TOKEN_LIMIT else int(limit)


def poolings_without_prompt(model: "SentenceTransformer") -> list[nn.Module]:
    """Returns the modules that leave a prompt's tokens out of a text's vector."""
    return [module for module in model if getattr(module, "include_prompt", True) is False]


def prompt_lengths(model: "SentenceTransformer") -> dict[str, int]:
    """Returns the number of tokens of each prompt of a model, by the prompt's text."""
    prompts = [prompt for prompt in model.prompts.values() if prompt]
    return {prompt: int(model.preprocess([""], prompt=prompt).get(PROMPT_LENGTH, 0)) for prompt in prompts}


def build_sentence_transformer(encoder: SentenceEncoder, compressor: CompressorNetwork) -> "SentenceTransformer":
    """Builds the encoder's modules, then the compressor's layers as Dense modules, then Normalize.

    The model is on the encoder's device, and float32, since Dense modules accept only their own dtype. An encoder of
    another dimension is an `InputError`.
    """
    base = encoder.load_model()
    dimension = base.get_embedding_dimension()
    if dimension != compressor.input_dim:
        raise InputError(
            f"the compressor takes vectors of {compressor.input_dim} floats, but encoder {encoder.name!r} gives "
            f"{dimension}: name the encoder that it was trained with"
        )
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes 8 seconds, in `load_model`
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer  # noqa: PLC0415

    modules: list[nn.Module] = list(base)
    if isinstance(modules[0], Transformer):  # MLflow records this name, which must not be a path of this machine
        modules[0].auto_model.name_or_path = public_name(encoder.name)
    if not isinstance(modules[-1], Normalize):  # compressors are trained on unit vectors
        modules.append(Normalize())
    for i, (weight, bias) in enumerate(compressor.layers, 1):
        activation = nn.ReLU() if i < len(compressor.layers) else nn.Identity()
        copies = weight.detach().clone(), bias.detach().clone()
        modules.append(Dense(weight.shape[1], weight.shape[0], True, activation, *copies))
    model = SentenceTransformer(
        modules=[*modules, Normalize()],
        device=str(base.device),
        prompts={name: prompt for name, prompt in base.prompts.items() if prompt is not None},
        default_prompt_name=base.default_prompt_name,
    )
    return model.float().eval()
