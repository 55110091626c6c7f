"""A training between epochs: the random streams of its seeds, its batches and its steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from twinsqueeze.codes import ProductCodes, Quantiser, Signs, fit_codebooks
from twinsqueeze.compressor import Compressor, Compressors, Layer, TwinCosine
from twinsqueeze.embeddings import EncodedPairs
from twinsqueeze.neftune import add_noise, draw_uniform, noise_scale
from twinsqueeze.neighbourhood import distributions, divergence
from twinsqueeze.objectives import OBJECTIVES, labels_from_scores
from twinsqueeze.optimizer import Adam, learning_rate
from twinsqueeze.recipe import Recipe
from twinsqueeze.starts import initial_layers

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Streams:
    """A seed's three independent generators."""

    weights: np.random.Generator
    order: np.random.Generator
    noise: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> "Streams":
        """The streams of a seed, from the start."""
        children = np.random.SeedSequence(seed).spawn(3)
        return cls(*(np.random.Generator(np.random.PCG64(child)) for child in children))


class Trainer:
    """A training between epochs: A * S replicas, every alpha with every seed, seeds running fastest.

    Args:
        recipe: What the replicas share.
        alphas: The A strengths of noise.
        seeds: The S seeds.
        train: Pairs to train on.
        device: Where to train.
        heads: Of each seed, as from `train_heads`, for recipes that ask for them.
    """

    def __init__(
        self,
        recipe: Recipe,
        alphas: Sequence[float],
        seeds: Sequence[int],
        train: EncodedPairs,
        device: torch.device,
        heads: Sequence[Layer] | None = None,
    ) -> None:
        self.batch_size = min(recipe.batch_size, len(train))
        self.objective = OBJECTIVES[recipe.objective]
        self.vectors = torch.from_numpy(train.embeddings).to(device)
        self.twins = torch.from_numpy(np.stack([train.first, train.second]))  # (2, P)
        labels = labels_from_scores(train.scores, recipe.labels)
        self.labels = torch.from_numpy(labels.astype(np.float32))

        dimension = train.dimension
        scales = [noise_scale(alpha, dimension) for alpha in alphas]
        self.scales = torch.tensor(scales, dtype=torch.float32, device=device)
        self.noisy = any(scales)
        self.uniform = torch.zeros(len(seeds), 2 * self.batch_size, dimension)

        self.streams = [Streams.of(seed) for seed in seeds]
        starts = heads if heads and recipe.start == "head" else [None] * len(seeds)
        layers = [
            initial_layers(recipe, train.embeddings, streams.weights, start)
            for streams, start in zip(self.streams, starts, strict=True)
        ]
        teaches = heads is not None and recipe.teacher == "head"
        self.teachers = Compressors([[head] for head in heads or []], device) if teaches else None
        quantiser = _quantiser(recipe.precision, layers, self.vectors, seeds, len(alphas))
        self.model = Compressors(layers * len(alphas), device, quantiser)
        self.optimizer = Adam(self.model.parameters, self.model.gradient, recipe.lr, recipe.weight_decay)
        self.recipe = recipe
        self.steps = recipe.epochs * math.ceil(len(train) / self.batch_size)
        self.steps_done = 0

    def epoch(self) -> FloatArray:
        """One pass over the pairs; returns each replica's mean loss, (R,) float64."""
        device = self.vectors.device
        pairs = len(self.labels)
        order = torch.from_numpy(np.stack([streams.order.permutation(pairs) for streams in self.streams]))
        twins = self.twins[:, order].transpose(0, 1).to(device)  # (S, 2, P)
        labels = self.labels[order].to(device)  # (S, P)
        total = torch.zeros(len(self.model), dtype=torch.float64, device=device)
        for start in range(0, pairs, self.batch_size):
            batch = slice(start, start + self.batch_size)
            loss = self._step(twins[:, :, batch], labels[:, batch])
            total += loss * labels[0, batch].numel()
        return (total / pairs).cpu().numpy()

    def _step(self, twins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One step of every replica on (S, 2, B) sentences and (S, B) labels; returns the losses, (R,)."""
        seeds, _, batch = twins.shape
        activations = self.model.forward(self._inputs(twins))
        outputs = activations[-1]

        quantiser = self.model.quantiser
        levels, straight_through = quantiser.straight_through(outputs) if quantiser else (outputs, None)
        cosine = TwinCosine(levels)
        loss, gradient = self.objective(cosine.value.view(-1, seeds, batch), labels)  # (A, S), (A, S, B)
        loss, gradient = loss.view(-1), cosine.backward(gradient.view(-1, batch))
        if weight := self.recipe.neighbourhood:
            temperature = self.recipe.temperature
            wanted = distributions(self._reference(twins), temperature)
            _, of_unit = divergence(cosine.unit, wanted, temperature)
            gradient += cosine.backward_unit(of_unit).mul_(weight)
        if straight_through:
            gradient = straight_through(gradient)

        self.model.backward(activations, gradient)
        self.optimizer.lr = learning_rate(self.recipe.schedule, self.recipe.lr, self.steps_done / self.steps)
        self.optimizer.step()
        self.steps_done += 1
        return loss

    def _reference(self, twins: torch.Tensor) -> torch.Tensor:
        """The vectors of length 1 whose neighbourhoods are kept, of (S, 2, B) sentences, (S, 2B, d)."""
        vectors = self._vectors(twins)
        if self.teachers is None:
            return vectors
        return functional.normalize(self.teachers.forward(vectors)[-1], dim=-1)

    def _vectors(self, twins: torch.Tensor) -> torch.Tensor:
        """The vectors of (S, 2, B) sentences, (S, 2B, d)."""
        seeds, _, batch = twins.shape
        return self.vectors.index_select(0, twins.reshape(-1)).view(seeds, 2 * batch, -1)

    def _inputs(self, twins: torch.Tensor) -> torch.Tensor:
        """The noisy vectors of (S, 2, B) sentences for every replica, (R, 2B, d)."""
        vectors = self._vectors(twins)
        uniform = self.uniform[:, : vectors.shape[1]]  # zeros where no replica wants any noise
        if self.noisy:
            draw_uniform([streams.noise for streams in self.streams], uniform)
        return add_noise(vectors, uniform.to(self.vectors.device), self.scales)


def _quantiser(
    precision: str, replicas: Sequence[Sequence[Layer]], vectors: torch.Tensor, seeds: Sequence[int], alphas: int
) -> Quantiser | None:
    """The quantiser that the replicas of every alpha and seed are trained through, seeds running fastest."""
    if precision == "float32":
        return None
    if precision == "binary":
        return Signs()
    # Centroids of what each seed begins with; trained on or fitted again after every epoch they keep no more.
    device = vectors.device
    begun = [Compressor(layers).to(device).compress(vectors).cpu().numpy() for layers in replicas]
    codebooks = [fit_codebooks(outputs, seed) for outputs, seed in zip(begun, seeds, strict=True)]
    return ProductCodes(torch.stack(codebooks * alphas).to(device))
