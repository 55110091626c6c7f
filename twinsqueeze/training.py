"""The trainer: R replicas of one shape in one loop.

Replicas differ in alpha and seed alone. Whatever is random belongs to the seed and comes from streams of its own
(weights, order, noise, neighbourhoods), so that a seed sees the same draws at every alpha, alone or in a grid:
`alpha=0.75, seed=3` gives the same bits for every R and every place in the batch, on one machine, device and thread
count.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TypeVar

import numpy as np
import torch

from twinsqueeze.data.encoder import EncodedPairs
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.errors import InputError
from twinsqueeze.head import train_heads
from twinsqueeze.metrics import METRICS, Scores, score
from twinsqueeze.model.compressor import Compressor, pair_cosines_of_each
from twinsqueeze.objectives import OBJECTIVES
from twinsqueeze.recipe import Recipe
from twinsqueeze.snapshots import Snapshot, State
from twinsqueeze.trainer import Trainer
from twinsqueeze.types import FloatArray

T = TypeVar("T")


# Replicas that train together at most: on a CPU more of them leave its caches and cost more each.
LARGEST_BATCH = {"cpu": 5, "cuda": 25}


# Batches that train at once on a CPU, at most: threads take turns at Python, processes take 0.5 GB each.
MOST_AT_ONCE = 4


# In a snapshot, beside the trainer's state.
CURVES = "curves"


class DivergedError(InputError):
    """A training's loss is not finite."""


@dataclass(frozen=True)
class History:
    """A training's curves, one value an epoch, float64 of shape (T,).

    Attributes:
        loss: The objective as it was trained on, noise included, mean over the epoch's pairs; without the
            neighbourhood loss, which needs no labels.
        clean_loss: The objective on the train pairs without noise, after the epoch; NaN where it was not measured.
        dev: mse, mae, pearson and spearman on dev, after the epoch.
    """

    loss: FloatArray
    clean_loss: FloatArray
    dev: dict[str, FloatArray]


@dataclass(frozen=True)
class Fitted:
    """One replica's result: the last epoch's weights, on the CPU, and the curves that led there.

    Attributes:
        taken_up: The epoch from which an interrupted training was gone on with, 0 for one that was not.
    """

    recipe: Recipe
    compressor: Compressor
    history: History
    taken_up: int = 0

    @property
    def diverged_at(self) -> int | None:
        """The first epoch (from 1) whose loss is not finite, None for a training that went well."""
        bad = np.flatnonzero(~np.isfinite(self.history.loss))
        return int(bad[0]) + 1 if bad.size else None

    def check(self) -> None:
        """Raises `DivergedError` if it did."""
        if self.diverged_at:
            raise DivergedError(
                f"the training diverged: the loss of epoch {self.diverged_at} is not finite; lower lr, now "
                f"{self.recipe.lr:g}"
            )


@dataclass(frozen=True)
class Progress:
    """Where a training stands after an epoch.

    Attributes:
        epoch: Epochs done.
        epochs: Epochs in all.
        loss: (R,) this epoch's noisy loss.
        clean_loss: (R,) NaN in epochs without a measurement.
        dev: Scores on dev, each (R,).
    """

    epoch: int
    epochs: int
    loss: FloatArray
    clean_loss: FloatArray
    dev: Scores


