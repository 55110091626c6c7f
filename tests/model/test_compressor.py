from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load
from scipy import stats
from sentence_transformers.util.quantization import quantize_embeddings
from torch import nn

from twinsqueeze.model.checkpoint import serialize_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork, layer_sizes
from twinsqueeze.model.initialization import kaiming_uniform_layers, random_orthogonal_layer
from twinsqueeze.model.quantizers import SignQuantizer

LAYER = {"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2)}


def sequential(sizes: tuple[int, ...]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for i, o in pairwise(sizes):
        modules += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def test_layer_sizes_of_each_architecture():
    assert layer_sizes("mlp", 384, 32) == (384, 128, 64, 32)
    assert layer_sizes("linear", 384, 32) == (384, 32)
    with pytest.raises(ValueError, match="unknown architecture 'cnn'"):
        layer_sizes("cnn", 384, 32)


def test_initial_weights_are_distributed_like_pytorchs():
    torch.manual_seed(0)
    sizes = (384, 128, 64)
    layers = kaiming_uniform_layers(sizes, np.random.default_rng(0))
    for ours, theirs in zip(chain(*layers), sequential(sizes).parameters(), strict=True):
        assert ours.shape == theirs.shape
        assert stats.ks_2samp(ours.numpy().ravel(), theirs.detach().numpy().ravel()).pvalue > 0.001


def test_weights_of_a_sequential_give_its_vectors_and_are_saved_as_its_own():
    torch.manual_seed(1)
    model = sequential((24, 16, 16, 16, 12, 12, 8))  # layer 10 is behind layer 8
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    compressor = CompressorNetwork.from_state_dict(dict(sorted(state.items())))
    vectors = torch.randn(50, 24)
    expected = nn.functional.normalize(model(vectors), dim=1)
    torch.testing.assert_close(compressor.compress(vectors), expected.detach(), rtol=0, atol=1e-6)
    saved = load(serialize_checkpoint(compressor, None))
    torch.testing.assert_close(saved, dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "at least one layer"),
        ({"0.weight": torch.zeros(2, 3)}, "not a stack of linear layers: 0.bias"),
        (LAYER | {"norm.scale": torch.zeros(2)}, "norm.scale"),
        (LAYER | {"0.bias": torch.zeros(3)}, r"not \(2, 3\) and \(3,\)"),
        (LAYER | {"1.weight": torch.zeros(2, 3), "1.bias": torch.zeros(2)}, "2 outputs cannot feed one of 3 inputs"),
    ],
)
def test_a_state_dict_of_something_else_is_an_error(state, message):
    with pytest.raises(ValueError, match=message):
        CompressorNetwork.from_state_dict(state)


def test_random_orthogonal_layers_are_distributed_like_scipys_orthogonal_matrices():
    ours = np.stack([random_orthogonal_layer((20, 5), np.random.default_rng(seed), None)[0] for seed in range(60)])
    theirs = stats.ortho_group.rvs(20, size=60, random_state=0)[:, :5]
    for row in range(5):
        assert stats.ks_2samp(ours[:, row].ravel(), theirs[:, row].ravel()).pvalue > 0.001


def test_sign_vectors_compare_like_the_bits_that_sentence_transformers_packs():
    layers = [random_orthogonal_layer((24, 16), np.random.default_rng(0), None)]
    compressor = CompressorNetwork(layers, SignQuantizer())
    vectors = torch.randn(30, 24)
    bits = np.unpackbits(quantize_embeddings(compressor.compress(vectors).numpy(), precision="ubinary"), axis=1)
    signs = compressor.compress_as_stored(vectors)
    np.testing.assert_array_equal(signs.numpy() > 0, bits == 1)
    differing = (bits[:, None] != bits[None]).sum(-1)  # cosine of signs = 1 - 2 * Hamming distance / dim
    np.testing.assert_allclose((signs @ signs.T).numpy(), 1 - 2 * differing / 16, atol=1e-6)
    assert torch.equal(CompressorNetwork(layers).compress_as_stored(vectors), compressor.compress(vectors))
