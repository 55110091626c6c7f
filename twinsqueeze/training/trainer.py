"""A training between epochs: the random streams of its seeds, its batches and its steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.model.compressor import CODEBOOKS, CompressorBatch, CompressorNetwork, Layer, layer_sizes
from twinsqueeze.model.initialization import initial_layers
from twinsqueeze.model.quantizers import ProductQuantizer, Quantizer, SignQuantizer, fit_codebooks
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.checkpointing import TrainerState
from twinsqueeze.training.losses import (
    LOSSES,
    SAMPLE_SIZE,
    L2Normalize,
    PairCosine,
    log_neighbor_probs,
    neighborhood_kl_loss,
    sample_with_neighbors,
)
from twinsqueeze.training.noise import add_noise, fill_uniform, noise_scale
from twinsqueeze.training.optimizer import FlatAdam, lr_at
from twinsqueeze.types import FloatArray, IntArray
from twinsqueeze.utils.similarity import nearest_neighbors
from twinsqueeze.utils.threads import BLAS_LOCK, batch_invariant_matmul


@dataclass(frozen=True)
class SeedStreams:
    """A seed's independent generators."""

    weights: np.random.Generator
    order: np.random.Generator
    noise: np.random.Generator
    neighbourhoods: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> "SeedStreams":
        """The streams of a seed, from the start."""
        children = np.random.SeedSequence(seed).spawn(4)
        return cls(*(np.random.Generator(np.random.PCG64(child)) for child in children))


STREAMS = tuple(field.name for field in fields(SeedStreams))
TEACHERS = "teachers"


