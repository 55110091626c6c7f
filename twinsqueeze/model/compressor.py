"""R compressors as one batched module.

A compressor is a stack of linear layers with ReLU between them. R of them, of one shape, run as batched matrix
products: a grid of trainings costs little more than the arithmetic.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.model.quantizers import CENTROIDS, ProductQuantizer, Quantizer, SignQuantizer
from twinsqueeze.recipe import bytes_per_vector
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.similarity import pairwise_cosine

MLP_HIDDEN = (128, 64)
# Units of a wide compressor besides those that carry the linear layer it begins as.
WIDE_HIDDEN = 1024
# Floats in the widest vector register: every layer has a multiple of this many outputs while it is trained.
ALIGNMENT = 16
# A state's tensor beside those of layers.
CODEBOOKS = "codebooks"
Layer = tuple[torch.Tensor, torch.Tensor]


def layer_sizes(architecture: str, encoder_dimension: int, dim: int) -> tuple[int, ...]:
    """Widths from the encoder's vector to the compressed one, both included."""
    if architecture == "mlp":
        return (encoder_dimension, *MLP_HIDDEN, dim)
    if architecture == "linear":
        return (encoder_dimension, dim)
    if architecture == "residual":
        carrying = 2 * dim + -2 * dim % ALIGNMENT
        return (encoder_dimension, carrying + WIDE_HIDDEN, dim)
    raise ValueError(f"unknown architecture {architecture!r}")


class CompressorBatch:
    """R compressors of one shape, to be trained.

    All weights lie in one flat tensor and their gradient in another, so that an optimiser's step is one kernel. The
    gradient is written out, which saves autograd's bookkeeping, half the time of a step at R = 1. The last layer is
    filled up with rows of zeros, which stay zeros: kernels treat the ends of a tensor otherwise than its middle, and a
    replica's bits must not depend on its place.

    Args:
        replicas: For each of the R compressors its layers, each a weight (out, in) and a bias (out,).
        device: Where to keep them.
        quantiser: What their vectors are measured through, None for floats.
        carried: Numbers z that the first units carry past ReLU as ReLU(z) and the next as ReLU(-z), for the second
            layer to take the difference: these units are trained as the one linear layer that they stand for.

    Attributes:
        parameters: (n,) float32, every weight and bias of every replica.
        gradient: (n,) float32, what `backward` found.
        layers: For each layer the weights (R, out, in) and biases (R, 1, out), views of `parameters`.
    """

    def __init__(
        self,
        replicas: Sequence[Sequence[Layer]],
        device: torch.device,
        quantiser: Quantizer | None = None,
        carried: int = 0,
    ) -> None:
        self.carried = carried
        self.dim = len(replicas[0][-1][1])
        self.quantiser = quantiser
        stacked = []
        for layer in zip(*replicas, strict=True):
            rows = -len(layer[0][1]) % ALIGNMENT
            stacked.append(torch.stack([functional.pad(weight, (0, 0, 0, rows)) for weight, _ in layer]))
            stacked.append(torch.stack([functional.pad(bias, (0, rows)) for _, bias in layer]).unsqueeze(1))
        self.parameters = torch.cat([tensor.flatten() for tensor in stacked]).to(device)
        self.gradient = torch.zeros_like(self.parameters)
        shapes = [tensor.shape for tensor in stacked]
        self.layers = _layers(self.parameters, shapes)
        self._gradients = _layers(self.gradient, shapes)

    def __len__(self) -> int:
        return int(self.layers[0][0].shape[0])

    def forward(self, vectors: torch.Tensor) -> list[torch.Tensor]:
        """Each replica's layers on its own vectors.

        Args:
            vectors: (R, N, d) float32.

        Returns:
            The input of every layer and, last, what the last layer puts out: (R, N, dim or more), not yet of length 1.
            Numbers behind the first `dim` are 0.
        """
        activations = [vectors]
        for i, (weight, bias) in enumerate(self.layers):
            if i:
                activations[-1].relu_()
            activations.append(torch.baddbmm(bias, activations[-1], weight.transpose(1, 2)))
        return activations

    def backward(self, activations: Sequence[torch.Tensor], gradient: torch.Tensor) -> None:
        """Sets `self.gradient`.

        Args:
            activations: What `forward` returned.
            gradient: Of the loss with respect to the last of them, of its shape.
        """
        for i in reversed(range(len(self.layers))):
            of_weight, of_bias = self._gradients[i]
            torch.bmm(gradient.transpose(1, 2), activations[i], out=of_weight)
            torch.sum(gradient, 1, keepdim=True, out=of_bias)
            if i:
                gradient = torch.bmm(gradient, self.layers[i][0])
                gradient = torch.ops.aten.threshold_backward(gradient, activations[i], 0)  # of ReLU
        if self.carried:
            self._tie_skip_gradients()

    def _tie_skip_gradients(self) -> None:
        """Makes the gradient of the units that carry a linear layer that of this layer.

        Of z = ReLU(z) - ReLU(-z), the gradient reaches one half where z > 0 and the other, negated, elsewhere. Adam
        takes equal and opposite steps of equal and opposite gradients, and none of zeros.
        """
        (of_weight, of_bias), (of_difference, _) = self._gradients[:2]
        for gradient in (of_weight, of_bias.mT):
            positive, negative = gradient[:, : 2 * self.carried].chunk(2, 1)
            positive -= negative
            torch.neg(positive, out=negative)
        of_difference[:, :, : 2 * self.carried] = 0

    def replica(self, index: int) -> "CompressorNetwork":
        """One of the compressors, sharing its weights: it changes when they are trained on."""
        *hidden, last = [(weight[index], bias[index, 0]) for weight, bias in self.layers]
        quantiser = self.quantiser.replica(index) if self.quantiser else None
        return CompressorNetwork([*hidden, (last[0][: self.dim], last[1][: self.dim])], quantiser)


