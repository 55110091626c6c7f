"""What a job works on: pairs, their sentences' vectors, and what they are measured with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import torch

from twinsqueeze.data.encoder import EncodedPairs, OnProgress, SentenceEncoder, embed_pairs, resolve_encoder
from twinsqueeze.data.sentence_pairs import PairDataset, load_pairs
from twinsqueeze.data.synthetic import embed_synthetic
from twinsqueeze.evaluation.baselines import BaselineScores, BaselineTask, cached_baselines
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking import run
from twinsqueeze.utils import console
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.signals import check_interrupted


@dataclass(frozen=True)
class ExperimentContext:
    """Pairs and their sentences' vectors, with what is derived from them once and used by every replica.

    Attributes:
        data: The pairs.
        encoder: What made the vectors.
        encoded: The vectors of each split.
        device: Where compressors are trained and run.
        score_max: What the user said of the upper end of the scores.
    """

    data: PairDataset
    encoder: SentenceEncoder
    encoded: dict[str, EncodedPairs]
    device: torch.device
    score_max: float | None
    _cache: DiskCache
    _evaluators: dict[tuple[str, str], Evaluator] = field(default_factory=dict)
    _baselines: dict[tuple[tuple[str, ...], str, int], list[BaselineScores]] = field(default_factory=dict)
    _training_pairs: dict[int, EncodedPairs] = field(default_factory=dict)

    def training_pairs(self, recipe: Recipe) -> EncodedPairs:
        """The train pairs, with the synthetic sentences that a recipe wants beside them.

        Raises:
            InputError: If the encoder gives nothing to make sentences of.
        """
        count = recipe.synthetic_sentences
        if count not in self._training_pairs:
            pairs = self.encoded["train"]
            if count:
                with _encoding("encoding synthetic sentences") as on_progress:
                    train = self.data.splits["train"]
                    others = embed_synthetic(count, train, self.encoder, self._cache, on_progress)
                self.flush_warnings()
                pairs = replace(pairs, others=others)
            self._training_pairs[count] = pairs
        return self._training_pairs[count]

    def flush_warnings(self) -> None:
        """Prints the warnings of the cache, each once."""
        while self._cache.trouble:
            console.warn(self._cache.trouble.pop(0))

    def evaluator(self, split: str, label_kind: str) -> Evaluator:
        """What measures compressors on a split."""
        key = split, label_kind
        if key not in self._evaluators:
            self._evaluators[key] = Evaluator(self.encoded[split], label_kind, self.device)
        return self._evaluators[key]

    def baselines(self, splits: Sequence[str], label_kind: str, dim: int) -> list[BaselineScores]:
        """What needs no labels, at `dim` numbers, on some splits."""
        key = tuple(splits), label_kind, dim
        if key not in self._baselines:
            task = BaselineTask(
                self.encoded["train"].embeddings,
                {split: self.encoded[split] for split in splits},
                {split: self.evaluator(split, label_kind).labels for split in splits},
            )
            with console.progress("comparing with what needs no labels", "score") as advance:
                scored = count()

                def on_scored(baseline: str) -> None:
                    check_interrupted()
                    advance(next(scored), None, {"now": baseline})

                self._baselines[key] = cached_baselines(task, dim, self._cache, _on_training, on_scored)
        return self._baselines[key]


def _on_training(quantiser: str) -> None:
    check_interrupted()
    console.info(f"training {quantiser}, to compare with; it is kept for these data")


def prepare_context(
    dataset: str,
    encoder_name: str,
    device: torch.device,
    splits: Sequence[str],
    *,
    score_max: float | None = None,
    validate_dim: Callable[[int], None],
) -> ExperimentContext:
    """Reads pairs and encodes their sentences.

    Args:
        dataset: As in a recipe.
        encoder_name: As in a recipe.
        device: Where to encode and to train.
        splits: Which to read.
        score_max: The upper end of the data's scores; None for 5, or what is known of STS-B.
        validate_dim: Called with the dimension of the encoder's vectors, before anything is encoded.

    Raises:
        InputError: If data, encoder or tracking server can't be had, or by `validate_dim`.
    """
    data = load_pairs(dataset, splits=splits, score_max=score_max)
    if data.notice:
        console.warn(data.notice)
    encoder = resolve_encoder(encoder_name, device.type)
    run.check_tracking_server()
    cache = DiskCache()
    with _encoding("encoding") as on_progress:
        encoded = embed_pairs(data.splits, encoder, cache, validate_dim=validate_dim, on_progress=on_progress)
    material = ExperimentContext(data, encoder, encoded, device, score_max, cache)
    material.flush_warnings()
    return material


@contextmanager
def _encoding(what: str) -> Iterator[OnProgress]:
    with console.progress(what, "sentence") as advance:

        def on_progress(done: int, total: int) -> None:
            check_interrupted()
            advance(done, total, {})

        yield on_progress