class BatchedTrainer:
    """A training between epochs: A * S replicas, every alpha with every seed, seeds running fastest.

    Args:
        recipe: What the replicas share.
        alphas: The A strengths of noise.
        seeds: The S seeds.
        train: Pairs to train on.
        device: Where to train.
        heads: Of each seed, as from `train_heads`, for recipes that ask for them and are not gone on with.
        left: What `state` was of a training of the same, to go on from there; None to begin.
    """

    def __init__(
        self,
        recipe: Recipe,
        alphas: Sequence[float],
        seeds: Sequence[int],
        train: EncodedPairs,
        device: torch.device,
        heads: Sequence[Layer] | None = None,
        left: TrainerState | None = None,
    ) -> None:
        self.batch_size = min(recipe.batch_size, len(train))
        self.objective = LOSSES[recipe.loss]
        self.vectors = torch.from_numpy(train.sentences).to(device)
        self.twins = torch.from_numpy(np.stack([train.first, train.second]))  # (2, P)
        labels = scores_to_labels(train.scores, recipe.label_transform)
        self.labels = torch.from_numpy(labels.astype(np.float32))

        dimension = train.dimension
        scales = [noise_scale(alpha, dimension) for alpha in alphas]
        self.scales = torch.tensor(scales, dtype=torch.float32, device=device)
        self.noisy = any(scales)
        compared = min(SAMPLE_SIZE, len(self.vectors)) if recipe.neighbor_weight and recipe.num_neighbors else 0
        self.uniform = torch.zeros(len(seeds), 2 * self.batch_size + compared, dimension)

        self.streams = [SeedStreams.of(seed) for seed in seeds]
        if left is None:
            starts = heads if heads and recipe.init == "teacher" else [None] * len(seeds)
            with BLAS_LOCK:
                layers = [
                    initial_layers(recipe, self.vectors.cpu().numpy(), streams.weights, start)
                    for streams, start in zip(self.streams, starts, strict=True)
                ]
                quantiser = _make_quantizer(recipe, layers, self.vectors, seeds, len(alphas))
            teachers = heads if recipe.teacher == "projection" else None
        else:  # the weights are filled in below
            layers = [_empty(layer_sizes(recipe.architecture, dimension, recipe.dim))] * len(seeds)
            codebooks = left.tensors.get(CODEBOOKS)
            quantiser = _quantizer_for_replica(
                recipe.precision, None if codebooks is None else codebooks.clone().to(device)
            )
            teachers = _empty([dimension, dimension]) * len(seeds) if TEACHERS in left.tensors else None
        self.teachers = CompressorBatch([[head] for head in teachers], device) if teachers else None
        carried = recipe.dim if recipe.architecture == "residual" else 0
        self.model = CompressorBatch(layers * len(alphas), device, quantiser, carried)
        self.optimizer = FlatAdam(self.model.parameters, self.model.gradient, recipe.lr, recipe.weight_decay)
        self.recipe = recipe
        self.steps = recipe.epochs * math.ceil(len(train) / self.batch_size)
        self.steps_done = 0
        if left is not None:
            self._go_on_from(left)
        self.nearest = (
            nearest_neighbors(train.sentences, recipe.num_neighbors)
            if recipe.neighbor_weight and recipe.num_neighbors
            else None
        )

    def state(self) -> TrainerState:
        """All that the coming epochs follow from, besides what the trainer is made with; shares its memory."""
        streams = [{name: getattr(each, name).bit_generator.state for name in STREAMS} for each in self.streams]
        tensors = self._tensors()
        if isinstance(self.model.quantiser, ProductQuantizer):
            tensors[CODEBOOKS] = self.model.quantiser.codebooks
        return TrainerState(tensors, {"steps_done": self.steps_done, "streams": streams})

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {"parameters": self.model.parameters, **self.optimizer.state}
        return tensors if self.teachers is None else {**tensors, TEACHERS: self.teachers.parameters}

    def _go_on_from(self, left: TrainerState) -> None:
        for name, tensor in self._tensors().items():
            if left.tensors[name].shape != tensor.shape:  # copying would spread it out
                raise ValueError(f"{name} of another shape: {tuple(left.tensors[name].shape)}")
            tensor.copy_(left.tensors[name])
        for streams, states in zip(self.streams, left.numbers["streams"], strict=True):
            for name in STREAMS:
                getattr(streams, name).bit_generator.state = states[name]
        self.steps_done = left.numbers["steps_done"]

    def epoch(self) -> FloatArray:
        """One pass over the pairs; returns each replica's mean loss, (R,) float64."""
        device = self.vectors.device
        pairs = len(self.labels)
        order = torch.from_numpy(np.stack([streams.order.permutation(pairs) for streams in self.streams]))
        twins = self.twins[:, order].transpose(0, 1).to(device)  # (S, 2, P)
        labels = self.labels[order].to(device)  # (S, P)
        total = torch.zeros(len(self.model), dtype=torch.float64, device=device)
        with batch_invariant_matmul(len(self.model)):
            for start in range(0, pairs, self.batch_size):
                batch = slice(start, start + self.batch_size)
                loss = self._step(twins[:, :, batch], labels[:, batch])
                total += loss * labels[0, batch].numel()
        return (total / pairs).cpu().numpy()

    def _step(self, twins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One step of every replica on (S, 2, B) sentences and (S, B) labels; returns the losses, (R,)."""
        seeds, _, batch = twins.shape
        drawn = None if self.nearest is None else self._sample_neighborhoods(self.nearest)
        sentences = twins.flatten(1) if drawn is None else torch.cat([twins.flatten(1), drawn], 1)
        activations = self.model.forward(self._inputs(sentences))
        outputs = activations[-1]

        quantiser = self.model.quantiser
        dequantized, straight_through = quantiser.straight_through(outputs) if quantiser else (outputs, None)
        cosine = PairCosine(dequantized[:, : 2 * batch])
        loss, gradient = self.objective(cosine.value.view(-1, seeds, batch), labels)  # (A, S), (A, S, B)
        loss, gradient = loss.view(-1), cosine.backward(gradient.view(-1, batch))
        if weight := self.recipe.neighbor_weight:
            compared = cosine if drawn is None else L2Normalize(dequantized[:, 2 * batch :])
            rows = twins.reshape(seeds, -1) if drawn is None else drawn
            temperature = self.recipe.neighbor_temperature
            wanted = log_neighbor_probs(self._teacher_vectors(rows), temperature)
            _, of_unit = neighborhood_kl_loss(compared.unit, wanted, temperature)
            of_outputs = compared.backward_unit(of_unit).mul_(weight)
            gradient = gradient.add_(of_outputs) if drawn is None else torch.cat([gradient, of_outputs], 1)
        if straight_through:
            gradient = straight_through(gradient)

        self.model.backward(activations, gradient)
        self.optimizer.lr = lr_at(self.recipe.lr_schedule, self.recipe.lr, self.steps_done / self.steps)
        self.optimizer.step()
        self.steps_done += 1
        return loss

    def _sample_neighborhoods(self, near: IntArray) -> torch.Tensor:
        """Sentences whose neighbourhoods are kept in this step, (S, N)."""
        rows = [sample_with_neighbors(streams.neighbourhoods, near) for streams in self.streams]
        return torch.from_numpy(np.stack(rows)).to(self.vectors.device)

    def _teacher_vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """The vectors of length 1 whose neighbourhoods are kept, of (S, N) sentences, (S, N, d)."""
        vectors = self._vectors(rows)
        if self.teachers is None:
            return vectors
        return functional.normalize(self.teachers.forward(vectors)[-1], dim=-1)

    def _vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """The vectors of (S, N) sentences, (S, N, d)."""
        return self.vectors.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)

    def _inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """The noisy vectors of (S, N) sentences for every replica, (R, N, d)."""
        vectors = self._vectors(rows)
        uniform = self.uniform[:, : vectors.shape[1]]  # zeros where no replica wants any noise
        if self.noisy:
            fill_uniform([streams.noise for streams in self.streams], uniform)
        return add_noise(vectors, uniform.to(self.vectors.device), self.scales)


def _make_quantizer(
    recipe: Recipe, replicas: Sequence[Sequence[Layer]], vectors: torch.Tensor, seeds: Sequence[int], alphas: int
) -> Quantizer | None:
    """The quantiser that the replicas of every alpha and seed are trained through, seeds running fastest."""
    if recipe.precision != "product":
        return _quantizer_for_replica(recipe.precision, None)
    # Centroids of what each seed begins with; trained on or fitted again after every epoch they keep no more.
    device = vectors.device
    begun = [CompressorNetwork(layers).to(device).compress(vectors).cpu().numpy() for layers in replicas]
    codebooks = [fit_codebooks(outputs, recipe.subvector_dim, seed) for outputs, seed in zip(begun, seeds, strict=True)]
    return _quantizer_for_replica(recipe.precision, torch.stack(codebooks * alphas).to(device))


def _quantizer_for_replica(precision: str, codebooks: torch.Tensor | None) -> Quantizer | None:
    if codebooks is not None:
        return ProductQuantizer(codebooks)
    return SignQuantizer() if precision == "binary" else None


def _empty(sizes: Sequence[int]) -> list[Layer]:
    """Layers to be filled."""
    return [(torch.zeros(outputs, inputs), torch.zeros(outputs)) for inputs, outputs in pairwise(sizes)]
