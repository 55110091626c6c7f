import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.helpers.commands import ROOT
from tests.helpers.encoders import CountingEncoder, vector_of
from tests.helpers.forks import ForkedProcess
from tests.helpers.pairs import scored_pairs
from tests.helpers.refusals import refusal
from tests.helpers.vectors import unit_rows
from twinsqueeze.data.encoder import BATCH_SIZE, cache_key, embed_splits, resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.files import file_sha256

SPLITS = {
    "train": scored_pairs(("a cat", "the cat sat on the mat"), ("a dog", "a cat")),
    "dev": scored_pairs(("a dog", "a bird"), ("one fish", "two fish")),
    "test": scored_pairs(("two fish", "a tree"), ("a bird", "a tree")),
}


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache")


def flip_bits(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)


def test_vectors_belong_to_their_sentences(cache):
    encoded = embed_splits(SPLITS, CountingEncoder(), cache)
    for name, split in SPLITS.items():
        for sentences, rows in ((split.sentence1, encoded[name].first), (split.sentence2, encoded[name].second)):
            np.testing.assert_array_equal(encoded[name].embeddings[rows], np.stack(list(map(vector_of, sentences))))
        np.testing.assert_array_equal(encoded[name].scores, split.scores)
        assert len(encoded[name].embeddings) == len({*split.sentence1, *split.sentence2})


def test_every_distinct_sentence_is_encoded_once_longest_first(cache):
    encoder = CountingEncoder()
    embed_splits(SPLITS, encoder, cache)
    assert sorted(encoder.texts) == sorted({t for s in SPLITS.values() for t in s.sentence1 + s.sentence2})
    for batch in encoder.batches:
        assert [len(text) for text in batch] == sorted(map(len, batch), reverse=True)


@pytest.mark.parametrize(("damaged", "times_loaded"), [(False, 0), (True, 1)], ids=["intact", "damaged"])
def test_the_encoder_is_loaded_again_only_for_damaged_cache_files(cache, damaged, times_loaded):
    first = embed_splits(SPLITS, CountingEncoder(), cache)
    for path in cache.folder.iterdir() if damaged else ():
        flip_bits(path)
    encoder = CountingEncoder()
    second = embed_splits(SPLITS, encoder, cache)
    assert encoder.times_loaded == times_loaded
    for name in SPLITS:
        np.testing.assert_array_equal(first[name].embeddings, second[name].embeddings)


def test_splits_are_cached_the_same_with_and_without_test(cache):
    """Otherwise the last bits of vectors would depend on which command runs first."""
    embed_splits({name: SPLITS[name] for name in ("train", "dev")}, CountingEncoder(), cache)
    encoder = CountingEncoder()
    embed_splits(SPLITS, encoder, cache)
    assert encoder.batches == [["a tree"]]


def test_cache_keys_differ_by_encoder_and_sentences(cache):
    embed_splits(SPLITS, CountingEncoder(), cache)
    other = CountingEncoder(fingerprint="bb")
    embed_splits(SPLITS, other, cache)
    assert other.times_loaded == 1
    assert len({cache_key("a", ["x", "yz"]), cache_key("a", ["xy", "z"]), cache_key("a", ["yz", "x"])}) == 3


def test_progress_counts_sentences(cache):
    many = {"train": scored_pairs(*((f"sentence {i}", "one") for i in range(BATCH_SIZE + 10)))}
    seen = []
    embed_splits(many, CountingEncoder(), cache, on_progress=lambda *counts: seen.append(counts))
    assert seen == [(BATCH_SIZE, BATCH_SIZE + 11), (BATCH_SIZE + 11, BATCH_SIZE + 11)]


def test_the_dimension_is_checked_after_one_batch_and_when_cached(cache):
    def refuse(dimension):
        raise InputError(f"not {dimension}")

    encoder = CountingEncoder()
    with pytest.raises(InputError, match="not 6"):
        embed_splits(SPLITS, encoder, cache, validate_dim=refuse)
    embed_splits(SPLITS, CountingEncoder(), cache)
    with pytest.raises(InputError, match="not 6"):
        embed_splits(SPLITS, encoder, cache, validate_dim=refuse)
    assert len(encoder.batches) == 1


def test_vectors_that_are_not_finite_are_refused(cache):
    encoder = CountingEncoder()
    encoder.encode = lambda texts: np.full((len(texts), 6), np.nan)
    with pytest.raises(InputError, match="not finite"):
        embed_splits(SPLITS, encoder, cache)
    assert not cache.folder.exists()


def test_changed_weights_are_refused(tmp_path, tiny_encoder):
    shutil.copytree(tiny_encoder, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    encoder = replace(resolve_encoder(str(tmp_path / "copy")), weights_sha256=file_sha256(weights))
    assert encoder.load()(["a cat"]).shape == (1, 64)
    flip_bits(weights)
    with pytest.raises(InputError, match="damaged or missing: reinstall"):
        encoder.load()


def test_the_default_encoder_has_the_pinned_weights():
    encoder = resolve_encoder("all-MiniLM-L6-v2")
    assert file_sha256(encoder.folder / "model.safetensors") == encoder.weights_sha256


@pytest.mark.parametrize("name", ["./no/such/folder", "", "no-such-encoder"])
def test_an_unknown_encoder_is_refused_in_one_line(name, tmp_path):
    assert refusal(resolve_encoder, name or str(tmp_path))


def test_cached_vectors_are_read_without_importing_sentence_transformers(cache, tiny_encoder):
    program = """
import sys
from pathlib import Path
from tests.data.test_encoder import SPLITS
from twinsqueeze.data.encoder import embed_splits, resolve_encoder
from twinsqueeze.utils.disk_cache import DiskCache
encoded = embed_splits(SPLITS, resolve_encoder(sys.argv[1]), DiskCache(Path(sys.argv[2])))
print("sentence_transformers" in sys.modules, encoded["train"].embeddings.tobytes().hex())
"""
    encoded = embed_splits(SPLITS, resolve_encoder(str(tiny_encoder)), cache)
    arguments = ["-c", program, str(tiny_encoder), str(cache.folder)]
    with ForkedProcess(arguments, {}, ROOT) as process:
        output, errors = process.communicate()
    assert (output.split(), errors) == (["False", encoded["train"].embeddings.tobytes().hex()], "")


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

    vectors = rounded.load()(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, unit_rows(means.numpy()), atol=1e-6)
    assert 0 < np.abs(vectors - plain.load()(texts)).max() < 0.02
    assert rounded.name == f"{plain.name}:bfloat16"
    assert rounded.fingerprint != plain.fingerprint


def test_a_folder_is_named_so_that_it_is_found_from_anywhere(tiny_encoder, tmp_path, monkeypatch):
    (tmp_path / "b").symlink_to(tiny_encoder)
    monkeypatch.chdir(tmp_path)
    for suffix in ("", ":bfloat16"):
        assert resolve_encoder(f"b{suffix}").absolute_name == f"{tiny_encoder.resolve()}{suffix}"
        name = f"all-MiniLM-L6-v2{suffix}"
        assert resolve_encoder(name).absolute_name == name
