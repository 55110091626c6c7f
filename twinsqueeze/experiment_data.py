"""Encoded data of trainings and evaluations, shared by all recipes on them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from types import MappingProxyType

import torch

from twinsqueeze.data.dataset import Dataset, EncodedSplit
from twinsqueeze.data.embedding import OnProgress, embed_splits
from twinsqueeze.data.encoder import SentenceEncoder
from twinsqueeze.data.unlabeled import embed_unlabeled
from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.baselines import (
    BaselineScores,
    BaselineTask,
    SplitEvaluator,
    cached_baselines,
)
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.evaluation.faiss_baselines import fitted_in_worker
from twinsqueeze.evaluation.retrieval import RetrievalEvaluator
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import NO_ENCODER, SIMILARITY, Task
from twinsqueeze.training.base import Base
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.compute import resolve_device
from twinsqueeze.utils.console import SILENT, Reporter
from twinsqueeze.utils.disk_cache import DiskCache
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
    _evaluators: dict[tuple[str, str], SplitEvaluator] = field(default_factory=dict)
    _baselines: dict[tuple[tuple[str, ...], str, int, int], list[BaselineScores]] = field(default_factory=dict)
    _unlabeled: dict[int, FloatArray] = field(default_factory=dict)
    base: Base | None = None  # of recipes that have one
    _fits: ExitStack = field(default_factory=ExitStack)

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

    @property
    def base_network(self) -> CompressorNetwork | None:
        """The compressor that trainings start from."""
        return self.base.network if self.base else None

    def training_pairs(self, recipe: Recipe) -> EncodedSplit:
        """Returns the train pairs, with the unlabeled sentences of a recipe."""
        encoded, number = self.encoded["train"], recipe.unlabeled_sentences
        if not number:
            return encoded
        if self.encoder is None:
            raise InputError("unlabeled_sentences must be 0 for data that are vectors, since they need an encoder")
        if number not in self._unlabeled:
            with _encoding_progress(self.reporter, "encoding unlabeled sentences", self._cache) as advance:
                self._unlabeled[number] = embed_unlabeled(number, self.encoder, self._cache, advance)
        return replace(encoded, unpaired=self._unlabeled[number])

    def evaluator(self, split: str, label_transform: str) -> SplitEvaluator:
        """Returns the evaluator of compressors on a split."""
        key = split, label_transform
        if key not in self._evaluators:
            encoded = self.encoded[split]
            if self.task == SIMILARITY:
                self._evaluators[key] = Evaluator(encoded, label_transform, self.device)
            else:
                self._evaluators[key] = RetrievalEvaluator(encoded, self.device)
        return self._evaluators[key]

    @contextmanager
    def fitting_baselines(self, recipe: Recipe) -> Iterator[None]:
        """Fits FAISS's baselines in a worker process while the block runs, until the first scores are needed."""
        task = BaselineTask(self.training_pairs(recipe), {"dev": self.evaluator("dev", recipe.label_transform)})
        with self._fits:
            self._fits.enter_context(fitted_in_worker([*task.unlabeled_quantizers, *task.quantizers], self._cache))
            yield

    def baselines(self, splits: Sequence[str], recipe: Recipe, dim: int) -> list[BaselineScores]:
        """Returns the scores of baselines at a dimension, fitted on train.

        Some are fitted on the unlabeled sentences of the recipe as well, if a training has needed them.
        """
        unlabeled = recipe.unlabeled_sentences if recipe.unlabeled_sentences in self._unlabeled else 0
        key = tuple(splits), recipe.label_transform, dim, unlabeled
        if key not in self._baselines:
            self._fits.close()
            evaluators = {split: self.evaluator(split, recipe.label_transform) for split in splits}
            task = BaselineTask(self.training_pairs(recipe) if unlabeled else self.encoded["train"], evaluators)
            self._baselines[key] = cached_baselines(task, dim, self._cache, partial(show_progress, self.reporter))
        return self._baselines[key]


DataByRecipe = Mapping[Recipe, ExperimentData]


def load_data(recipes: Sequence[Recipe], load: Callable[[Recipe], ExperimentData]) -> DataByRecipe:
    """Returns the data of each recipe; recipes with equal dataset, encoder, device and base share theirs.

    The recipes are as `adapt_recipe` returns them.
    """
    groups: dict[tuple[str, str, str, str], list[Recipe]] = defaultdict(list)
    for recipe in recipes:
        groups[recipe.dataset, recipe.encoder, recipe.device, recipe.base].append(recipe)
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
def show_progress(reporter: Reporter, title: str, unit: str) -> Iterator[Callable[..., None]]:
    """Shows a bar; the function that advances it also raises if the process is to stop."""
    with reporter.progress(title, unit) as advance:

        def checked_advance(done: int, total: int | None, values: Mapping[str, str] = MappingProxyType({})) -> None:
            check_interrupted()
            advance(done, total, values)

        yield checked_advance


@contextmanager
def _encoding_progress(reporter: Reporter, title: str, cache: DiskCache) -> Iterator[OnProgress]:
    """Shows a bar, and the warnings of the cache at the end."""
    with show_progress(reporter, title, "sentence") as advance:
        yield advance
    while cache.warnings:
        reporter.warn(cache.warnings.pop(0))
