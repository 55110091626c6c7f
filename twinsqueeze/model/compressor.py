"""The compressor: a stack of linear layers with ReLU between them, alone or as a batch of R replicas."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch.nn import functional

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.model.quantizers import NUM_CENTROIDS, ProductQuantizer, Quantizer, SignQuantizer
from twinsqueeze.recipe import bytes_per_vector
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.similarity import pairwise_cosine

# Floats in the widest vector register. In training, every layer has a multiple of this many outputs.
ALIGNMENT = 16
# Name of the product quantizer's tensor in a state dict.
CODEBOOKS = "codebooks"
# A weight (out, in) and a bias (out,).
Layer = tuple[torch.Tensor, torch.Tensor]


def layer_sizes(architecture: str, input_dim: int, dim: int) -> tuple[int, ...]:
    """Returns the widths of all layers, from the encoder's dimension to `dim`, both included."""
    if architecture == "mlp":
        return (input_dim, 128, 64, dim)
    if architecture == "linear":
        return (input_dim, dim)
    raise ValueError(f"unknown architecture {architecture!r}")


class CompressorBatch:
    """R compressors of one shape in training, computed as batched matrix products.

    All weights are views of one flat tensor and their gradients of another, so that an optimizer's step is one kernel.
    `backward` is written out, since autograd's bookkeeping takes half the time of a step at R = 1. Autograd:
    `nn.Sequential(Linear, ReLU, ..., Linear)` per replica. The last layer is padded with zero rows, which stay zero:
    kernels treat the end of a tensor differently, and a replica's bits must not depend on its place in the batch.
    """

    def __init__(
        self, replicas: Sequence[Sequence[Layer]], device: torch.device, quantizer: Quantizer | None = None
    ) -> None:
        self.dim = len(replicas[0][-1][1])
        self.quantizer = quantizer
        stacked = []
        for layer in zip(*replicas, strict=True):
            padding = -len(layer[0][1]) % ALIGNMENT
            stacked.append(torch.stack([functional.pad(weight, (0, 0, 0, padding)) for weight, _ in layer]))
            stacked.append(torch.stack([functional.pad(bias, (0, padding)) for _, bias in layer]).unsqueeze(1))
        # (n,) float32 each; `backward` sets the gradient.
        self.parameters = torch.cat([tensor.flatten() for tensor in stacked]).to(device)
        self.gradient = torch.zeros_like(self.parameters)
        # Per layer the weights (R, out, in) and biases (R, 1, out).
        shapes = [tensor.shape for tensor in stacked]
        self.layers, self._gradients = (_view_layers(flat, shapes) for flat in (self.parameters, self.gradient))

    def __len__(self) -> int:
        return int(self.layers[0][0].shape[0])

    def forward(self, vectors: torch.Tensor) -> list[torch.Tensor]:
        """Returns the input of every layer and the output of the last one, given each replica's (R, N, d) vectors.

        The output is (R, N, D), not normalized; D is dim padded with zeros to a multiple of `ALIGNMENT`.
        """
        activations = [vectors]
        for i, (weight, bias) in enumerate(self.layers):
            if i:
                activations[-1].relu_()
            activations.append(torch.baddbmm(bias, activations[-1], weight.transpose(1, 2)))
        return activations

    def backward(self, activations: Sequence[torch.Tensor], gradient: torch.Tensor) -> None:
        """Sets `self.gradient`, given the result of `forward` and the gradient of its last activation, (R, N, D)."""
        for i in reversed(range(len(self.layers))):
            weight_gradient, bias_gradient = self._gradients[i]
            torch.bmm(gradient.transpose(1, 2), activations[i], out=weight_gradient)
            torch.sum(gradient, 1, keepdim=True, out=bias_gradient)
            if i:
                gradient = torch.bmm(gradient, self.layers[i][0])
                gradient = torch.ops.aten.threshold_backward(gradient, activations[i], 0)  # of ReLU

    def replica(self, index: int) -> "CompressorNetwork":
        """Returns one of the compressors. It shares the weights, so training changes it."""
        *hidden, (weight, bias) = [(weight[index], bias[index, 0]) for weight, bias in self.layers]
        quantizer = self.quantizer.replica(index) if self.quantizer else None
        return CompressorNetwork([*hidden, (weight[: self.dim], bias[: self.dim])], quantizer)


def _view_layers(flat: torch.Tensor, shapes: Sequence[torch.Size]) -> list[Layer]:
    pieces = flat.split([shape.numel() for shape in shapes])
    views = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    return list(zip(views[::2], views[1::2], strict=True))


