"""A batch of replicas in training: random streams, training steps and resumable state."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.model.compressor import CODEBOOKS, CompressorBatch, CompressorNetwork, Layer, layer_sizes
from twinsqueeze.model.initialization import initial_layers
from twinsqueeze.model.quantizers import L2Normalize, ProductQuantizer, Quantizer, SignQuantizer, fit_codebooks
from twinsqueeze.recipe import Recipe
from twinsqueeze.training import losses
from twinsqueeze.training.noise import add_noise, fill_uniform, noise_scale
from twinsqueeze.training.optimizer import FlatAdam, lr_at
from twinsqueeze.types import AnyArray, FloatArray
from twinsqueeze.utils.compute import BLAS_LOCK, batch_invariant_matmul
from twinsqueeze.utils.similarity import nearest_neighbors

TEACHERS = "teachers"
MAX_FIT_ROWS = 65_536  # FAISS's limit too: 256 vectors per centroid


@dataclass(frozen=True)
class SeedStreams:
    """Independent random generators of one seed."""

    weights: np.random.Generator
    order: np.random.Generator
    noise: np.random.Generator
    neighbors: np.random.Generator

    @classmethod
    def from_seed(cls, seed: int) -> Self:
        """Returns the streams of a seed from their beginning."""
        return cls(*(np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(seed).spawn(4)))

    def state(self) -> dict[str, Any]:
        """Returns the states of all streams as JSON values."""
        return {name: generator.bit_generator.state for name, generator in vars(self).items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`."""
        for name, generator in vars(self).items():
            generator.bit_generator.state = state[name]


@dataclass(frozen=True)
class TrainingSetup:
    """R = A * S replicas: each of A strengths of noise with each of S seeds, seeds varying fastest."""

    recipe: Recipe  # of every replica, but for alpha and seed
    alphas: Sequence[float]
    seeds: Sequence[int]
    train: EncodedSplit
    device: torch.device


@dataclass(frozen=True)
class TrainingState:
    """The state of a training between two epochs: arrays and JSON values by name."""

    arrays: dict[str, AnyArray]
    values: dict[str, Any]

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return int(self.values["epoch"])


