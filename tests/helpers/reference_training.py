"""The training of one recipe with PyTorch's modules, autograd and optimizers."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.model.compressor import Layer
from twinsqueeze.model.initialization import initial_layers
from twinsqueeze.model.quantizers import fit_codebooks
from twinsqueeze.recipe import Recipe
from twinsqueeze.training import losses
from twinsqueeze.training.seed_streams import SeedStreams
from twinsqueeze.training.teacher import make_teachers


class PlainModel(nn.Sequential):
    """Linear layers with ReLU between."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(*[module for layer in layers for module in (make_linear(*layer), nn.ReLU())][:-1])

    def layers(self) -> list[Layer]:
        return [(linear.weight.data, linear.bias.data) for linear in self if isinstance(linear, nn.Linear)]


def make_linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(*weight.T.shape)
    linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
    return linear


class ReferenceTraining:
    """Draws from the streams of the seed: weights; per epoch an order; per step noise and sampled neighborhoods."""

    def __init__(self, recipe: Recipe, train: EncodedSplit, base: Sequence[Layer] | None = None) -> None:
        self.recipe, self.train = recipe, train
        self.streams = SeedStreams.from_seed(recipe.seed)
        self.sentences = torch.from_numpy(train.sentences)
        self.labels = train.scores / 5
        if recipe.label_transform == "tanh":
            self.labels = (np.tanh(4 * (self.labels - 0.5)) + 1) / 2
        self.projection = None
        if recipe.needs_teacher:
            (self.projection,) = make_teachers(recipe, [recipe.seed], train, torch.device("cpu"))
        layers = base or initial_layers(recipe, train.sentences, self.streams.weights, self.projection)
        self.model = PlainModel(layers)
        if recipe.quantizer == "product":
            unit = functional.normalize(self.model(self.sentences)).detach().numpy()
            self.codebooks = fit_codebooks(unit, recipe.subvector_dim, recipe.seed)

    def compress(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns quantized vectors, whose gradients are those of the straight-through estimator."""
        outputs = self.model(vectors)
        if self.recipe.quantizer == "none":
            return outputs
        if self.recipe.quantizer == "sign":
            passed, quantized = outputs.clamp(-1, 1), outputs.sign()
        else:
            passed = functional.normalize(outputs, dim=1)
            subvectors = passed.view(len(passed), -1, 1, self.codebooks.shape[-1])
            nearest = (subvectors - self.codebooks).square().sum(-1).argmin(-1)
            quantized = torch.cat([book[code] for book, code in zip(self.codebooks, nearest.T, strict=True)], 1)
        return passed + (quantized - passed).detach()

    def train_all_epochs(self) -> list[float]:
        """Trains the model and returns the mean loss on labels of every epoch."""
        recipe, size = self.recipe, self.recipe.batch_size
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
        if recipe.lr_schedule == "cosine":
            steps = recipe.epochs * math.ceil(len(self.train) / size)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        means = []
        for _ in range(recipe.epochs):
            order = self.streams.order.permutation(len(self.train))
            total = 0.0
            for rows in np.split(order, range(size, len(order), size)):
                label_loss, neighborhood_loss = self._losses(rows)
                optimizer.zero_grad()
                (label_loss + recipe.neighbor_weight * neighborhood_loss).backward()
                optimizer.step()
                schedule.step()
                total += label_loss.item() * len(rows)
            means.append(total / len(order))
        return means

    def _losses(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the loss on the labels of some pairs, and the neighborhood loss."""
        vectors = self.sentences[np.concatenate([self.train.first[rows], self.train.second[rows]])]
        student = self.compress(self._add_noise(vectors))
        cosine = functional.cosine_similarity(*student.chunk(2))
        labels = torch.from_numpy(self.labels[rows]).float()
        if self.recipe.loss == "mse":
            label_loss = functional.mse_loss(cosine, labels)
        else:
            label_loss = 1 - torch.corrcoef(torch.stack([cosine, labels]))[0, 1]
        if self.recipe.num_neighbors:
            vectors = self.sentences[self._sample_neighborhoods()]
            student = self.compress(self._add_noise(vectors))
        if self.recipe.teacher == "projection":
            vectors = vectors @ self.projection[0].T + self.projection[1]
        log_probs = [self._log_neighbor_probs(each) for each in (student, vectors)]
        return label_loss, functional.kl_div(*log_probs, log_target=True, reduction="batchmean")

    def _add_noise(self, vectors: torch.Tensor) -> torch.Tensor:
        noise = torch.from_numpy(2 * self.streams.noise.random(vectors.shape, dtype=np.float32) - 1)
        return vectors + noise * (self.recipe.alpha / math.sqrt(vectors.shape[1]))

    def _sample_neighborhoods(self) -> list[int]:
        """Returns sampled sentences, each followed by its nearest neighbors, without duplicates."""
        sampled: list[int] = []
        for row in self.streams.neighbors.permutation(len(self.sentences)):
            cosine = self.sentences @ self.sentences[row]
            cosine[row] = torch.inf  # so that the sentence is the first
            nearest = cosine.argsort(descending=True)[: self.recipe.num_neighbors + 1].tolist()
            sampled += [other for other in nearest if other not in sampled]
        return sampled[: losses.SAMPLE_SIZE]

    def _log_neighbor_probs(self, vectors: torch.Tensor) -> torch.Tensor:
        unit = functional.normalize(vectors, dim=1)
        off_diagonal = ~torch.eye(len(unit), dtype=torch.bool)
        logits = (unit @ unit.T / self.recipe.neighbor_temperature)[off_diagonal].view(len(unit), -1)
        return functional.log_softmax(logits, -1)
