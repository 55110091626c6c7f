from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load
from scipy import stats
from torch import nn

from twinsqueeze.model.checkpoint import serialize_checkpoint
from twinsqueeze.model.compressor import CompressorBatch, CompressorNetwork, layer_sizes
from twinsqueeze.model.initialization import kaiming_uniform_layers, random_orthogonal_layer
from twinsqueeze.model.quantizers import SignQuantizer

CPU = torch.device("cpu")


def sequential(sizes: tuple[int, ...]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for i, o in pairwise(sizes):
        modules += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def test_layer_sizes_of_each_architecture():
    assert layer_sizes("mlp", 384, 32) == (384, 128, 64, 32)
    assert layer_sizes("linear", 384, 32) == (384, 32)
    assert layer_sizes("residual", 384, 32) == (384, 64 + 1024, 32)
    assert layer_sizes("residual", 384, 30)[1] % 16 == 0
    with pytest.raises(ValueError, match="unknown architecture 'cnn'"):
        layer_sizes("cnn", 384, 32)


def test_initial_weights_are_distributed_like_pytorchs():
    torch.manual_seed(0)
    for ours, theirs in zip(
        kaiming_uniform_layers((384, 128, 64), np.random.default_rng(0)),
        (nn.Linear(384, 128), nn.Linear(128, 64)),
        strict=True,
    ):
        for a, b in zip(ours, (theirs.weight, theirs.bias), strict=True):
            assert a.shape == b.shape
            assert stats.ks_2samp(a.numpy().ravel(), b.detach().numpy().ravel()).pvalue > 0.001


def test_weights_of_other_programs_give_the_same_vectors(tmp_path):
    torch.manual_seed(1)
    model = sequential((384, 128, 64, 32))
    state = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    compressor = CompressorNetwork.from_state_dict(dict(reversed(state.items())))
    vectors = torch.randn(50, 384)
    expected = nn.functional.normalize(model(vectors), dim=1)
    torch.testing.assert_close(compressor.compress(vectors), expected.detach(), rtol=0, atol=1e-6)


def test_a_saved_compressor_loads_into_a_sequential():
    compressor = CompressorBatch([kaiming_uniform_layers((24, 128, 64, 10), np.random.default_rng(0))], CPU).replica(0)
    model = sequential((24, 128, 64, 10))
    model.load_state_dict(load(serialize_checkpoint(compressor, None)))
    vectors = torch.randn(5, 24)
    expected = nn.functional.normalize(model(vectors), dim=1).detach()
    torch.testing.assert_close(compressor.compress(vectors), expected, rtol=0, atol=1e-6)


def test_layers_are_sorted_by_number():
    sizes = [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 2]
    state = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        state |= {f"fc{i}.weight": torch.rand(fan_out, fan_in), f"fc{i}.bias": torch.rand(fan_out)}
    assert CompressorNetwork.from_state_dict(dict(sorted(state.items()))).dim == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "at least one layer"),
        ({"0.weight": torch.zeros(2, 3)}, "not a stack of linear layers: 0.bias"),
        ({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2), "norm.scale": torch.zeros(2)}, "norm.scale"),
        ({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(3)}, r"not \(2, 3\) and \(3,\)"),
        (
            {f"{i}.{k}": v for i in (0, 1) for k, v in (("weight", torch.zeros(2, 3)), ("bias", torch.zeros(2)))},
            "2 outputs cannot feed one of 3 inputs",
        ),
    ],
)
def test_a_state_dict_of_something_else_is_an_error(state, message):
    with pytest.raises(ValueError, match=message):
        CompressorNetwork.from_state_dict(state)


def test_gradient_matches_autograd():
    """Against one `nn.Sequential` per replica, with and without padding."""
    for dim in (10, 16):
        sizes = (24, 128, 64, dim)
        replicas = [kaiming_uniform_layers(sizes, np.random.default_rng(seed)) for seed in range(3)]
        model = CompressorBatch(replicas, CPU)
        vectors, weights = torch.randn(3, 9, 24), torch.randn(3, 9, dim)
        activations = model.forward(vectors)
        gradient = torch.zeros_like(activations[-1])
        gradient[..., :dim] = weights
        model.backward(activations, gradient)
        for r, layers in enumerate(replicas):
            reference = sequential(sizes)
            parameters = list(reference.parameters())
            for parameter, value in zip(parameters, (t for layer in layers for t in layer), strict=True):
                parameter.data.copy_(value)
            outputs = reference(vectors[r])
            torch.testing.assert_close(activations[-1][r, :, :dim], outputs.detach(), rtol=0, atol=1e-6)
            (outputs * weights[r]).sum().backward()
            gradients = [tensor[r] for layer in model._gradients for tensor in layer]
            for found, parameter in zip(gradients, parameters, strict=True):
                expected = parameter.grad
                torch.testing.assert_close(found.squeeze(0)[: len(expected)], expected, rtol=1e-4, atol=1e-5)


def test_random_orthogonal_layers_are_uniform_and_centered():
    """Orthonormal rows, distributed like SciPy's orthogonal matrices; the center is projected to zero."""
    center = np.random.default_rng(0).random(20)
    layers = [random_orthogonal_layer((20, 5), np.random.default_rng(seed), center) for seed in range(60)]
    for weight, bias in layers:
        torch.testing.assert_close(weight @ weight.T, torch.eye(5), atol=1e-5, rtol=0)
        np.testing.assert_allclose(weight.numpy() @ center + bias.numpy(), 0, atol=1e-5)
    ours = np.stack([weight.numpy() for weight, _ in layers])
    theirs = stats.ortho_group.rvs(20, size=60, random_state=0)[:, :5]
    for row in range(5):
        assert stats.ks_2samp(ours[:, row].ravel(), theirs[:, row].ravel()).pvalue > 0.001
    (_, bias) = random_orthogonal_layer((20, 5), np.random.default_rng(0), None)
    assert not bias.any()


def test_sign_vectors_compare_like_the_bits_that_sentence_transformers_packs():
    from sentence_transformers.util.quantization import quantize_embeddings

    layers = [random_orthogonal_layer((24, 16), np.random.default_rng(0), None)]
    compressor = CompressorNetwork(layers, SignQuantizer())
    vectors = torch.randn(30, 24)
    bits = np.unpackbits(quantize_embeddings(compressor.compress(vectors).numpy(), precision="ubinary"), axis=1)
    signs = compressor.compress_as_stored(vectors)
    np.testing.assert_array_equal(signs.numpy() > 0, bits == 1)
    differing = (bits[:, None] != bits[None]).sum(-1)  # cosine of signs = 1 - 2 * Hamming distance / dim
    np.testing.assert_allclose((signs @ signs.T).numpy(), 1 - 2 * differing / 16, atol=1e-6)
    assert torch.equal(CompressorNetwork(layers).compress_as_stored(vectors), compressor.compress(vectors))
