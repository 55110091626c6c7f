"""Trains and evaluates recipes. Computes and returns: nothing here prints or records."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch

from twinsqueeze import __version__
from twinsqueeze.data.sentence_pairs import NAMED_DATASETS
from twinsqueeze.evaluation.baselines import BaselineScores
from twinsqueeze.evaluation.evaluator import EvaluationResult, pair_losses
from twinsqueeze.experiment_data import DataByRecipe, ExperimentData, show_progress
from twinsqueeze.model.checkpoint import CheckpointMetadata
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import int8_calibration_ranges
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import SIMILARITY, Task
from twinsqueeze.training.batching import num_parallel_batches, plan_batches
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.grid_trainer import GridBatch, train_batches
from twinsqueeze.training.loop import EpochMetrics, TrainingResult, train_replicas
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.files import expand_user, is_dir, is_file


@dataclass(frozen=True)
class Evaluation:
    """A compressor evaluated on some splits, beside baselines on the same splits."""

    name: str  # such as mlp32-a0.75-s0
    compressor: CompressorNetwork
    recipe: Recipe  # the default for weights of another program
    results: dict[str, EvaluationResult]
    baselines: list[BaselineScores]
    task: Task


@dataclass(frozen=True)
class EvaluatedTraining(Evaluation):
    """A finished training with its evaluation on every split except train."""

    training: TrainingResult
    metadata: CheckpointMetadata
    train_losses: FloatArray | None  # (P,) squared errors of the train pairs; None without scores


def train(
    recipe: Recipe,
    data: ExperimentData,
    on_epoch: Callable[[EpochMetrics], None] = lambda _: None,
    checkpoint: TrainingCheckpoint | None = None,
) -> TrainingResult:
    """Trains one compressor; `on_epoch` is also called for the epochs of a resumed checkpoint."""
    train_pairs = data.training_pairs(recipe)
    with show_progress(data.reporter, "training", "epoch") as advance:

        def after_epoch(metrics: EpochMetrics) -> None:
            on_epoch(metrics)
            advance(metrics.epoch, metrics.epochs, metrics.shown())

        (result,) = train_replicas(
            [recipe],
            train_pairs,
            data.encoded["dev"],
            base=data.base_network,
            on_epoch=after_epoch,
            on_teacher_epoch=lambda done, total: advance(0, recipe.epochs, {"teacher": f"{done} of {total} epochs"}),
            checkpoint=checkpoint,
        )
    if result.diverged_at and checkpoint:
        checkpoint.discard()
    return result


def plan_grid(recipes: Sequence[Recipe], data: ExperimentData, num_parallel: int) -> list[GridBatch]:
    """Splits recipes on the same data into batches, of which `num_parallel` train at once."""
    batches = plan_batches(recipes, at_once=num_parallel)
    return [
        GridBatch(batch, data.training_pairs(batch[0]), data.encoded["dev"], base=data.base_network)
        for batch in batches
    ]


def train_grid(
    recipes: Sequence[Recipe],
    data: DataByRecipe,
    *,
    clean_loss_every: int = 1,
    plan: Callable[[Sequence[Recipe], ExperimentData, int], list[GridBatch]] = plan_grid,
) -> Generator[TrainingResult]:
    """Trains distinct recipes in batches and yields the result of each. Close the generator to end early.

    The function `plan` makes the batches, which may contain more recipes. `clean_loss_every` is the number of epochs
    between measurements of the loss without noise.
    """
    wanted = set(recipes)
    num_parallel = num_parallel_batches(each.device for each in data.values())
    batches = []
    for shared in dict.fromkeys(data.values()):
        batches += plan([recipe for recipe in recipes if data[recipe] is shared], shared, num_parallel)
    train = partial(train_batches, batches, num_parallel=num_parallel, clean_loss_every=clean_loss_every)
    progress = next(iter(data.values())).reporter.progress
    with progress("training", "epoch") as advance, closing(train(on_progress=advance)) as trained:
        for results in trained:
            yield from (result for result in results if result.recipe in wanted)


def evaluate(
    name: str,
    compressor: CompressorNetwork,
    metadata: CheckpointMetadata | None,
    data: ExperimentData,
    splits: Sequence[str],
) -> Evaluation:
    """Evaluates a compressor and the baselines of its dimension; without int8 ranges, int8 scores are left out."""
    recipe, ranges = (metadata.recipe, metadata.int8_ranges) if metadata else (Recipe(), None)
    placed = compressor.to(data.device)
    results = {split: data.evaluator(split, recipe.label_transform)(placed, ranges) for split in splits}
    baselines = data.baselines(splits, recipe, compressor.dim)
    return Evaluation(name, compressor, recipe, results, baselines, data.task)


def evaluate_training(training: TrainingResult, data: ExperimentData) -> EvaluatedTraining:
    """Evaluates a trained compressor on every split except train; raises `DivergedError` if the training diverged."""
    training.check()
    recipe, compressor, train_pairs = training.recipe, training.compressor, data.encoded["train"]
    placed = compressor.to(data.device)
    vectors = torch.from_numpy(train_pairs.embeddings).to(data.device)
    metadata = CheckpointMetadata(
        recipe=_with_absolute_paths(recipe, data),
        task=data.task.name,
        dataset=data.pairs.name,
        dataset_digest=data.pairs.digest,
        score_max=data.pairs.score_max,
        columns=dict(data.pairs.columns),
        encoder_fingerprint=data.encoder_fingerprint,
        version=__version__,
        base=data.base.description if data.base else None,
        int8_ranges=int8_calibration_ranges(placed.compress(vectors).cpu().numpy()),
    )
    evaluation = evaluate(
        recipe.name, compressor, metadata, data, [split for split in data.encoded if split != "train"]
    )
    scored = data.task == SIMILARITY
    train_losses = pair_losses(placed, train_pairs, recipe.label_transform) if scored else None
    return EvaluatedTraining(**vars(evaluation), training=training, metadata=metadata, train_losses=train_losses)


def _with_absolute_paths(recipe: Recipe, data: ExperimentData) -> Recipe:
    """Returns the recipe with folders that are found from any working directory."""
    paths = {}
    folder = expand_user(recipe.dataset)
    if recipe.dataset not in NAMED_DATASETS and (is_dir(folder) or is_file(folder)):
        paths["dataset"] = str(folder.resolve())
    if data.encoder:
        paths["encoder"] = data.encoder.absolute_name
    return recipe.model_copy(update=paths)