class CompressorNetwork:
    """One compressor for inference; layers that do not fit together are a `ValueError`."""

    def __init__(self, layers: Sequence[Layer], quantizer: Quantizer | None = None) -> None:
        if not layers or not all(weight.numel() for weight, _ in layers):
            raise ValueError("a compressor needs at least one layer, and none may be empty")
        for weight, bias in layers:
            if weight.ndim != 2 or bias.shape != weight.shape[:1]:
                shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
                raise ValueError(f"a layer is a weight (out, in) and a bias (out,), not {shapes}")
        for (first, _), (second, _) in pairwise(layers):
            if second.shape[1] != first.shape[0]:
                raise ValueError(f"a layer of {first.shape[0]} outputs cannot feed one of {second.shape[1]} inputs")
        self.layers = [(weight.float().contiguous(), bias.float().contiguous()) for weight, bias in layers]
        self.input_dim, self.dim = layers[0][0].shape[1], layers[-1][0].shape[0]
        self.quantizer = quantizer

    @property
    def precision(self) -> str:
        """Storage format of its vectors, as in `Recipe.precision`."""
        return self.quantizer.precision if self.quantizer else "float32"

    @property
    def codebooks(self) -> torch.Tensor | None:
        """(M * T, K, P) float32, T times K centroids of M subvectors of P floats; None without a product quantizer."""
        return self.quantizer.codebooks[0] if isinstance(self.quantizer, ProductQuantizer) else None

    @property
    def num_codes(self) -> int | None:
        """Bytes of a vector as product codes; None without a product quantizer."""
        return None if self.codebooks is None else len(self.codebooks)

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of a compressed vector at its precision."""
        return bytes_per_vector(self.precision, self.dim, self.num_codes)

    @property
    def device(self) -> torch.device:
        """The weights' device."""
        return self.layers[0][0].device

    def to(self, device: torch.device | str, *, copy: bool = False) -> "CompressorNetwork":
        """Returns the compressor on a device; with `copy`, it shares no memory with this one."""
        layers = [(weight.to(device, copy=copy), bias.to(device, copy=copy)) for weight, bias in self.layers]
        quantizer = self.quantizer
        if isinstance(quantizer, ProductQuantizer):
            quantizer = ProductQuantizer(quantizer.codebooks.to(device, copy=copy), quantizer.codes_per_subvector)
        return CompressorNetwork(layers, quantizer)

    @torch.inference_mode()
    def compress(self, vectors: torch.Tensor) -> torch.Tensor:
        """Compresses (N, d) float32 vectors to (N, dim) float32 unit vectors, without quantization."""
        hidden = vectors
        for i, (weight, bias) in enumerate(self.layers):
            if i:
                hidden = torch.relu_(hidden)
            hidden = torch.addmm(bias, hidden, weight.T)
        return functional.normalize(hidden, dim=-1)

    @torch.inference_mode()
    def compress_as_stored(self, vectors: torch.Tensor) -> torch.Tensor:
        """Compresses (N, d) float32 vectors to their dequantized form, (N, dim) float32 unit vectors."""
        compressed = self.compress(vectors)
        if self.quantizer is None:
            return compressed
        return functional.normalize(self.quantizer.dequantize(compressed[None])[0], dim=-1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the layers, named as in `nn.Sequential(Linear, ReLU, Linear, ...)`, and the codebooks if any."""
        state = {} if self.codebooks is None else {CODEBOOKS: self.codebooks}
        for i, (weight, bias) in enumerate(self.layers):
            state |= {f"{2 * i}.weight": weight, f"{2 * i}.bias": bias}
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor], precision: str = "float32") -> Self:
        """Builds a compressor from tensors of any program; a `ValueError` if they are not a stack of linear layers.

        Layers are in the order of their names, which end in `weight` and `bias`: `0.weight`, `net.layers.0.weight`.
        `precision` is float32 or binary; codebooks in `state` imply product.
        """
        layers = dict(state)
        codebooks = layers.pop(CODEBOOKS, None)
        prefixes = [name.removesuffix("weight") for name in layers if name.endswith("weight")]
        unknown = {name for name in layers if name.removesuffix("weight").removesuffix("bias") not in prefixes}
        missing = {f"{prefix}bias" for prefix in prefixes} - set(layers)
        if unknown or missing:
            raise ValueError(f"not a stack of linear layers: {', '.join(sorted(unknown | missing))}")
        prefixes.sort(key=_natural_order)
        stack = [(layers[f"{prefix}weight"], layers[f"{prefix}bias"]) for prefix in prefixes]
        compressor = cls(stack, SignQuantizer() if precision == "binary" else None)
        if codebooks is not None:
            tables, centroids, subvector_dim = codebooks.shape
            codes_per_subvector, rest = divmod(tables * subvector_dim, compressor.dim)
            if rest or compressor.dim % subvector_dim or not codes_per_subvector or not 1 <= centroids <= NUM_CENTROIDS:
                raise ValueError(f"codebooks of shape {tuple(codebooks.shape)} for {compressor.dim} dimensions")
            compressor.quantizer = ProductQuantizer(codebooks.float()[None], codes_per_subvector)
        return compressor


def _natural_order(prefix: str) -> list[str | int]:
    """Sort key that puts layer 10 behind layer 9."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", prefix.removesuffix("."))]


def predict_pair_cosines(compressor: CompressorNetwork, vectors: torch.Tensor, pairs: EncodedSplit) -> FloatArray:
    """Returns the cosine of every pair, (P,) float32; `vectors` are `pairs.embeddings` on the compressor's device."""
    compressed = compressor.compress_as_stored(vectors)
    return pairwise_cosine(compressed[pairs.first], compressed[pairs.second]).cpu().numpy()


def predict_pair_cosines_of_each(model: CompressorBatch, vectors: torch.Tensor, pairs: EncodedSplit) -> FloatArray:
    """Returns `predict_pair_cosines` of every replica, (R, P)."""
    # One at a time: memory does not grow with R, and the bits of a replica cannot depend on the others.
    return np.stack([predict_pair_cosines(model.replica(r), vectors, pairs) for r in range(len(model))])
