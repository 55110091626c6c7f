"""Chooses the best run and decides whether it replaces the champion."""

from dataclasses import dataclass

import torch

from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs, scores_to_labels
from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.bootstrap import PairBootstrap
from twinsqueeze.experiment import ExperimentData, prepare_data
from twinsqueeze.model.checkpoint import Provenance, read_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork, predict_pair_cosines
from twinsqueeze.registry import model_loader, model_registry
from twinsqueeze.registry.model_card import LOWER_IS_BETTER, ModelSelection
from twinsqueeze.registry.model_registry import Version
from twinsqueeze.reporting import run_loader
from twinsqueeze.reporting.ablation_table import COLUMN_NAMES, TrainedRun, build_tables
from twinsqueeze.types import FloatArray
from twinsqueeze.utils import console
from twinsqueeze.utils.device import resolve_device

SPLIT = "dev"
ONLY_DATASET = "any"


@dataclass(frozen=True)
class LoadedCompressor:
    """A compressor with what its file says of it."""

    compressor: CompressorNetwork
    provenance: Provenance
    found: model_loader.ResolvedModel


@dataclass(frozen=True)
class PromotionDecision:
    """Whether a model takes the champion's place.

    Attributes:
        promoted: Whether it does.
        text: Why, a sentence or two.
        figures: The difference and its interval, if there were two to compare.
    """

    promoted: bool
    text: str
    figures: dict[str, float]


def select_best_run(experiment_id: str, metric: str, dataset: str) -> ModelSelection:
    """Selects the recipe with the best mean over seeds, then the best of its seeds.

    Raises:
        InputError: If there is no run to choose from, or data to choose on are not named.
    """
    found = run_loader.load_runs(experiment_id)
    if not found.runs:
        raise InputError(
            " ".join(["there is no finished run in the experiment to register.", *found.notes])
            + " Train with `main` or `ablation`, or name the experiment that has them"
        )
    names = sorted({run.dataset for run in found.runs})
    runs = [run for run in found.runs if dataset in {ONLY_DATASET, run.dataset}]
    if not runs:
        raise InputError(f"no finished run is on dataset {dataset!r}: there are runs on {', '.join(names)}")
    digests = {run.comparison_key.dataset_digest for run in runs}
    if len(digests) > 1:
        why = f"dataset {', '.join(names)}" if dataset == ONLY_DATASET and len(names) > 1 else "data that have changed"
        raise InputError(
            f"the experiment has runs on {why}, whose scores can't be compared: "
            "name one with --dataset, or an experiment with runs on one alone"
        )
    score = metric.removeprefix(f"{SPLIT}/")
    if score != "spearman" and len({run.recipe.label_transform for run in runs}) > 1:
        raise InputError(
            f"the experiment has runs to different labels, where {metric} can't be compared: dev/spearman can"
        )
    baselines = run_loader.load_baselines(runs)
    tables = build_tables(runs, baselines.rows)
    sign = -1 if score in LOWER_IS_BETTER else 1
    rows = [(table, row) for table in tables for row in table.rows]
    table, best = max(rows, key=lambda pair: (sign * pair[1].scores[metric].mean, len(pair[1].runs)))
    chosen = max(best.runs, key=lambda run: sign * run.metrics[metric])
    return ModelSelection(metric, best, chosen, len(rows), table.baselines)


def load_compressor(model: str) -> LoadedCompressor:
    """Loads the compressor of a model that records its provenance.

    Raises:
        InputError: If the model can't be resolved or has no provenance.
    """
    found = model_loader.resolve_model(model)
    compressor, provenance = read_checkpoint(found.checkpoint, model)
    if provenance is None:
        raise InputError(f"model {model!r} does not say what it was trained on: register one that `main` has trained")
    return LoadedCompressor(compressor, provenance, found)


def dev_pairs(trained: LoadedCompressor, encoder: str, run: TrainedRun) -> ExperimentData:
    """The candidate's data with the vectors of an encoder, checked to be what it was trained on."""
    provenance = trained.provenance
    named = provenance.recipe.dataset
    dataset = provenance.dataset if named == "auto" else named
    pairs = load_pairs(dataset, splits=("train", SPLIT), score_max=provenance.score_max)
    device = resolve_device("auto")
    resolved = resolve_encoder(encoder, device.type)
    material = prepare_data(pairs, resolved, device, score_max=provenance.score_max, reporter=console)
    if material.pairs.digest != run.comparison_key.dataset_digest:
        raise InputError(
            f"dataset {dataset!r} is not what run {run.run_id} was trained on (digest {material.pairs.digest}, then "
            f"{run.comparison_key.dataset_digest}): put the data back, or train again"
        )
    return material


def check_encoder(trained: LoadedCompressor, material: ExperimentData) -> None:
    """Raises an `InputError` if the encoder's files are not those that the compressor was trained with."""
    if trained.provenance.encoder_fingerprint != material.encoder.fingerprint:
        raise InputError(
            f"the files of encoder {material.encoder.name!r} are not those that {trained.provenance.recipe.name} was "
            "trained with: put them back, or train again"
        )


def compare_with_champion(
    candidate: LoadedCompressor, material: ExperimentData, champion: Version | None, choice: ModelSelection
) -> PromotionDecision:
    """Whether the candidate is better than the champion on the same dev pairs."""
    check_encoder(candidate, material)
    if champion is None:
        return PromotionDecision(promoted=True, text="There was no champion to compare it with.", figures={})
    digest = material.pairs.splits[SPLIT].digest
    labels = candidate.provenance.recipe.label_transform
    name = choice.metric.removeprefix(f"{SPLIT}/")
    apart = None
    if champion.tags.get(model_registry.DEV_DIGEST) != digest:
        apart = "was chosen on other dev pairs"
    elif name != "spearman" and champion.tags.get(model_registry.LABELS) != labels:
        apart = "was trained to other labels"
    if apart:
        text = (
            f"The champion, version {champion.number}, {apart}, so the two can't be compared: "
            "give the new version the alias yourself if it is what you want in use."
        )
        return PromotionDecision(promoted=False, text=text, figures={})
    other = load_compressor(champion.uri)
    theirs = material
    if other.provenance.encoder_fingerprint != material.encoder.fingerprint:
        theirs = dev_pairs(candidate, other.provenance.recipe.encoder, choice.run)
        check_encoder(other, theirs)
    resamples = PairBootstrap(scores_to_labels(material.encoded[SPLIT].scores, labels))
    ours = _predictions(candidate, material)
    difference, interval = resamples.difference(ours, _predictions(other, theirs), name)
    # Better is above zero, whatever the score.
    low, high = sorted(-end if name in LOWER_IS_BETTER else end for end in (interval.low, interval.high))
    promoted = low > 0
    verdict = "it is better" if promoted else "it is worse" if high < 0 else "that may be chance"
    text = (
        f"{COLUMN_NAMES[name]} on the {len(material.encoded[SPLIT]):,} dev pairs less that of the champion, version "
        f"{champion.number}: {difference:+.4f}, 95% interval {interval.low:+.4f} to {interval.high:+.4f} by a paired "
        f"bootstrap over pairs: {verdict}{'' if promoted else ', so the champion stays'}."
    )
    figures = {"gate/difference": difference, "gate/low": interval.low, "gate/high": interval.high}
    return PromotionDecision(promoted, text, figures)


def _predictions(trained: LoadedCompressor, material: ExperimentData) -> FloatArray:
    split = material.encoded[SPLIT]
    vectors = torch.from_numpy(split.embeddings).to(material.device)
    return predict_pair_cosines(trained.compressor.to(material.device), vectors, split)
