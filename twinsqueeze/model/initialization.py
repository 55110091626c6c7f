"""Initial weights of a training."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from twinsqueeze.model.compressor import Layer, layer_sizes
from twinsqueeze.model.quantizers import balance_subspaces
from twinsqueeze.recipe import Recipe
from twinsqueeze.types import FloatArray


def initial_layers(
    recipe: Recipe, vectors: FloatArray, generator: np.random.Generator, teacher: Layer | None = None
) -> list[Layer]:
    """Returns the initial layers of one seed, given the (N, d) unit vectors of the train sentences.

    If `recipe.init` is `teacher`, a linear compressor starts with the principal components of the teacher's d outputs.
    """
    sizes = layer_sizes(recipe.architecture, vectors.shape[1], recipe.dim)
    if recipe.architecture == "mlp":
        return kaiming_uniform_layers(sizes, generator)
    return [_linear_layer(recipe, vectors, generator, teacher)]


def _linear_layer(recipe: Recipe, vectors: FloatArray, generator: np.random.Generator, teacher: Layer | None) -> Layer:
    if recipe.init == "random":
        # A sign carries most information if half the sentences are on either side.
        center = None if recipe.quantizer == "none" else vectors.mean(0)
        return random_orthogonal_layer((vectors.shape[1], recipe.dim), generator, center)
    weight, bias, variances = pca_layer(vectors, recipe.dim, teacher)
    outputs = vectors @ weight.T + bias
    if recipe.quantizer == "none":
        scale = 1 / np.linalg.norm(outputs, axis=1).mean()
        return _to_layer(weight * scale, bias * scale)
    # Outputs with a root mean square of 0.5 are small enough for the learning rate to move them.
    scale = 0.5 / np.sqrt(np.square(outputs).mean())
    if recipe.quantizer == "product":
        order = balance_subspaces(variances.tolist(), recipe.subvector_dim)
        return _to_layer(weight[order] * scale, bias[order] * scale)
    # The rotation spreads the variance evenly: a sign of the first component is stored like that of the last one.
    rotation = _random_orthogonal(generator, recipe.dim, recipe.dim) * scale
    return _to_layer(rotation @ weight, rotation @ bias)


def kaiming_uniform_layers(sizes: Sequence[int], generator: np.random.Generator) -> list[Layer]:
    """Returns layers initialized as `nn.Linear` is by default: uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in)."""
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        bound = 1.0 / math.sqrt(fan_in)
        weight = generator.uniform(-bound, bound, size=(fan_out, fan_in))
        layers.append(_to_layer(weight, generator.uniform(-bound, bound, size=fan_out)))
    return layers


def random_orthogonal_layer(sizes: Sequence[int], generator: np.random.Generator, center: FloatArray | None) -> Layer:
    """Returns a random projection between two `sizes`, with orthonormal rows, that projects `center` to zero."""
    weight = _random_orthogonal(generator, *sizes)
    return _to_layer(weight, np.zeros(len(weight)) if center is None else -(weight @ center))


def pca_layer(vectors: FloatArray, dim: int, teacher: Layer | None = None) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns a linear layer to the first principal components of vectors, or of the outputs of a teacher.

    With the teacher's outputs y = V x + c and the first eigenvectors P of the covariance of y / |y|, the layer is
    P (y - mean(y)). The covariance is of directions, since a cosine compares directions. Without a teacher, V is the
    identity and c is zero. Returns the weight (dim, d), the bias and the components' variances, largest first; float64.
    """
    if teacher is None:
        slope, offset = np.eye(vectors.shape[1]), np.zeros(vectors.shape[1])
    else:
        slope, offset = (tensor.cpu().numpy().astype(np.float64) for tensor in teacher)
    outputs = vectors @ slope.T + offset
    directions = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    variances, axes = np.linalg.eigh(np.cov(directions.T))
    components = axes[:, ::-1][:, :dim].T
    return components @ slope, components @ (offset - outputs.mean(0)), variances[::-1][:dim]


def _random_orthogonal(generator: np.random.Generator, input_dim: int, dim: int) -> FloatArray:
    q, r = np.linalg.qr(generator.normal(size=(input_dim, dim)))
    return (q * np.sign(np.diag(r))).T


def _to_layer(weight: FloatArray, bias: FloatArray) -> Layer:
    return torch.from_numpy(weight.astype(np.float32, order="C")), torch.from_numpy(bias.astype(np.float32))
