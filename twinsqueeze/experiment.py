"""Trains and evaluates recipes on sentence pairs. Computes and returns: nothing here prints or records."""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from types import MappingProxyType

import torch

from twinsqueeze import __version__
from twinsqueeze.data.dataset import Dataset, EncodedSplit
from twinsqueeze.data.encoder import DEFAULT_ENCODER, OnProgress, SentenceEncoder, embed_splits
from twinsqueeze.data.sentence_pairs import NAMED_DATASETS
from twinsqueeze.data.synthetic import embed_synthetic
from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.baselines import BaselineScores, BaselineTask, VectorEvaluator, cached_baselines
from twinsqueeze.evaluation.evaluator import EvaluationResult, Evaluator, pair_losses
from twinsqueeze.evaluation.retrieval import RetrievalEvaluator
from twinsqueeze.model.checkpoint import CheckpointMetadata
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import int8_calibration_ranges
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import NO_ENCODER, SIMILARITY, Task
from twinsqueeze.training.batching import num_parallel_batches, plan_batches
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.grid_trainer import GridBatch, train_batches
from twinsqueeze.training.loop import EpochMetrics, TrainingResult, train_replicas
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.compute import resolve_device
from twinsqueeze.utils.console import SILENT, Reporter
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.files import expand_user, is_dir, is_file
from twinsqueeze.utils.signals import check_interrupted


@dataclass(frozen=True, eq=False)
class ExperimentData:
    """An encoded dataset, with what is derived from it once and shared by all recipes."""

    pairs: Dataset
    encoder: SentenceEncoder | None  # None if the data are vectors
    encoded: dict[str, EncodedSplit]  # by split
    device: torch.device  # of training and evaluation
    reporter: Reporter
    _cache: DiskCache
    _evaluators: dict[tuple[str, str], Evaluator | RetrievalEvaluator] = field(default_factory=dict)
    _baselines: dict[tuple[tuple[str, ...], str, int], list[BaselineScores]] = field(default_factory=dict)
    _synthetic: dict[int, FloatArray] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """What can be measured on the data."""
        return self.pairs.task

    @property
    def encoder_name(self) -> str:
        """The encoder's name, "none" without one."""
        return self.encoder.name if self.encoder else NO_ENCODER

    @property
    def encoder_fingerprint(self) -> str:
        """The encoder's fingerprint, "none" without one."""
        return self.encoder.fingerprint if self.encoder else NO_ENCODER

    def training_pairs(self, recipe: Recipe) -> EncodedSplit:
        """Returns the train pairs, with the synthetic sentences of a recipe."""
        encoded, number = self.encoded["train"], recipe.synthetic_sentences
        if not number:
            return encoded
        if self.encoder is None:
            raise InputError("synthetic_sentences must be 0 for data that are vectors, since they need an encoder")
        if number not in self._synthetic:
            texts = self.pairs.splits["train"].texts
            with _encoding_progress(self.reporter, "encoding synthetic sentences", self._cache) as advance:
                self._synthetic[number] = embed_synthetic(number, texts, self.encoder, self._cache, advance)
        return replace(encoded, unpaired=self._synthetic[number])

    def evaluator(self, split: str, label_transform: str) -> Evaluator | RetrievalEvaluator:
        """Returns the evaluator of compressors on a split."""
        key = split, label_transform
        if key not in self._evaluators:
            encoded = self.encoded[split]
            if self.task == SIMILARITY:
                self._evaluators[key] = Evaluator(encoded, label_transform, self.device)
            else:
                self._evaluators[key] = RetrievalEvaluator(encoded, self.device)
        return self._evaluators[key]

    def baselines(self, splits: Sequence[str], label_transform: str, dim: int) -> list[BaselineScores]:
        """Returns the scores of baselines at a dimension, fitted on the train vectors without labels."""
        key = tuple(splits), label_transform, dim
        if key not in self._baselines:
            evaluators: dict[str, VectorEvaluator] = {s: self.evaluator(s, label_transform) for s in splits}
            task = BaselineTask(self.encoded["train"].embeddings, evaluators)
            self._baselines[key] = cached_baselines(task, dim, self._cache, partial(_progress, self.reporter))
        return self._baselines[key]


DataByRecipe = Mapping[Recipe, ExperimentData]


def load_data(recipes: Sequence[Recipe], load: Callable[[Recipe], ExperimentData]) -> DataByRecipe:
    """Returns the data of each recipe; recipes with equal dataset, encoder and device share theirs.

    The recipes are as `adapt_recipe` returns them.
    """
    groups: dict[tuple[str, str, str], list[Recipe]] = defaultdict(list)
    for recipe in recipes:
        groups[recipe.dataset, recipe.encoder, recipe.device].append(recipe)
    loaded: dict[Recipe, ExperimentData] = {}
    for group in groups.values():  # if the largest dim fits the encoder, so do the others
        data = load(max(group, key=attrgetter("dim")))
        loaded |= dict.fromkeys((adapt_recipe(recipe, data) for recipe in group), data)
    return loaded


def adapt_recipe(recipe: Recipe, data: ExperimentData) -> Recipe:
    """Returns a recipe without its encoder if the data are vectors; raises an `InputError` if it can't be trained."""
    recipe.check_task(data.task, data.pairs.name)
    return recipe if data.encoder else recipe.model_copy(update={"encoder": NO_ENCODER})


def prepare_data(
    pairs: Dataset,
    encoder: SentenceEncoder | None,
    device: str,
    *,
    validate_dim: Callable[[int], None] = lambda _: None,
    reporter: Reporter = SILENT,
) -> ExperimentData:
    """Encodes the texts of train and of the splits to evaluate on; vectors come from the cache where it has them.

    Without an encoder the data are vectors. `device` is that of the compressors. `validate_dim` is called with the
    encoder's dimension before anything is encoded, and may raise `InputError`.
    """
    cache = DiskCache()
    with _encoding_progress(reporter, "encoding", cache) as advance:
        encoded = embed_splits(pairs.splits, encoder, cache, validate_dim=validate_dim, on_progress=advance)
    return ExperimentData(pairs, encoder, encoded, resolve_device(device), reporter, cache)


@contextmanager
def _progress(reporter: Reporter, title: str, unit: str) -> Iterator[Callable[..., None]]:
    """Shows a bar; the function that advances it also raises if the process is to stop."""
    with reporter.progress(title, unit) as advance:

        def checked_advance(done: int, total: int | None, values: Mapping[str, str] = MappingProxyType({})) -> None:
            check_interrupted()
            advance(done, total, values)

        yield checked_advance


@contextmanager
def _encoding_progress(reporter: Reporter, title: str, cache: DiskCache) -> Iterator[OnProgress]:
    """Shows a bar, and the warnings of the cache at the end."""
    with _progress(reporter, title, "sentence") as advance:
        yield advance
    while cache.warnings:
        reporter.warn(cache.warnings.pop(0))


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
    with _progress(data.reporter, "training", "epoch") as advance:

        def after_epoch(metrics: EpochMetrics) -> None:
            on_epoch(metrics)
            advance(metrics.epoch, metrics.epochs, metrics.shown())

        (result,) = train_replicas(
            [recipe],
            train_pairs,
            data.encoded["dev"],
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
    return [GridBatch(batch, data.training_pairs(batch[0]), data.encoded["dev"]) for batch in batches]


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
    baselines = data.baselines(splits, recipe.label_transform, compressor.dim)
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
    if data.encoder and data.encoder.name != DEFAULT_ENCODER and is_dir(expand_user(recipe.encoder)):
        paths["encoder"] = str(data.encoder.folder)
    return recipe.model_copy(update=paths)
