"""The sentence-transformers model of encoder and compressor, compared with the two applied one after the other."""

import json
import math

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.inference.compression import is_truncated
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.model.sentence_transformer import build_sentence_transformer, token_limit

TEXTS = [
    "A man is playing a guitar.",
    "",
    "Two dogs run through the snow, and a child laughs at them from the window.",
    "Ünïcödé 日本語 🙂",
    "word " * 600,  # longer than an encoder's maximum
]


@pytest.fixture
def base(encoder) -> SentenceTransformer:
    return SentenceTransformer(str(encoder.folder), device="cpu")


def compressor(*sizes: int) -> CompressorNetwork:
    return CompressorNetwork(kaiming_uniform_layers(sizes, np.random.default_rng(7)))


@pytest.mark.parametrize("hidden", [(32, 16, 8), (16,), (None,)], ids=["mlp", "linear", "same dim"])
def test_saved_model_encodes_as_encoder_and_compressor(encoder, base, hidden, tmp_path):
    dim = base.get_embedding_dimension()
    network = compressor(dim, *(size or dim for size in hidden))
    build_sentence_transformer(encoder, network).save(str(tmp_path))
    vectors = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, network.compress(torch.from_numpy(base.encode(TEXTS))), atol=1e-6)
    modules = [module["type"].split(".") for module in json.loads((tmp_path / "modules.json").read_text())]
    assert {package for package, *_ in modules} == {"sentence_transformers"}
    names = [name for *_, name in modules]
    assert names == ["Transformer", "Pooling", "Normalize", *["Dense"] * len(hidden), "Normalize"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


def test_encoder_without_normalization_in_half_precision(base, tmp_path):
    SentenceTransformer(modules=list(base)[:2]).half().save(str(tmp_path))
    encoder = resolve_encoder(str(tmp_path), "cpu")
    network = compressor(base.get_embedding_dimension(), 8)
    model = build_sentence_transformer(encoder, network)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    vectors = model.encode(TEXTS)
    expected = network.compress(torch.from_numpy(encoder.load().encode(TEXTS).astype(np.float32)))
    np.testing.assert_allclose(vectors, expected, atol=2e-3)  # rounding error of half precision


@pytest.mark.parametrize("limit", [None, math.inf, int(1e30), 1e30, 2**63 - 1])
def test_a_model_without_a_limit_of_tokens_truncates_nothing(base, limit):
    assert token_limit(base) == base.max_seq_length
    assert is_truncated(base, TEXTS[-1])
    base.max_seq_length = limit
    assert token_limit(base) is None
    assert not is_truncated(base, TEXTS[-1])


def test_an_encoder_of_another_dimension_is_refused(encoder, base):
    message = f"takes vectors of 24 floats, but encoder '{encoder.name}' gives {base.get_embedding_dimension()}"
    with pytest.raises(InputError, match=message):
        build_sentence_transformer(encoder, compressor(24, 8))
