"""Encoder and compressor as one sentence-transformers model from texts to compressed vectors.

Its modules belong to sentence-transformers, so loading it needs neither this package nor `trust_remote_code`.
"""

from typing import TYPE_CHECKING

from torch import nn

from twinsqueeze.data.encoder import SentenceEncoder
from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.utils.files import expand_user, is_dir

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


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
        is_local = is_dir(expand_user(encoder.name))
        modules[0].auto_model.name_or_path = encoder.folder.name if is_local else encoder.name
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
