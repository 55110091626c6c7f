"""The sentence-transformers model of encoder and compressor, compared with the two applied one after the other."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from twinsqueeze.data.encoder import SentenceEncoder, resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.model.sentence_transformer import build_sentence_transformer

TEXTS = [
    "A man is playing a guitar.",
    "",
    "Two dogs run through the snow, and a child laughs at them from the window.",
    "Ünïcödé 日本語 🙂",
    "word " * 600,  # the encoder truncates after 256 tokens
]


def compressor(*sizes: int) -> CompressorNetwork:
    return CompressorNetwork(kaiming_uniform_layers(sizes, np.random.default_rng(7)))


@pytest.mark.parametrize("sizes", [(384, 128, 64, 32), (384, 16), (384, 384)], ids=["mlp", "linear", "same dim"])
def test_saved_model_encodes_as_encoder_and_compressor(sizes, tmp_path):
    encoder = resolve_encoder("all-MiniLM-L6-v2", "cpu")
    network = compressor(*sizes)
    build_sentence_transformer(encoder, network).save(str(tmp_path))
    vectors = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    expected = network.compress(torch.from_numpy(SentenceTransformer(str(encoder.folder), device="cpu").encode(TEXTS)))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-6)


def test_saved_model_has_only_modules_of_sentence_transformers(tmp_path):
    build_sentence_transformer(resolve_encoder("all-MiniLM-L6-v2", "cpu"), compressor(384, 128, 64, 32)).save(
        str(tmp_path)
    )
    types = [module["type"] for module in json.loads((tmp_path / "modules.json").read_text())]
    assert all(kind.startswith("sentence_transformers.") for kind in types)
    names = [kind.rpartition(".")[2] for kind in types]
    assert names == ["Transformer", "Pooling", "Normalize", "Dense", "Dense", "Dense", "Normalize"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


@pytest.fixture
def unusual_encoder(tmp_path) -> SentenceEncoder:
    """An encoder without a Normalize module, with weights in half precision."""
    base = SentenceTransformer(str(resolve_encoder("all-MiniLM-L6-v2").folder), device="cpu")
    SentenceTransformer(modules=list(base)[:2]).half().save(str(tmp_path / "encoder"))
    return resolve_encoder(str(tmp_path / "encoder"), "cpu")


def test_encoder_without_normalization_in_half_precision(unusual_encoder):
    network = compressor(384, 8)
    vectors = build_sentence_transformer(unusual_encoder, network).encode(TEXTS)
    expected = network.compress(torch.from_numpy(unusual_encoder.load()(TEXTS).astype(np.float32)))
    np.testing.assert_allclose(vectors, expected.numpy(), atol=2e-3)  # rounding error of half precision


def test_an_encoder_of_another_dimension_is_refused():
    with pytest.raises(InputError, match="takes vectors of 24 floats, but encoder 'all-MiniLM-L6-v2' gives 384"):
        build_sentence_transformer(resolve_encoder("all-MiniLM-L6-v2", "cpu"), compressor(24, 8))
