"""Trains and evaluates recipes on sentence pairs. Computes and returns: nothing here prints or records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import torch

from twinsqueeze import __version__
from twinsqueeze.data.encoder import EncodedPairs, OnProgress, SentenceEncoder, embed_pairs
from twinsqueeze.data.sentence_pairs import PairDataset
from twinsqueeze.data.synthetic import embed_synthetic
from twinsqueeze.evaluation.baselines import BaselineScores, BaselineTask, cached_baselines
from twinsqueeze.evaluation.evaluator import EvaluationResult, Evaluator, pair_losses
from twinsqueeze.model.checkpoint import CheckpointMetadata
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import Int8Ranges, int8_calibration_ranges
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.batching import num_parallel_batches, plan_batches
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.grid_trainer import GridBatch, train_batches
from twinsqueeze.training.loop import EpochMetrics, TrainingResult, train_replicas
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.reporter import SILENT, Reporter
from twinsqueeze.utils.signals import check_interrupted


@dataclass(frozen=True)
class ExperimentData:
    """Encoded sentence pairs, with what is derived from them once and shared by all recipes.

    Attributes:
        encoded: The vectors of each split.
        device: Where compressors are trained and evaluated.
        score_max: Upper end of the scores as the user gave it; None for the default.
        reporter: Where progress and messages go.
    """

    pairs: PairDataset
    encoder: SentenceEncoder
    encoded: dict[str, EncodedPairs]
    device: torch.device
    score_max: float | None
    reporter: Reporter
    _cache: DiskCache
    _evaluators: dict[tuple[str, str], Evaluator] = field(default_factory=dict)
    _baselines: dict[tuple[tuple[str, ...], str, int], list[BaselineScores]] = field(default_factory=dict)
    _training_pairs: dict[int, EncodedPairs] = field(default_factory=dict)

    def training_pairs(self, recipe: Recipe) -> EncodedPairs:
        """Returns the train pairs, with the synthetic sentences of a recipe.

        Raises:
            InputError: If the encoder's vocabulary has no words to make sentences of.
        """
        number = recipe.synthetic_sentences
        if number not in self._training_pairs:
            encoded = self.encoded["train"]
            if number:
                with _encoding_progress(self.reporter, "encoding synthetic sentences") as on_progress:
                    train = self.pairs.splits["train"]
                    unpaired = embed_synthetic(number, train, self.encoder, self._cache, on_progress)
                _report_cache_warnings(self._cache, self.reporter)
                encoded = replace(encoded, unpaired=unpaired)
            self._training_pairs[number] = encoded
        return self._training_pairs[number]

    def evaluator(self, split: str, label_transform: str) -> Evaluator:
        """Returns the evaluator of compressors on a split."""
        key = split, label_transform
        if key not in self._evaluators:
            self._evaluators[key] = Evaluator(self.encoded[split], label_transform, self.device)
        return self._evaluators[key]

    def baselines(self, splits: Sequence[str], label_transform: str, dim: int) -> list[BaselineScores]:
        """Returns the scores of baselines at a dimension, fitted on the train vectors without labels."""
        key = tuple(splits), label_transform, dim
        if key not in self._baselines:
            evaluators = {split: self.evaluator(split, label_transform) for split in splits}
            task = BaselineTask(self.encoded["train"].embeddings, evaluators)
            with self.reporter.progress("evaluating baselines", "baseline") as advance:
                scored = count()

                def on_scored(baseline: str) -> None:
                    check_interrupted()
                    advance(next(scored), None, {"now": baseline})

                self._baselines[key] = cached_baselines(task, dim, self._cache, self._on_fitting, on_scored)
        return self._baselines[key]

    def _on_fitting(self, baseline: str) -> None:
        check_interrupted()
        self.reporter.info(f"fitting the baseline {baseline}; it is cached for these sentences")


# Data by dataset, encoder and device, which `data_key` returns.
DataKey = tuple[str, str, str]
DataByKey = Mapping[DataKey, ExperimentData]


def data_key(recipe: Recipe) -> DataKey:
    """Returns what recipes must have in common to share their data: dataset, encoder and device."""
    return recipe.dataset, recipe.encoder, recipe.device


def prepare_data(
    pairs: PairDataset,
    encoder: SentenceEncoder,
    device: torch.device,
    *,
    score_max: float | None = None,
    validate_dim: Callable[[int], None] = lambda _: None,
    reporter: Reporter = SILENT,
) -> ExperimentData:
    """Encodes the sentences of pairs; vectors come from the cache where it has them.

    Args:
        pairs: Train, and the splits to evaluate on.
        encoder: Its vectors are what compressors are trained on.
        device: Where to encode and to train.
        score_max: As given to `load_pairs`; recorded in the compressor's file.
        validate_dim: Called with the encoder's dimension before anything is encoded; may raise `InputError`.
        reporter: Where progress and messages go.

    Raises:
        InputError: If the encoder can't be loaded, or by `validate_dim`.
    """
    cache = DiskCache()
    with _encoding_progress(reporter, "encoding") as on_progress:
        encoded = embed_pairs(pairs.splits, encoder, cache, validate_dim=validate_dim, on_progress=on_progress)
    _report_cache_warnings(cache, reporter)
    return ExperimentData(pairs, encoder, encoded, device, score_max, reporter, cache)


@contextmanager
def _encoding_progress(reporter: Reporter, title: str) -> Iterator[OnProgress]:
    with reporter.progress(title, "sentence") as advance:

        def on_progress(done: int, total: int) -> None:
            check_interrupted()
            advance(done, total, {})

        yield on_progress


def _report_cache_warnings(cache: DiskCache, reporter: Reporter) -> None:
    while cache.warnings:
        reporter.warn(cache.warnings.pop(0))


@dataclass(frozen=True)
class Evaluation:
    """A compressor evaluated on some splits, beside baselines of the same data.

    Attributes:
        name: The compressor's name, such as mlp32-alpha0.75-seed0.
        results: Its results by split.
        baselines: The baselines on the same splits.
    """

    name: str
    compressor: CompressorNetwork
    results: dict[str, EvaluationResult]
    baselines: list[BaselineScores]


@dataclass(frozen=True)
class EvaluatedTraining:
    """A finished training with its evaluation on every split except train.

    Attributes:
        metadata: What the compressor's file records of the training.
        train_losses: (P,) squared errors of the train pairs.
    """

    training: TrainingResult
    evaluation: Evaluation
    metadata: CheckpointMetadata
    train_losses: FloatArray


def train(
    recipe: Recipe,
    data: ExperimentData,
    *,
    clean_loss_every: int = 1,
    on_epoch: Callable[[EpochMetrics], None] = lambda _: None,
    checkpoint: TrainingCheckpoint | None = None,
) -> TrainingResult:
    """Trains one compressor; `on_epoch` is also called for the epochs of a resumed checkpoint.

    Raises:
        DivergedError: If the loss is not finite.
    """
    train_pairs = data.training_pairs(recipe)
    with data.reporter.progress("training", "epoch") as advance:

        def after_epoch(metrics: EpochMetrics) -> None:
            check_interrupted()
            on_epoch(metrics)
            shown = {"loss": f"{metrics.loss[0]:.4f}", "dev Spearman": f"{metrics.dev.spearman[0]:.4f}"}
            advance(metrics.epoch, metrics.epochs, shown)

        def after_teacher_epoch(done: int, total: int) -> None:
            check_interrupted()
            advance(0, recipe.epochs, {"teacher": f"{done} of {total} epochs"})

        (result,) = train_replicas(
            [recipe],
            train_pairs,
            data.encoded["dev"],
            clean_loss_every=clean_loss_every,
            on_epoch=after_epoch,
            on_teacher_epoch=after_teacher_epoch,
            checkpoint=checkpoint,
        )
    if result.diverged_at and checkpoint:
        checkpoint.discard()
    result.check()
    return result


def evaluate(
    name: str,
    compressor: CompressorNetwork,
    data: ExperimentData,
    splits: Sequence[str],
    label_transform: str,
    int8_ranges: Int8Ranges | None = None,
) -> Evaluation:
    """Evaluates a compressor and the baselines of its dimension.

    Args:
        name: The compressor's name.
        compressor: On any device; its input dimension is the encoder's.
        data: What to evaluate on.
        splits: The splits.
        label_transform: As in a recipe.
        int8_ranges: Calibration of the int8 scores; None leaves them out.
    """
    placed = compressor.to(data.device)
    results = {split: data.evaluator(split, label_transform)(placed, int8_ranges) for split in splits}
    return Evaluation(name, compressor, results, data.baselines(splits, label_transform, compressor.dim))


def evaluate_training(training: TrainingResult, data: ExperimentData) -> EvaluatedTraining:
    """Evaluates a trained compressor on every split except train."""
    recipe, compressor = training.recipe, training.compressor
    placed = compressor.to(data.device)
    vectors = torch.from_numpy(data.encoded["train"].embeddings).to(data.device)
    metadata = CheckpointMetadata(
        recipe=recipe,
        dataset=data.pairs.name,
        dataset_digest=data.pairs.digest,
        score_max=data.score_max,
        encoder_fingerprint=data.encoder.fingerprint,
        version=__version__,
        int8_ranges=int8_calibration_ranges(placed.compress(vectors).cpu().numpy()),
    )
    splits = [split for split in data.encoded if split != "train"]
    evaluation = evaluate(recipe.name, compressor, data, splits, recipe.label_transform, metadata.int8_ranges)
    train_losses = pair_losses(placed, data.encoded["train"], recipe.label_transform)
    return EvaluatedTraining(training, evaluation, metadata, train_losses)


def train_grid(recipes: Sequence[Recipe], data: DataByKey) -> dict[Recipe, EvaluatedTraining]:
    """Trains and evaluates recipes, those of one shape as one batch.

    Args:
        recipes: Distinct recipes.
        data: Their data, by `data_key`.

    Raises:
        DivergedError: If the loss of a training is not finite.
    """
    num_parallel = num_parallel_batches(of_key.device for of_key in data.values())
    batches = [
        GridBatch(batch, of_key.training_pairs(batch[0]), of_key.encoded["dev"])
        for key, of_key in data.items()
        for batch in plan_batches([r for r in recipes if data_key(r) == key], at_once=num_parallel)
    ]
    reporter = next(iter(data.values())).reporter
    evaluated = {}
    with reporter.progress("training", "epoch") as advance:
        trained = train_batches(batches, num_parallel=num_parallel, clean_loss_every=1, on_progress=advance)
        with closing(trained) as results:
            for result in (result for batch in results for result in batch):
                result.check()
                evaluated[result.recipe] = evaluate_training(result, data[data_key(result.recipe)])
    return evaluated