def _layers(flat: torch.Tensor, shapes: Sequence[torch.Size]) -> list[Layer]:
    parts = flat.split([shape.numel() for shape in shapes])
    views = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    return list(zip(views[::2], views[1::2], strict=True))


class CompressorNetwork:
    """One compressor, for use and not for training.

    Args:
        layers: Weights (out, in) and biases (out,), float32, from the encoder's dimension to `dim`.
        quantiser: What its vectors are measured through, None for floats.

    Raises:
        ValueError: If the layers do not fit one behind the other.
    """

    def __init__(self, layers: Sequence[Layer], quantiser: Quantizer | None = None) -> None:
        if not layers:
            raise ValueError("a compressor needs at least one layer")
        if not all(weight.numel() for weight, _ in layers):
            raise ValueError("a layer without numbers")
        for weight, bias in layers:
            if weight.ndim != 2 or bias.shape != weight.shape[:1]:
                shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
                raise ValueError(f"a layer is a weight (out, in) and a bias (out,), not {shapes}")
        for (first, _), (second, _) in pairwise(layers):
            if second.shape[1] != first.shape[0]:
                raise ValueError(f"a layer of {first.shape[0]} outputs can't feed one of {second.shape[1]} inputs")
        self.layers = [(w.float().contiguous(), b.float().contiguous()) for w, b in layers]
        self.quantiser = quantiser

    @property
    def precision(self) -> str:
        """What its vectors are measured as."""
        return self.quantiser.precision if self.quantiser else "float32"

    @property
    def codebooks(self) -> torch.Tensor | None:
        """(M, K, P) float32, those of product codes: K centroids for each of M parts of P numbers."""
        return self.quantiser.codebooks[0] if isinstance(self.quantiser, ProductQuantizer) else None

    @property
    def part(self) -> int | None:
        """Numbers that product codes make one byte of; None where there are none."""
        return self.quantiser.part if isinstance(self.quantiser, ProductQuantizer) else None

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of a compressed vector as it is measured."""
        return bytes_per_vector(self.precision, self.dim, self.part)

    @property
    def input_dimension(self) -> int:
        """Numbers in an encoder's vector."""
        return int(self.layers[0][0].shape[1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.layers[0][0].device

    @property
    def dim(self) -> int:
        """Numbers in a compressed vector."""
        return int(self.layers[-1][0].shape[0])

    def snapshot(self) -> "CompressorNetwork":
        """A copy on the CPU that no training changes."""
        layers = [(weight.cpu().clone(), bias.cpu().clone()) for weight, bias in self.layers]
        return CompressorNetwork(layers, self._quantiser_on(torch.device("cpu")))

    @torch.inference_mode()
    def compress(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, d) float32 to (N, dim) float32, each vector of length 1."""
        hidden = vectors
        for i, (weight, bias) in enumerate(self.layers):
            if i:
                hidden = torch.relu_(hidden)
            hidden = torch.addmm(bias, hidden, weight.T)
        return functional.normalize(hidden, dim=-1)

    @torch.inference_mode()
    def compress_as_stored(self, vectors: torch.Tensor) -> torch.Tensor:
        """What is measured: `compress` as its precision leaves it, (N, dim) float32 of length 1 too."""
        compressed = self.compress(vectors)
        if self.quantiser is None:
            return compressed
        return functional.normalize(self.quantiser.dequantized(compressed[None])[0], dim=-1)

    def to(self, device: torch.device) -> "CompressorNetwork":
        """The same compressor on a device."""
        layers = [(weight.to(device), bias.to(device)) for weight, bias in self.layers]
        return CompressorNetwork(layers, self._quantiser_on(device))

    def _quantiser_on(self, device: torch.device) -> Quantizer | None:
        return self.quantiser if self.codebooks is None else ProductQuantizer(self.codebooks[None].to(device))

    def to_bytes(self, metadata: Mapping[str, str]) -> bytes:
        """A safetensors file of `state_dict`, with text about it in its header."""
        return save(self.state_dict(), dict(metadata))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors: those of layers named as in `nn.Sequential(Linear, ReLU, Linear, …)`, and codebooks if any."""
        layers = {
            f"{2 * i}.{part}": tensor
            for i, layer in enumerate(self.layers)
            for part, tensor in zip(("weight", "bias"), layer, strict=True)
        }
        return layers if self.codebooks is None else {**layers, CODEBOOKS: self.codebooks}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor], precision: str = "float32") -> Self:
        """The compressor whose linear layers are in `state`, in the order of their names.

        Any program's names do that end in `weight` and `bias`: `0.weight`, `fc1.weight`, `net.layers.0.weight`.

        Args:
            state: The tensors.
            precision: What its vectors are measured as, where there are no codebooks: float32 or binary.

        Raises:
            ValueError: If a weight lacks its bias, or the layers do not fit.
        """
        state = dict(state)
        codebooks = state.pop(CODEBOOKS, None)
        stems = [name.removesuffix("weight") for name in state if name.endswith("weight")]
        strangers = {n for n in state if n.removesuffix("weight").removesuffix("bias") not in stems}
        missing = {f"{stem}bias" for stem in stems} - set(state)
        if strangers or missing:
            raise ValueError(f"not a stack of linear layers: {', '.join(sorted(strangers | missing))}")
        stems.sort(key=_natural)
        quantiser: Quantizer | None = SignQuantizer() if precision == "binary" else None
        if codebooks is not None:
            quantiser = ProductQuantizer(codebooks.float()[None])
        compressor = cls([(state[f"{stem}weight"], state[f"{stem}bias"]) for stem in stems], quantiser)
        if codebooks is not None:
            parts, centroids, numbers = codebooks.shape
            if parts * numbers != compressor.dim or not 1 <= centroids <= CENTROIDS:
                raise ValueError(f"codebooks of shape {tuple(codebooks.shape)} for vectors of {compressor.dim} numbers")
        return compressor


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 behind layer 9."""
    words = "".join(c if c.isdigit() else f" {c} " for c in name).split()
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in words]


def predict_pair_cosines(compressor: CompressorNetwork, vectors: torch.Tensor, pairs: EncodedPairs) -> FloatArray:
    """The twins' cosine of every pair, (P,) float32; `vectors` are the pairs' embeddings on the compressor's device."""
    compressed = compressor.compress_as_stored(vectors)
    cosine = pairwise_cosine(compressed[pairs.first], compressed[pairs.second])
    return cosine.cpu().numpy()


def predict_pair_cosines_of_each(model: CompressorBatch, vectors: torch.Tensor, pairs: EncodedPairs) -> FloatArray:
    """Each replica's `predict_pair_cosines`, (R, P).

    One replica after the other: the products are large enough to fill the machine, memory does not grow with R, and a
    replica's bits can't depend on its company.
    """
    return np.stack([predict_pair_cosines(model.replica(r), vectors, pairs) for r in range(len(model))])