def resolve_device(name: str) -> torch.device:
    """The device of a recipe's `device`.

    Raises:
        InputError: If cuda is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device is cuda, but PyTorch finds no CUDA device here: use cpu or auto")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def batches_at_once(devices: Iterable[torch.device]) -> int:
    """How many batches are to train at once: on a CPU one for each core, up to `MOST_AT_ONCE`."""
    if any(device.type != "cpu" for device in devices):
        return 1
    return min(torch.get_num_threads(), MOST_AT_ONCE)


def batches(recipes: Sequence[Recipe], *, at_once: int = 1, largest: int | None = None) -> list[list[Recipe]]:
    """Cuts recipes into sets that `fit` can train: of one shape, every alpha of a set with every seed of it.

    Seeds that want the same alphas stay together as far as they fit, and the alphas of a seed, which share its draws.
    The largest sets come first, so that what trains last, and may leave cores with nothing to do, is short.

    Args:
        recipes: Any, each once.
        at_once: How many sets train at once: the number of sets is a multiple of it where there are recipes enough.
        largest: Replicas in a set at most; None for what suits the device.
    """
    shapes: dict[Recipe, dict[int, list[float]]] = {}
    for recipe in recipes:
        shape = recipe.model_copy(update={"alpha": 0.0, "seed": 0})
        shapes.setdefault(shape, {}).setdefault(recipe.seed, []).append(recipe.alpha)
    cut = []
    for shape, alphas_of in shapes.items():
        most = largest or LARGEST_BATCH[resolve_device(shape.device).type]
        seeds_of: dict[tuple[float, ...], list[int]] = {}
        for seed, alphas in alphas_of.items():
            seeds_of.setdefault(tuple(sorted(alphas)), []).append(seed)
        for wanted, seeds in seeds_of.items():
            cut += [
                [shape.model_copy(update={"alpha": alpha, "seed": seed}) for alpha, seed in product(some_alphas, some)]
                for some_alphas in _even_parts(wanted, most)
                for some in _even_parts(sorted(seeds), most // len(some_alphas))
            ]
    cut.sort(key=len, reverse=True)
    while len(cut) % at_once and len(cut[0]) > 1:
        cut = sorted([*cut[1:], *_halves(cut[0])], key=len, reverse=True)
    return cut


def _halves(batch: Sequence[Recipe]) -> list[list[Recipe]]:
    """A set cut between its seeds, or between its alphas where it has one seed."""
    seeds = sorted({recipe.seed for recipe in batch})
    alphas = sorted({recipe.alpha for recipe in batch})
    if len(seeds) > 1:
        first = set(seeds[: len(seeds) // 2])
        return [[r for r in batch if (r.seed in first) == wanted] for wanted in (True, False)]
    middle = alphas[len(alphas) // 2]
    return [[r for r in batch if (r.alpha < middle) == wanted] for wanted in (True, False)]


def _even_parts(values: Sequence[T], largest: int) -> Iterator[Sequence[T]]:
    """`values` in as few parts of at most `largest` as will do, all of about the same length."""
    count = math.ceil(len(values) / largest)
    bounds = [len(values) * i // count for i in range(count + 1)]
    return (values[start:end] for start, end in pairwise(bounds))


def fit(
    recipes: Sequence[Recipe],
    train: EncodedPairs,
    dev: EncodedPairs,
    *,
    clean_every: int = 1,
    on_epoch: Callable[[Progress], None] | None = None,
    on_heads: Callable[[int, int], None] = lambda *_: None,
    snapshot: Snapshot | None = None,
) -> list[Fitted]:
    """Trains one compressor a recipe, all in one loop.

    Args:
        recipes: Every one of some alphas with every one of some seeds, equal in everything else.
        train: Pairs to train on.
        dev: Pairs to follow the training with; they do not influence it.
        clean_every: Epochs between measurements of the clean loss; the first and the last epoch always have one.
        on_epoch: Called after every epoch, and for those that were done before an interruption.
        on_heads: Told after every epoch of the heads, where the recipe wants any, how many are done and of how many.
        snapshot: What to go on from, and where to keep the training against interruptions.

    Returns:
        One result a recipe, in their order.

    Raises:
        InputError: If the recipe's device is not there.
        ValueError: If recipes differ in more than alpha and seed, or some of their combinations are missing.
    """
    shared = recipes[0]
    alphas, seeds = sorted({r.alpha for r in recipes}), sorted({r.seed for r in recipes})
    places = {(alpha, seed): i for i, (alpha, seed) in enumerate(product(alphas, seeds))}
    wanted = [places[r.alpha, r.seed] for r in recipes]
    if any(r.model_copy(update={"alpha": shared.alpha, "seed": shared.seed}) != shared for r in recipes):
        raise ValueError("replicas trained together may differ in alpha and seed only")
    if sorted(wanted) != list(range(len(places))):
        raise ValueError("replicas trained together are every alpha with every seed, once")

    device = resolve_device(shared.device)
    left = snapshot.begin() if snapshot else None
    needs_teacher = shared.needs_teacher and left is None
    heads = train_heads(seeds, shared.head_alpha, train, device, on_heads) if needs_teacher else None
    trainer = Trainer(shared, alphas, seeds, train, device, heads, left)
    model = trainer.model
    objective = OBJECTIVES[shared.objective]
    dev_vectors = torch.from_numpy(dev.embeddings).to(device)
    train_labels = torch.from_numpy(scores_to_labels(train.scores, shared.labels))
    dev_labels = scores_to_labels(dev.scores, shared.labels)
    # Of every epoch the loss, the clean loss and the scores on dev, each of every replica.
    curves = list(left.tensors[CURVES].numpy()) if left else []

    def state() -> State:
        begun = trainer.state()
        known = torch.from_numpy(np.reshape(curves, (len(curves), 2 + len(METRICS), len(model))))
        return State({**begun.tensors, CURVES: known}, {**begun.numbers, "epoch": len(curves)})

    def tell(epoch: int) -> None:
        if on_epoch:
            loss, clean_loss, *scores = curves[epoch - 1]
            on_epoch(Progress(epoch, shared.epochs, loss, clean_loss, Scores(*scores)))

    taken_up = len(curves)
    for epoch in range(1, taken_up + 1):
        tell(epoch)
    for epoch in range(taken_up + 1, shared.epochs + 1):
        if snapshot:
            snapshot.offer(state)
        loss = trainer.epoch()
        scores = score(pair_cosines_of_each(model, dev_vectors, dev), dev_labels)
        clean_loss = np.full(len(model), np.nan)
        if epoch % clean_every == 0 or epoch in (1, shared.epochs):
            predicted = torch.from_numpy(pair_cosines_of_each(model, trainer.vectors[: len(train.embeddings)], train))
            clean_loss = objective(predicted.double(), train_labels)[0].numpy()
        curves.append(np.stack([loss, clean_loss, *(getattr(scores, name) for name in METRICS)]))
        tell(epoch)
        if not np.isfinite(loss).any():
            break  # every replica has diverged, and none comes back from NaN
    else:
        if snapshot:
            snapshot.offer(state)

    losses, clean_losses, *followed = np.stack(curves, axis=2)
    return [
        Fitted(
            recipe,
            model.replica(r).snapshot(),
            History(
                loss=losses[r],
                clean_loss=clean_losses[r],
                dev={name: curve[r] for name, curve in zip(METRICS, followed, strict=True)},
            ),
            taken_up,
        )
        for recipe, r in zip(recipes, wanted, strict=True)
    ]
