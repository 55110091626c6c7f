import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import AutoModel, AutoTokenizer

from tests.helpers.refusals import refusal
from tests.helpers.vectors import unit_rows
from twinsqueeze.data.embedding import encode_texts
from twinsqueeze.data.encoder import BatchEncoder, resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.utils.files import file_sha256


def test_changed_weights_are_refused(tmp_path, tiny_encoder):
    shutil.copytree(tiny_encoder, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    encoder = replace(resolve_encoder(str(tmp_path / "copy")), weights_sha256=file_sha256(weights))
    assert encoder.load().encode(["a cat"]).shape == (1, 64)
    weights.write_bytes(weights.read_bytes()[:-3] + b"xyz")
    with pytest.raises(InputError, match="damaged or missing: reinstall"):
        encoder.load()


def test_the_default_encoder_has_the_pinned_weights():
    encoder = resolve_encoder("all-MiniLM-L6-v2")
    assert file_sha256(encoder.folder / "model.safetensors") == encoder.weights_sha256


@pytest.mark.parametrize("name", ["./no/such/folder", "", "no-such-encoder"])
def test_an_unknown_encoder_is_refused_in_one_line(name, tmp_path):
    assert refusal(resolve_encoder, name or str(tmp_path))


def test_tokens_are_those_of_the_tokenizer_and_of_no_model_without_padding(tiny_encoder):
    encoder = resolve_encoder(str(tiny_encoder), "cpu").load()
    texts = ["a cat", "", "two dogs run after a cat " * 40]
    tokens = AutoTokenizer.from_pretrained(tiny_encoder)(texts, truncation=True, max_length=128)
    assert encoder.count_tokens(texts).tolist() == [len(ids) for ids in tokens["input_ids"]]

    static = SentenceTransformer(modules=[StaticEmbedding(encoder.model.tokenizer.backend_tokenizer, embedding_dim=8)])
    assert len(set(BatchEncoder(static).count_tokens(texts))) == 1
    assert encode_texts(BatchEncoder(static), texts).shape == (3, 8)


def test_vectors_are_those_of_sentence_transformers(tiny_encoder):
    encoder = resolve_encoder(str(tiny_encoder), "cpu").load()
    texts = [" ".join(["cat", "dogs", "trees"][: i % 4] * (i % 37)) for i in range(200)]
    np.testing.assert_allclose(encode_texts(encoder, texts), encoder.model.encode(texts), atol=1e-6)


def test_bfloat16_is_that_of_pytorch_and_part_of_the_name_and_the_fingerprint(tiny_encoder):
    """The transformer in PyTorch's autocast, and the mean of its tokens by hand."""
    plain, rounded = (resolve_encoder(f"{tiny_encoder}{suffix}", "cpu") for suffix in ("", ":bfloat16"))
    texts = ["a cat sits", "a dog", "two dogs run after a cat"]
    transformer, tokenizer = (kind.from_pretrained(tiny_encoder) for kind in (AutoModel, AutoTokenizer))
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states = transformer(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    means = (states.float() * mask).sum(1) / mask.sum(1)

    vectors = rounded.load().encode(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, unit_rows(means.numpy()), atol=1e-6)
    assert 0 < np.abs(vectors - plain.load().encode(texts)).max() < 0.02
    assert rounded.name == f"{plain.name}:bfloat16"
    assert rounded.fingerprint != plain.fingerprint


def test_a_folder_is_named_so_that_it_is_found_from_anywhere(tiny_encoder, tmp_path, monkeypatch):
    (tmp_path / "b").symlink_to(tiny_encoder)
    monkeypatch.chdir(tmp_path)
    for suffix in ("", ":bfloat16"):
        assert resolve_encoder(f"b{suffix}").absolute_name == f"{tiny_encoder.resolve()}{suffix}"
        name = f"all-MiniLM-L6-v2{suffix}"
        assert resolve_encoder(name).absolute_name == name
