"""A batch of replicas in training: random streams, training steps and resumable state."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional

from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.model.compressor import CODEBOOKS, CompressorBatch, Layer, layer_sizes
from twinsqueeze.model.quantizers import Backward, L2Normalize, ProductQuantizer
from twinsqueeze.training import losses
from twinsqueeze.training.candidates import CandidateSampler, candidate_mask, first_columns, other_answers
from twinsqueeze.training.noise import add_noise, fill_uniform, noise_scale
from twinsqueeze.training.optimizer import FlatAdam, lr_at
from twinsqueeze.training.seed_streams import SeedStreams
from twinsqueeze.training.setup import TrainingSetup, build_model, empty_layers, initial_model
from twinsqueeze.types import AnyArray, FloatArray
from twinsqueeze.utils.compute import batch_invariant_matmul, map_threaded
from twinsqueeze.utils.similarity import nearest_neighbors

TEACHERS = "teachers"
# The rows of a step, (S, N), and their noisy vectors, (R, N, d).
StepInputs = tuple[torch.Tensor, torch.Tensor]
# Rows whose noise is drawn at once, for as many steps: their vectors fit into the cache of a core.
ROWS_AT_ONCE = 1024
CLEAN_EXAMPLES = 2048  # of a loss that searches


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
        self._codebook_optimizer = None
        if isinstance(model.quantizer, ProductQuantizer) and recipe.codebook_lr and not recipe.needs_scores:
            model.quantizer.gradient = torch.zeros_like(model.quantizer.codebooks)
            flat = model.quantizer.codebooks.view(-1), model.quantizer.gradient.view(-1)
            self._codebook_optimizer = FlatAdam(*flat, recipe.codebook_lr, 0.0)
        samples_neighbors = recipe.needs_scores and recipe.neighbor_weight and recipe.num_neighbors
        self._neighbors = nearest_neighbors(train.sentences, recipe.num_neighbors) if samples_neighbors else None
        self._sampler = None if recipe.needs_scores else CandidateSampler(train, recipe)
        scales = [noise_scale(alpha, train.dimension) for alpha in setup.alphas]
        self._noise_scales = torch.tensor(scales, dtype=torch.float32, device=device)
        self._is_noisy = any(scales)
        if self._sampler:
            rows = self._sampler.num_rows(len(self._examples), self._batch_size)
        else:
            rows = 2 * self._batch_size + (min(losses.SAMPLE_SIZE, len(self.vectors)) if samples_neighbors else 0)
        self._steps_at_once = max(ROWS_AT_ONCE // rows, 1) if len(model) == 1 else 1
        self._uniform = torch.zeros(len(self._streams), rows * self._steps_at_once, train.dimension)

    @classmethod
    def start(cls, setup: TrainingSetup, teacher_layers: Sequence[Layer] | None = None) -> Self:
        """Starts a training; `teacher_layers` are the result of `make_teachers`, if the recipe needs teachers."""
        teachers = None
        if teacher_layers and setup.recipe.teacher != "encoder":
            teachers = CompressorBatch([[layer] for layer in teacher_layers], setup.device)
        return cls(setup, initial_model(setup, teacher_layers), teachers)

    @classmethod
    def resume(cls, setup: TrainingSetup, state: TrainingState) -> Self:
        """Continues a training of the same setup, bit for bit."""
        recipe, dimension, num_seeds = setup.recipe, setup.train.dimension, len(setup.seeds)
        layers = [empty_layers(layer_sizes(recipe.architecture, dimension, recipe.dim))] * num_seeds
        codebooks = torch.from_numpy(state.arrays[CODEBOOKS]) if CODEBOOKS in state.arrays else None
        teachers = None
        if TEACHERS in state.arrays:
            teachers = CompressorBatch([empty_layers((dimension, dimension))] * num_seeds, setup.device)
        trainer = cls(setup, build_model(setup, layers, codebooks), teachers)
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
        if self._codebook_optimizer:
            tensors |= {f"{CODEBOOKS}.{name}": each for name, each in self._codebook_optimizer.state.items()}
        if self._teachers is not None:
            tensors[TEACHERS] = self._teachers.parameters
        return tensors

    def train_epoch(self) -> FloatArray:
        """Trains on every example once; returns the mean loss of each replica, (R,) float64."""
        device, num_examples = self.vectors.device, len(self._labels)
        order = torch.from_numpy(np.stack([stream.order.permutation(num_examples) for stream in self._streams]))
        examples = self._examples[:, order].transpose(0, 1).to(device)  # (S, k, E)
        labels = self._labels[order].to(device)  # (S, E)
        total = torch.zeros(len(self.model), dtype=torch.float64, device=device)
        with batch_invariant_matmul(len(self.model)), closing(self._inputs(examples)) as inputs:
            for step, step_labels in zip(inputs, labels.split(self._batch_size, 1), strict=True):
                total.add_(self._step(*step, step_labels), alpha=step_labels.shape[1])
        return (total / num_examples).cpu().numpy()

    def _inputs(self, examples: torch.Tensor) -> Generator[StepInputs]:
        """Yields what each step of an epoch takes, given the examples (S, k, E) in its order."""
        batches = examples.split(self._batch_size, 2)
        groups = (batches[i : i + self._steps_at_once] for i in range(0, len(batches), self._steps_at_once))
        if len(self.model) > 1 or len(batches) <= self._steps_at_once:
            yield from chain.from_iterable(map(self._make_inputs, groups))
            return
        # The products of one replica leave cores idle, on which another thread makes the inputs of later steps.
        with closing(map_threaded(groups, self._make_inputs, 1)) as finished:
            for _, inputs in finished:
                yield from inputs

    def _make_inputs(self, batches: Sequence[torch.Tensor]) -> Iterator[StepInputs]:
        """Samples rows and draws noise for consecutive steps with examples (S, k, B)."""
        rows = [self._step_rows(batch) for batch in batches]
        vectors = self._noisy_vectors(torch.cat(rows, 1))
        return zip(rows, vectors.split([each.shape[1] for each in rows], 1), strict=True)

    def _step_rows(self, examples: torch.Tensor) -> torch.Tensor:
        """Returns the rows of a step, (S, N): pairs, and what is sampled for the neighborhood loss, or a search."""
        if self._sampler:
            candidates = self._sample_candidates(examples, [stream.neighbors for stream in self._streams])
            return torch.cat([examples[:, 0], candidates], 1)
        pairs = examples.flatten(1)
        if self._neighbors is None:
            return pairs
        sampled = [losses.sample_with_neighbors(stream.neighbors, self._neighbors) for stream in self._streams]
        return torch.cat([pairs, torch.from_numpy(np.stack(sampled)).to(pairs.device)], 1)

    def _step(self, rows: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Updates every replica on the inputs of a step and (S, B) labels; returns the losses, (R,)."""
        loss = (self._search_step if self._sampler else self._pair_step)(rows, vectors, labels)
        schedule, done = self._recipe.lr_schedule, self._steps_done / self._steps
        self._optimizer.lr = lr_at(schedule, self._recipe.lr, done)
        self._optimizer.step()
        if self._codebook_optimizer and isinstance(self.model.quantizer, ProductQuantizer):
            self._codebook_optimizer.lr = lr_at(schedule, self._recipe.codebook_lr, done)
            self._codebook_optimizer.step()
            self.model.quantizer.update()
        self._steps_done += 1
        return loss

    def _pair_step(self, rows: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sets the gradient of the loss on labels and of the neighborhood loss, all on stored vectors.

        The first 2B rows are the pairs. The others, if any, are sampled for the neighborhood loss.
        """
        seeds, batch = labels.shape
        activations = self.model.forward(vectors)
        outputs, straight_through = self._quantize(activations[-1])

        cosine = losses.PairCosine(outputs[:, : 2 * batch])
        label_loss = losses.LABEL_LOSSES[self._recipe.loss]
        loss, gradient = label_loss(cosine.value.view(-1, seeds, batch), labels)  # (A, S) and (A, S, B)
        gradient = cosine.backward(gradient.view(-1, batch))
        if self._neighbors is not None:
            normalized = L2Normalize(outputs[:, 2 * batch :])
            gradient = torch.cat([gradient, self._neighborhood_gradient(normalized, rows[:, 2 * batch :])], 1)
        elif self._recipe.neighbor_weight:
            gradient = gradient.add_(self._neighborhood_gradient(cosine.normalized, rows))
        self.model.backward(activations, straight_through(gradient))
        return loss.view(-1)

    def _search_step(self, rows: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sets the gradient of InfoNCE and of the neighborhood loss, of float queries among stored candidates.

        The first B rows are the queries, and the others the candidates. Of the labels, only the number counts.
        """
        batch = labels.shape[1]
        loss, backward = self._search_loss(rows[:, :batch], rows[:, batch:], vectors)
        backward()
        return loss

    def measure_clean_search_loss(self) -> FloatArray:
        """Returns the loss without noise of up to `CLEAN_EXAMPLES` examples among fixed candidates, (R,)."""
        num_seeds, num_examples = len(self._streams), self._examples.shape[1]
        chosen = np.linspace(0, num_examples - 1, min(CLEAN_EXAMPLES, num_examples)).astype(np.int64)
        examples = self._examples[:, chosen].to(self.vectors.device).expand(num_seeds, -1, -1)
        candidates = self._sample_candidates(examples, [np.random.default_rng(0) for _ in range(num_seeds)])
        vectors = self._gather(torch.cat([examples[:, 0], candidates], 1))
        with batch_invariant_matmul(len(self.model)):
            loss, _ = self._search_loss(examples[:, 0], candidates, vectors.repeat(len(self._noise_scales), 1, 1))
        return loss.cpu().numpy()

    def _search_loss(
        self, queries: torch.Tensor, candidates: torch.Tensor, vectors: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[], None]]:
        """Returns InfoNCE, or without it the neighborhood loss, (R,), and a function that sets the gradient of both.

        `queries` (S, B) and `candidates` (S, C) are rows, whose vectors are (R, B + C, d).
        """
        recipe, batch = self._recipe, queries.shape[1]
        activations = self.model.forward(vectors)
        outputs = activations[-1]
        quantized, straight_through = self._quantize(outputs[:, batch:])
        asked, stored = L2Normalize(outputs[:, :batch]), L2Normalize(quantized)
        mask = candidate_mask(queries, candidates)
        gradient = torch.zeros(len(self.model), *mask.shape[1:], device=mask.device)
        if recipe.neighbor_weight:
            temperature = recipe.neighbor_temperature
            teacher_vectors = self._teacher_vectors(queries), self._teacher_vectors(candidates)
            teacher = losses.candidate_log_probs(*teacher_vectors, mask, temperature)
            log_probs = losses.candidate_log_probs(asked.unit, stored.unit, mask, temperature)
            loss, of_cosines = losses.distillation_loss(log_probs, teacher, temperature)
            gradient.add_(of_cosines, alpha=recipe.neighbor_weight)
        if recipe.loss == "infonce":
            targets = first_columns(candidates)[:, :batch]
            # A passage that equals its query stays: it is what the query is to find.
            is_target = functional.one_hot(targets, candidates.shape[1]).bool()
            mask = (mask & ~other_answers(queries, targets, candidates.shape[1])) | is_target
            log_probs = losses.candidate_log_probs(asked.unit, stored.unit, mask, recipe.infonce_temperature)
            loss, of_cosines = losses.infonce_loss(log_probs, targets, recipe.infonce_temperature)
            gradient += of_cosines

        def backward() -> None:
            of_queries = asked.backward(gradient @ stored.unit)
            of_stored = straight_through(stored.backward(gradient.transpose(1, 2) @ asked.unit))
            self.model.backward(activations, torch.cat([of_queries, of_stored], 1))

        return loss, backward

    def _quantize(self, outputs: torch.Tensor) -> tuple[torch.Tensor, Backward]:
        if self.model.quantizer is None:
            return outputs, lambda gradient: gradient
        return self.model.quantizer.straight_through(outputs)

    def _neighborhood_gradient(self, normalized: L2Normalize, rows: torch.Tensor) -> torch.Tensor:
        """Weighted gradient of the neighborhood loss with respect to the outputs of (S, N) sentences, (R, N, dim)."""
        temperature = self._recipe.neighbor_temperature
        teacher = losses.log_neighbor_probs(self._teacher_vectors(rows), temperature)
        _, gradient = losses.neighborhood_kl_loss(normalized.unit, teacher, temperature)
        return normalized.backward(gradient).mul_(self._recipe.neighbor_weight)

    def _teacher_vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """The teacher's unit vectors of (S, N) sentences, (S, N, d)."""
        if self._teachers is None:
            return self._gather(rows)
        if self._recipe.teacher == "whitened":
            return self._gather(rows, self._whitened)
        return functional.normalize(self._teachers.forward(self._gather(rows))[-1], dim=-1)

    @cached_property
    def _whitened(self) -> torch.Tensor:
        """The unit vectors of the teacher that all seeds have in common, of all sentences, (N, d)."""
        assert self._teachers
        return self._teachers.replica(0).compress(self.vectors)

    def _sample_candidates(self, examples: torch.Tensor, generators: Sequence[np.random.Generator]) -> torch.Tensor:
        """Rows of candidates for (S, k, B) examples, (S, C)."""
        assert self._sampler
        rows = [self._sampler.sample(*item) for item in zip(generators, examples.cpu().numpy(), strict=True)]
        return torch.from_numpy(np.stack(rows)).to(self.vectors.device)

    def _gather(self, rows: torch.Tensor, vectors: torch.Tensor | None = None) -> torch.Tensor:
        """The vectors of (S, N) sentences, (S, N, d); by default those of the encoder."""
        return (self.vectors if vectors is None else vectors).index_select(0, rows.reshape(-1)).view(*rows.shape, -1)

    def _noisy_vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """The vectors of (S, N) sentences with the noise of every replica, (R, N, d)."""
        vectors = self._gather(rows)
        uniform = self._uniform[:, : vectors.shape[1]]
        if self._is_noisy:  # else the draws stay zero
            fill_uniform([stream.noise for stream in self._streams], uniform)
        return add_noise(vectors, uniform.to(self.vectors.device), self._noise_scales)
