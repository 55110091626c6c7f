"""Encoder and compressor as one sentence-transformers model: text in, short vectors out.

Its modules are sentence-transformers' own, so whoever loads it needs neither this package nor trust in foreign code.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from twinsqueeze.data.encoder import SentenceEncoder
from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.utils.files import expand_user, is_dir

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def build_sentence_transformer(encoder: SentenceEncoder, compressor: CompressorNetwork) -> "SentenceTransformer":
    """The encoder's modules, then the compressor's layers as Dense modules, then Normalize.

    The vectors are those that the compressor makes of the encoder's. They are float32 whatever the encoder's weights
    are: a Dense module takes numbers of its own type only.

    Args:
        encoder: What the compressor was trained on; its device is the model's.
        compressor: Anywhere.

    Raises:
        InputError: If the encoder can't be loaded, or its vectors are not as long as the compressor wants them.
    """
    base = encoder.load_model()
    dimension = base.get_embedding_dimension()
    if dimension != compressor.input_dimension:
        raise InputError(
            f"the compressor takes vectors of {compressor.input_dimension} numbers, and those of encoder "
            f"{encoder.name!r} have {dimension}: name the encoder that it was trained with"
        )
    # Imported by whoever encodes, after 8 seconds that are paid by then.
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - as above
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer  # noqa: PLC0415

    modules: list[nn.Module] = list(base)
    if isinstance(
        modules[0], Transformer
    ):  # MLflow writes down what it was called, which must be no path of this machine
        local = is_dir(expand_user(encoder.name))
        modules[0].auto_model.name_or_path = encoder.folder.name if local else encoder.name
    if not isinstance(modules[-1], Normalize):  # compressors are trained on vectors of length 1
        modules.append(Normalize())
    last = len(compressor.layers) - 1
    for i, (weight, bias) in enumerate(compressor.layers):
        modules.append(
            Dense(
                in_features=weight.shape[1],
                out_features=weight.shape[0],
                activation_function=nn.Identity() if i == last else nn.ReLU(),
                init_weight=weight.detach().clone(),
                init_bias=bias.detach().clone(),
            )
        )
    modules.append(Normalize())
    model = SentenceTransformer(
        modules=modules,
        device=str(base.device),
        prompts={name: prompt for name, prompt in base.prompts.items() if prompt is not None},
        default_prompt_name=base.default_prompt_name,
    )
    return model.float().eval()


def load_sentence_transformer(folder: Path, device: str) -> "SentenceTransformer":
    """A text model that was saved, from its folder alone.

    Args:
        folder: Such as `model_store.find_model` finds.
        device: auto, cpu or cuda.

    Raises:
        InputError: If sentence-transformers can't load it.
    """
    return SentenceEncoder(str(folder), folder, device=device).load_model()