class BatchedTrainer:
    """Trains the R replicas of a setup, with S teachers or the encoder. Use `start` or `resume` to make one."""

    def __init__(self, setup: TrainingSetup, model: CompressorBatch, teachers: CompressorBatch | None) -> None:
        recipe, train, device = setup.recipe, setup.train, setup.device
        self.model = model
        self.vectors = torch.from_numpy(train.sentences).to(device)
        self._recipe, self._teachers = recipe, teachers
        self._streams = [SeedStreams.from_seed(seed) for seed in setup.seeds]
        self._examples = torch.from_numpy(train.examples)  # (k, E) rows of `vectors`
        labels = scores_to_labels(train.scores, recipe.label_transform) if recipe.needs_scores else np.zeros(len(train))
        self._labels = torch.from_numpy(labels.astype(np.float32))
        self._batch_size = min(recipe.batch_size, len(train))
        self._steps = recipe.epochs * math.ceil(len(train) / self._batch_size)
        self._steps_done = 0
        self._optimizer = FlatAdam(model.parameters, model.gradient, recipe.lr, recipe.weight_decay)
        samples_neighbors = recipe.neighbor_weight and recipe.num_neighbors
        self._neighbors = nearest_neighbors(train.sentences, recipe.num_neighbors) if samples_neighbors else None
        scales = [noise_scale(alpha, train.dimension) for alpha in setup.alphas]
        self._noise_scales = torch.tensor(scales, dtype=torch.float32, device=device)
        self._is_noisy = any(scales)
        rows = len(self._examples) * self._batch_size
        rows += min(losses.SAMPLE_SIZE, len(self.vectors)) if samples_neighbors else 0
        self._uniform = torch.zeros(len(self._streams), rows, train.dimension)  # stays zero without noise

    @classmethod
    def start(cls, setup: TrainingSetup, teacher_layers: Sequence[Layer] | None = None) -> Self:
        """Starts a training; `teacher_layers` are the result of `train_teachers`, if the recipe needs teachers."""
        recipe = setup.recipe
        starts = teacher_layers if teacher_layers and recipe.init == "teacher" else [None] * len(setup.seeds)
        vectors = fit_sample(torch.from_numpy(setup.train.sentences)).numpy()
        with BLAS_LOCK:
            layers = [
                initial_layers(recipe, vectors, SeedStreams.from_seed(seed).weights, start)
                for seed, start in zip(setup.seeds, starts, strict=True)
            ]
            codebooks = _fit_codebooks(setup, layers) if recipe.quantizer == "product" else None
        teachers = None
        if teacher_layers and recipe.teacher == "projection":
            teachers = CompressorBatch([[layer] for layer in teacher_layers], setup.device)
        return cls(setup, _build_model(setup, layers, codebooks), teachers)

    @classmethod
    def resume(cls, setup: TrainingSetup, state: TrainingState) -> Self:
        """Continues a training of the same setup, bit for bit."""
        recipe, dimension, num_seeds = setup.recipe, setup.train.dimension, len(setup.seeds)
        layers = [_empty_layers(layer_sizes(recipe.architecture, dimension, recipe.dim))] * num_seeds
        codebooks = torch.from_numpy(state.arrays[CODEBOOKS]) if CODEBOOKS in state.arrays else None
        teachers = None
        if TEACHERS in state.arrays:
            teachers = CompressorBatch([_empty_layers((dimension, dimension))] * num_seeds, setup.device)
        trainer = cls(setup, _build_model(setup, layers, codebooks), teachers)
        for name, tensor in trainer._tensors().items():
            tensor.copy_(torch.from_numpy(state.arrays[name]))
        for stream, stream_state in zip(trainer._streams, state.values["streams"], strict=True):
            stream.restore(stream_state)
        trainer._steps_done = state.values["steps_done"]
        return trainer

    def state(self) -> TrainingState:
        """Returns everything that `resume` needs, without `epoch`. Arrays are not copied on a CPU."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        streams = [stream.state() for stream in self._streams]
        return TrainingState(arrays, {"steps_done": self._steps_done, "streams": streams})

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Returns the tensors of the state by name; writing to them changes the trainer."""
        tensors = {"parameters": self.model.parameters, **self._optimizer.state}
        if isinstance(self.model.quantizer, ProductQuantizer):
            tensors[CODEBOOKS] = self.model.quantizer.codebooks
        if self._teachers is not None:
            tensors[TEACHERS] = self._teachers.parameters
        return tensors

    def train_epoch(self) -> FloatArray:
        """Trains on every example once; returns the mean loss of each replica, (R,) float64."""
        device = self.vectors.device
        num_examples = len(self._labels)
        order = torch.from_numpy(np.stack([stream.order.permutation(num_examples) for stream in self._streams]))
        examples = self._examples[:, order].transpose(0, 1).to(device)  # (S, k, E)
        labels = self._labels[order].to(device)  # (S, E)
        total = torch.zeros(len(self.model), dtype=torch.float64, device=device)
        with batch_invariant_matmul(len(self.model)):
            for start in range(0, num_examples, self._batch_size):
                batch = slice(start, start + self._batch_size)
                loss = self._step(examples[:, :, batch], labels[:, batch])
                total += loss * labels[0, batch].numel()
            self._refit_codebooks()
        return (total / num_examples).cpu().numpy()

    def _step(self, examples: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Updates every replica on (S, k, B) rows of sentences and (S, B) labels; returns the losses, (R,)."""
        example_rows = examples.flatten(1)
        sampled_rows = self._sample_neighborhoods()
        rows = example_rows if sampled_rows is None else torch.cat([example_rows, sampled_rows], 1)
        activations = self.model.forward(self._noisy_vectors(rows))
        outputs = activations[-1]
        quantized, straight_through = outputs, None
        if self.model.quantizer:
            quantized, straight_through = self.model.quantizer.straight_through(outputs)

        if self._recipe.needs_scores:
            loss, gradient = self._pair_gradient(quantized, example_rows, labels, sampled_rows)
            query_gradient = None
        else:
            loss, gradient, query_gradient = self._search_gradient(outputs, quantized, examples, sampled_rows)
        if straight_through:
            gradient = straight_through(gradient)
        if query_gradient is not None:
            gradient = gradient.add_(query_gradient)
        self.model.backward(activations, gradient)
        self._optimizer.lr = lr_at(self._recipe.lr_schedule, self._recipe.lr, self._steps_done / self._steps)
        self._optimizer.step()
        self._steps_done += 1
        return loss.view(-1)

    def _pair_gradient(
        self, outputs: torch.Tensor, pair_rows: torch.Tensor, labels: torch.Tensor, sampled_rows: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss on labels (A, S), and its gradient with the neighborhood loss's, (R, N, dim); all vectors are stored."""
        seeds, batch = labels.shape
        cosine = losses.PairCosine(outputs[:, : 2 * batch])
        label_loss = losses.LABEL_LOSSES[self._recipe.loss]
        loss, gradient = label_loss(cosine.value.view(-1, seeds, batch), labels)  # (A, S) and (A, S, B)
        gradient = cosine.backward(gradient.view(-1, batch))
        if sampled_rows is not None:
            normalized = L2Normalize(outputs[:, 2 * batch :])
            gradient = torch.cat([gradient, self._neighborhood_gradient(normalized, sampled_rows)], 1)
        elif self._recipe.neighbor_weight:
            gradient = gradient.add_(self._neighborhood_gradient(cosine.normalized, pair_rows))
        return loss, gradient

    def _neighborhood_gradient(self, normalized: L2Normalize, rows: torch.Tensor) -> torch.Tensor:
        """Weighted gradient of the neighborhood loss with respect to the outputs of (S, N) sentences, (R, N, dim)."""
        teacher, temperature = self._teacher_probs(rows), self._recipe.neighbor_temperature
        _, gradient = losses.neighborhood_kl_loss(normalized.unit, teacher, temperature)
        return normalized.backward(gradient).mul_(self._recipe.neighbor_weight)

    def _search_gradient(
        self, outputs: torch.Tensor, quantized: torch.Tensor, examples: torch.Tensor, sampled_rows: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Losses of float queries among stored vectors, with gradients with respect to `quantized` and `outputs`.

        The loss is InfoNCE, or without it the neighborhood loss, (R,).
        """
        recipe, (_, sides, batch) = self._recipe, examples.shape
        queries, stored = L2Normalize(outputs), L2Normalize(quantized)
        query_gradient, stored_gradient = torch.zeros_like(outputs), torch.zeros_like(outputs)
        if recipe.neighbor_weight:
            neighbors = slice(0 if sampled_rows is None else sides * batch, None)
            teacher = self._teacher_probs(examples.flatten(1) if sampled_rows is None else sampled_rows)
            loss, *gradients = losses.search_kl_loss(
                queries.unit[:, neighbors], stored.unit[:, neighbors], teacher, recipe.neighbor_temperature
            )
            for total, gradient in zip((query_gradient, stored_gradient), gradients, strict=True):
                total[:, neighbors] = gradient.mul_(recipe.neighbor_weight)
        if recipe.loss == "infonce":
            answers = slice(batch, sides * batch)
            columns = losses.candidate_mask(examples[:, 0], examples[:, 1:].flatten(1))
            loss, of_queries, of_passages = losses.infonce_loss(
                queries.unit[:, :batch], stored.unit[:, answers], *columns, recipe.infonce_temperature
            )
            query_gradient[:, :batch] += of_queries
            stored_gradient[:, answers] += of_passages
        return loss, stored.backward(stored_gradient), queries.backward(query_gradient)

    def _teacher_probs(self, rows: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the neighbors of (S, N) sentences by the teacher, (S, N, N)."""
        vectors = self._gather(rows)
        if self._teachers is not None:
            vectors = functional.normalize(self._teachers.forward(vectors)[-1], dim=-1)
        return losses.log_neighbor_probs(vectors, vectors, self._recipe.neighbor_temperature)

    def _refit_codebooks(self) -> None:
        """Fits the centroids to the present outputs, for which the layers have moved on."""
        quantizer, iterations = self.model.quantizer, self._recipe.codebook_iterations
        if not iterations or not isinstance(quantizer, ProductQuantizer):
            return
        vectors = fit_sample(self.vectors)
        refitted = [
            quantizer.replica(r).refit(self.model.replica(r).compress(vectors)[None], iterations).codebooks
            for r in range(len(self.model))
        ]
        self.model.quantizer = ProductQuantizer(torch.cat(refitted))

    def _sample_neighborhoods(self) -> torch.Tensor | None:
        """Sentences for the neighborhood loss of this step, (S, N) rows; None if it uses those of the pairs."""
        if self._neighbors is None:
            return None
        rows = [losses.sample_with_neighbors(stream.neighbors, self._neighbors) for stream in self._streams]
        return torch.from_numpy(np.stack(rows)).to(self.vectors.device)

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The vectors of (S, N) sentences, (S, N, d)."""
        return self.vectors.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)

    def _noisy_vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """The vectors of (S, N) sentences with the noise of every replica, (R, N, d)."""
        vectors = self._gather(rows)
        uniform = self._uniform[:, : vectors.shape[1]]
        if self._is_noisy:
            fill_uniform([stream.noise for stream in self._streams], uniform)
        return add_noise(vectors, uniform.to(self.vectors.device), self._noise_scales)


def _build_model(
    setup: TrainingSetup, layers: Sequence[Sequence[Layer]], codebooks: torch.Tensor | None
) -> CompressorBatch:
    """Returns the replicas, given the layers of each seed and the (R, M, K, P) codebooks of a product quantizer."""
    recipe = setup.recipe
    quantizer: Quantizer | None = SignQuantizer() if recipe.quantizer == "sign" else None
    if codebooks is not None:
        quantizer = ProductQuantizer(codebooks.clone().to(setup.device))
    skip_dims = recipe.dim if recipe.architecture == "residual" else 0
    return CompressorBatch(list(layers) * len(setup.alphas), setup.device, quantizer, skip_dims)


def fit_sample(vectors: torch.Tensor) -> torch.Tensor:
    """Returns the (N, d) vectors, or `MAX_FIT_ROWS` evenly spaced ones, to fit initial layers and codebooks to."""
    if len(vectors) <= MAX_FIT_ROWS:
        return vectors
    return vectors[torch.arange(MAX_FIT_ROWS, device=vectors.device) * len(vectors) // MAX_FIT_ROWS]


def _fit_codebooks(setup: TrainingSetup, layers: Sequence[Sequence[Layer]]) -> torch.Tensor:
    """Fits (R, M, K, P) codebooks to the initial outputs of each seed."""
    vectors = fit_sample(torch.from_numpy(setup.train.sentences)).to(setup.device)
    codebooks = []
    for seed_layers, seed in zip(layers, setup.seeds, strict=True):
        outputs = CompressorNetwork(seed_layers).to(setup.device).compress(vectors).cpu().numpy()
        codebooks.append(fit_codebooks(outputs, setup.recipe.subvector_dim, seed))
    return torch.stack(codebooks * len(setup.alphas))


def _empty_layers(sizes: Sequence[int]) -> list[Layer]:
    return [(torch.zeros(outputs, inputs), torch.zeros(outputs)) for inputs, outputs in pairwise(sizes)]
