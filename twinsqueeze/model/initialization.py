"""The weights that a training begins with."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from twinsqueeze.model.compressor import Layer, layer_sizes
from twinsqueeze.model.quantizers import balance_subspaces
from twinsqueeze.recipe import Recipe
from twinsqueeze.types import FloatArray

# Root mean square of the numbers that a quantised compressor begins with: small enough for the learning rate to move.
QUANTISED_SCALE = 0.5


def initial_layers(
    recipe: Recipe, vectors: FloatArray, generator: np.random.Generator, head: Layer | None = None
) -> list[Layer]:
    """The layers that a seed begins with.

    Args:
        recipe: What to begin.
        vectors: (N, d), the train sentences' vectors of length 1.
        generator: The seed's, of weights.
        head: A linear layer of d outputs whose components to begin with, where the recipe asks for it.

    Returns:
        For each layer the weight (out, in) and the bias (out,), float32.
    """
    sizes = layer_sizes(recipe.architecture, vectors.shape[1], recipe.dim)
    if recipe.architecture == "mlp":
        return uniform_layers(sizes, generator)
    layer = _linear_layer(recipe, vectors, generator, head)
    return [layer] if recipe.architecture == "linear" else add_residual_branch(layer, sizes[1], generator)


def _linear_layer(recipe: Recipe, vectors: FloatArray, generator: np.random.Generator, head: Layer | None) -> Layer:
    if recipe.init == "random":
        # Signs tell most where half the sentences are on either side.
        centre = None if recipe.precision == "float32" else vectors.mean(0)
        return orthogonal_layer((vectors.shape[1], recipe.dim), generator, centre)
    weight, bias, variances = pca_layer(vectors, recipe.dim, head)
    outputs = vectors @ weight.T + bias
    if recipe.precision == "float32":
        scale = 1 / np.linalg.norm(outputs, axis=1).mean()
        return _layer(weight * scale, bias * scale)
    scale = QUANTISED_SCALE / np.sqrt(np.square(outputs).mean())
    if recipe.precision == "product":
        order = balance_subspaces(variances.tolist(), recipe.subvector_dim)
        return _layer(weight[order] * scale, bias[order] * scale)
    # A sign says as little of the first component as of the last one.
    rotation = _orthogonal(generator, recipe.dim, recipe.dim) * scale
    return _layer(rotation @ weight, rotation @ bias)


def add_residual_branch(layer: Layer, hidden: int, generator: np.random.Generator) -> list[Layer]:
    """Two layers with ReLU between them that do what a linear one does, with units to learn more.

    A number z is carried as ReLU(z) and ReLU(-z), whose difference it is. The other units begin as PyTorch's do,
    without biases, and what they say counts nothing yet: a residual branch (He et al. 2016, arXiv 1512.03385) in plain
    layers.

    Args:
        layer: The linear layer, of `dim` outputs.
        hidden: Units between the two, at least 2 * dim.
        generator: What the directions are drawn from.

    Returns:
        Weights (hidden, d) and (dim, hidden) with biases, float32.
    """
    weight, bias = (part.numpy() for part in layer)
    dim, dimension = weight.shape
    bound = 1.0 / math.sqrt(dimension)
    others = generator.uniform(-bound, bound, size=(hidden - 2 * dim, dimension))
    carried = np.concatenate([np.eye(dim), -np.eye(dim), np.zeros((dim, hidden - 2 * dim))], 1)
    return [
        _layer(np.concatenate([weight, -weight, others]), np.concatenate([bias, -bias, np.zeros(hidden - 2 * dim)])),
        _layer(carried, np.zeros(dim)),
    ]


def uniform_layers(sizes: Sequence[int], generator: np.random.Generator) -> list[Layer]:
    """PyTorch's default initialisation of `nn.Linear`, drawn from a generator.

    Weights and biases are uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in) (what `kaiming_uniform_` with a = sqrt(5)
    comes to).

    Returns:
        For each layer the weight (out, in) and the bias (out,), float32.
    """
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        bound = 1.0 / math.sqrt(fan_in)
        weight = generator.uniform(-bound, bound, size=(fan_out, fan_in))
        bias = generator.uniform(-bound, bound, size=fan_out)
        layers.append(_layer(weight, bias))
    return layers


def orthogonal_layer(sizes: Sequence[int], generator: np.random.Generator, centre: FloatArray | None) -> Layer:
    """A random projection with orthogonal rows of length 1, uniform over all of them.

    Args:
        sizes: Of vectors and of what they are projected to.
        generator: What it is drawn from.
        centre: (d,) what is projected to 0, None for 0.
    """
    weight = _orthogonal(generator, *sizes)
    return _layer(weight, np.zeros(len(weight)) if centre is None else -(weight @ centre))


def pca_layer(vectors: FloatArray, dim: int, head: Layer | None = None) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A linear layer to the first principal components of some vectors, or of what a head makes of them.

    With the head's outputs y = V x + c and the first eigenvectors P of the covariance of y / |y|, the layer is
    P (y - mean(y)). Components are of directions, which is what a cosine compares.

    Args:
        vectors: (N, d) of length 1.
        dim: Components, at most d.
        head: The linear layer, None for the vectors as they are.

    Returns:
        The weight (dim, d), the bias (dim,) and the components' variances (dim,) in falling order, float64.
    """
    if head is None:
        slope, offset = np.eye(vectors.shape[1]), np.zeros(vectors.shape[1])
    else:
        slope, offset = (part.cpu().numpy().astype(np.float64) for part in head)
    outputs = vectors @ slope.T + offset
    directions = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    variances, axes = np.linalg.eigh(np.cov(directions.T))
    chosen = axes[:, ::-1][:, :dim].T
    return chosen @ slope, chosen @ (offset - outputs.mean(0)), variances[::-1][:dim]


def _orthogonal(generator: np.random.Generator, dimension: int, dim: int) -> FloatArray:
    basis, upper = np.linalg.qr(generator.normal(size=(dimension, dim)))
    rows: FloatArray = (basis * np.sign(np.diag(upper))).T
    return rows


def _layer(weight: FloatArray, bias: FloatArray) -> Layer:
    return torch.from_numpy(weight.astype(np.float32, order="C")), torch.from_numpy(bias.astype(np.float32))
