"""The text model beside encoder and compressor, each on its own."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from twinsqueeze.data.encoder import SentenceEncoder, resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import uniform_layers
from twinsqueeze.model.sentence_transformer import build_sentence_transformer

TEXTS = [
    "A man is playing a guitar.",
    "",
    "Two dogs run through the snow, and a child laughs at them from the window.",
    "Ünïcödé 日本語 🙂",
    "word " * 600,  # the encoder reads the first 256 tokens
]


def compressor(*sizes: int) -> CompressorNetwork:
    return CompressorNetwork(uniform_layers(sizes, np.random.default_rng(7)))


@pytest.mark.parametrize("sizes", [(384, 128, 64, 32), (384, 16), (384, 384)], ids=["mlp", "linear", "as wide"])
def test_its_vectors_are_the_compressors_of_the_encoders(sizes, tmp_path):
    """The folder is loaded by sentence-transformers alone."""
    encoder = resolve_encoder("all-MiniLM-L6-v2", "cpu")
    small = compressor(*sizes)
    build_sentence_transformer(encoder, small).save(str(tmp_path))
    vectors = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    separate = small.compress(torch.from_numpy(SentenceTransformer(str(encoder.folder), device="cpu").encode(TEXTS)))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, separate.numpy(), atol=1e-6)


def test_its_modules_are_sentence_transformers_own(tmp_path):
    build_sentence_transformer(resolve_encoder("all-MiniLM-L6-v2", "cpu"), compressor(384, 128, 64, 32)).save(
        str(tmp_path)
    )
    kinds = [module["type"] for module in json.loads((tmp_path / "modules.json").read_text())]
    assert all(kind.startswith("sentence_transformers.") for kind in kinds)
    names = [kind.rpartition(".")[2] for kind in kinds]
    assert names == ["Transformer", "Pooling", "Normalize", "Dense", "Dense", "Dense", "Normalize"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


@pytest.fixture
def unusual_encoder(tmp_path) -> SentenceEncoder:
    """One that does not normalise and whose weights are of half precision."""
    base = SentenceTransformer(str(resolve_encoder("all-MiniLM-L6-v2").folder), device="cpu")
    SentenceTransformer(modules=list(base)[:2]).half().save(str(tmp_path / "encoder"))
    return resolve_encoder(str(tmp_path / "encoder"), "cpu")


def test_an_encoder_that_neither_normalises_nor_is_float32(unusual_encoder):
    small = compressor(384, 8)
    vectors = build_sentence_transformer(unusual_encoder, small).encode(TEXTS)
    separate = small.compress(torch.from_numpy(unusual_encoder.load()(TEXTS).astype(np.float32)))
    np.testing.assert_allclose(vectors, separate.numpy(), atol=2e-3)  # what half precision leaves


def test_an_encoder_of_another_dimension_is_refused():
    with pytest.raises(
        InputError, match="takes vectors of 24 numbers, and those of encoder 'all-MiniLM-L6-v2' have 384"
    ):
        build_sentence_transformer(resolve_encoder("all-MiniLM-L6-v2", "cpu"), compressor(24, 8))
