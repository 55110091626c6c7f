"""The job register: an experiment's best run becomes a version of the registered model, in use if it is better."""

from dataclasses import dataclass

import torch

from twinsqueeze import model_store, records, registry
from twinsqueeze.data.sentence_pairs import scores_to_labels
from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.bootstrap import PairBootstrap
from twinsqueeze.evaluation.metrics import METRICS
from twinsqueeze.material import Material, gather
from twinsqueeze.model.checkpoint import Provenance, read_checkpoint
from twinsqueeze.model.compressor import Compressor, pair_cosines_of
from twinsqueeze.model.sentence_transformer import build_sentence_transformer
from twinsqueeze.model_card import LOWER_IS_BETTER, Choice, model_card
from twinsqueeze.registry import Version
from twinsqueeze.reporting import run_loader, terminal
from twinsqueeze.reporting.ablation_table import TrainedRun, build_tables
from twinsqueeze.reporting.formats import COLUMN_NAMES
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import check_tracking_server, flush, start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET_DIGEST, TRAINED_RUN
from twinsqueeze.training.batching import resolve_device
from twinsqueeze.types import FloatArray
from twinsqueeze.utils import console

THIS_EXPERIMENT = "current"
ONLY_DATASET = "any"
SPLIT = "dev"
EXAMPLES = ("A man is playing a guitar.", "Two dogs run through the snow.")


@dataclass(frozen=True)
class Trained:
    """A compressor with what its file says of it."""

    compressor: Compressor
    provenance: Provenance
    found: model_store.FoundModel


@dataclass(frozen=True)
class Verdict:
    """Whether a model takes the champion's place.

    Attributes:
        promoted: Whether it does.
        text: Why, a sentence or two.
        figures: The difference and its interval, if there were two to compare.
    """

    promoted: bool
    text: str
    figures: dict[str, float]


def register(
    experiment: str = THIS_EXPERIMENT,
    *,
    metric: str = "dev/spearman",
    dataset: str = ONLY_DATASET,
    rollback: bool = False,
) -> None:
    """Registers the best run of an experiment, and makes it the champion if it beats the one in use.

    The recipe is chosen by its mean over seeds, then the best of its seeds, both on dev.

    Args:
        experiment: Its name or id, or "current" for the one that a run started now is in.
        metric: What to choose and to compare by: dev/spearman, dev/pearson, dev/mse or dev/mae.
        dataset: The name of the data whose runs are looked at, or "any" where there are runs on one only.
        rollback: Whether to put back the previous champion instead; nothing is registered then.

    Raises:
        InputError: If there is nothing to register, or something that the user gave can't be used.
    """
    if metric.removeprefix(f"{SPLIT}/") not in METRICS or not metric.startswith(f"{SPLIT}/"):
        known = ", ".join(f"{SPLIT}/{name}" for name in METRICS)
        reason = ": test takes no part in a choice" if metric.startswith("test/") else ""
        raise InputError(f"metric must be one of {known}, not {metric!r}{reason}")
    registry.check_registry()
    check_tracking_server()
    if rollback:
        _roll_back()
        return
    experiment_id = run_loader.resolve_experiment(None if experiment == THIS_EXPERIMENT else experiment)
    choice = _choose(experiment_id, metric, dataset)
    run_id = choice.run.run_id
    known_version, champion = registry.version_of(run_id), registry.champion()
    if known_version and (registry.CHAMPION in known_version.aliases or registry.ROLLED_BACK in known_version.tags):
        _leave(choice, known_version, metric)
        return
    candidate = _open(run_id)
    material = _dev_pairs(candidate, candidate.provenance.recipe.encoder, choice.run)
    verdict = _compare(candidate, material, champion, choice)
    with start_run(f"register-{choice.run.recipe.name}", "registration") as run:
        run.params({"experiment": experiment, "dataset": dataset, "metric": metric, "trained_run": run_id})
        run.tags(records.data_tags(material) | {TRAINED_RUN: run_id})
        # One that is no champion is compared anew: the champion may have changed, or a stop have come before its alias.
        version = known_version or _register(run, candidate, material, choice, verdict)
        while not registry.settle(version, champion, promoted=verdict.promoted):
            console.info("another process has changed the champion: comparing with the new one")
            champion = registry.champion()
            verdict = _compare(candidate, material, champion, choice)
            if not known_version:
                longest = material.encoder.load_model().max_seq_length
                registry.describe(version, _card(candidate, choice, verdict, longest))
                run.describe(f"{_chosen(choice)} {verdict.text}")
        run.metrics(verdict.figures)
        run.params({"version": version.number})
    alias = registry.CHAMPION if verdict.promoted else registry.CHALLENGER
    done = "That run was registered before, and compared again: it is" if known_version else "Registered as"
    console.print_result(_chosen(choice), f"{done} version {version.number}, {alias}. {verdict.text}")
    if material.data.notice:
        console.warn(material.data.notice)
    after = (
        ("undo the promotion", links.mlflow_run_command(run, "register", rollback="true"))
        if verdict.promoted
        else ("put it in use all the same", _by_hand(version.number))
    )
    terminal.print_next_steps([*_uses(alias), after, *links.ui_steps(run)])


def _roll_back() -> None:
    former, back = registry.roll_back()
    left = f", in the place of version {former.number}" if former else ""
    with start_run("rollback", "registration") as run:
        text = f"Rolled back: version {back.number} is the champion again{left}."
        run.params({"rollback": "true", "version": back.number})  # as `mlflow run` writes it
        run.describe(text)
    console.print_result(text)
    terminal.print_next_steps([*_uses(registry.CHAMPION), *links.ui_steps(run)])


def _uses(alias: str) -> list[tuple[str, str]]:
    uri = f"models:/{registry.NAME}@{alias}"
    return [
        ("serve it", f"mlflow models serve -m {uri} --env-manager local -p 5001"),
        ("write its files", f"python -m twinsqueeze export --model {uri} --output model"),
    ]


def _by_hand(number: int) -> str:
    """The command that puts a version in use without a comparison."""
    call = f"set_registered_model_alias('{registry.NAME}', '{registry.CHAMPION}', '{number}')"
    return f'python -c "import mlflow; mlflow.MlflowClient().{call}"'


def _leave(choice: Choice, version: Version, metric: str) -> None:
    """Records that the best run is registered already: what a second call has to do is nothing."""
    rolled_back = version.tags.get(registry.ROLLED_BACK)
    since = f" It was rolled back at {rolled_back}." if rolled_back else ""
    text = f"That run is {version} of {registry.NAME} already, so nothing was registered.{since}"
    with start_run(f"register-{choice.run.recipe.name}", "registration") as run:
        run.params({"metric": metric, "trained_run": choice.run.run_id, "version": version.number})
        run.describe(text)
    console.print_result(_chosen(choice), text)


def _choose(experiment_id: str, metric: str, dataset: str) -> Choice:
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
    digests = {run.kind.dataset_digest for run in runs}
    if len(digests) > 1:
        why = f"dataset {', '.join(names)}" if dataset == ONLY_DATASET and len(names) > 1 else "data that have changed"
        raise InputError(
            f"the experiment has runs on {why}, whose scores can't be compared: "
            "name one with --dataset, or an experiment with runs on one alone"
        )
    score = metric.removeprefix(f"{SPLIT}/")
    if score != "spearman" and len({run.recipe.labels for run in runs}) > 1:
        raise InputError(
            f"the experiment has runs to different labels, where {metric} can't be compared: dev/spearman can"
        )
    baselines = run_loader.load_baselines(runs)
    tables = build_tables(runs, baselines.rows)
    sign = -1 if score in LOWER_IS_BETTER else 1
    rows = [(table, row) for table in tables for row in table.rows]
    table, best = max(rows, key=lambda pair: (sign * pair[1].scores[metric].mean, len(pair[1].runs)))
    chosen = max(best.runs, key=lambda run: sign * run.metrics[metric])
    return Choice(metric, best, chosen, len(rows), table.baselines)


def _chosen(choice: Choice) -> str:
    score = choice.row.scores[choice.metric]
    deviation = f" ± {score.deviation:.4f}" if score.count > 1 else ""
    seeds = "one seed" if score.count == 1 else f"{score.count} seeds"
    recipes = "The only recipe" if choice.recipes == 1 else f"Best of {choice.recipes} recipes"
    return (
        f"{recipes} by mean {choice.metric}: {score.mean:.4f}{deviation} over {seeds}; its best on "
        f"dev is {choice.run.recipe.name}, run {choice.run.run_id}."
    )


def _open(model: str) -> Trained:
    found = model_store.find_model(model)
    compressor, provenance = read_checkpoint(found.file, model)
    if provenance is None:
        raise InputError(f"model {model!r} does not say what it was trained on: register one that `main` has trained")
    return Trained(compressor, provenance, found)


def _dev_pairs(trained: Trained, encoder: str, run: TrainedRun) -> Material:
    """The candidate's data with the vectors of an encoder, checked to be what it was trained on."""
    provenance = trained.provenance
    named = provenance.recipe.dataset
    dataset = provenance.dataset if named == "auto" else named
    material = gather(
        dataset,
        encoder,
        resolve_device("auto"),
        ("train", SPLIT),
        score_max=provenance.score_max,
        validate_dim=lambda _: None,
    )
    if material.data.digest != run.kind.dataset_digest:
        raise InputError(
            f"dataset {dataset!r} is not what run {run.run_id} was trained on (digest {material.data.digest}, then "
            f"{run.kind.dataset_digest}): put the data back, or train again"
        )
    return material


def _check_encoder(trained: Trained, material: Material) -> None:
    if trained.provenance.encoder_fingerprint != material.encoder.fingerprint:
        raise InputError(
            f"the files of encoder {material.encoder.name!r} are not those that {trained.provenance.recipe.name} was "
            "trained with: put them back, or train again"
        )


def _compare(candidate: Trained, material: Material, champion: Version | None, choice: Choice) -> Verdict:
    """Whether the candidate is better than the champion on the same dev pairs."""
    _check_encoder(candidate, material)
    if champion is None:
        return Verdict(promoted=True, text="There was no champion to compare it with.", figures={})
    digest = material.data.splits[SPLIT].digest
    labels = candidate.provenance.recipe.labels
    name = choice.metric.removeprefix(f"{SPLIT}/")
    apart = None
    if champion.tags.get(registry.DEV_DIGEST) != digest:
        apart = "was chosen on other dev pairs"
    elif name != "spearman" and champion.tags.get(registry.LABELS) != labels:
        apart = "was trained to other labels"
    if apart:
        text = (
            f"The champion, version {champion.number}, {apart}, so the two can't be compared: "
            "give the new version the alias yourself if it is what you want in use."
        )
        return Verdict(promoted=False, text=text, figures={})
    other = _open(champion.uri)
    theirs = material
    if other.provenance.encoder_fingerprint != material.encoder.fingerprint:
        theirs = _dev_pairs(candidate, other.provenance.recipe.encoder, choice.run)
        _check_encoder(other, theirs)
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
    return Verdict(promoted, text, figures)


def _predictions(trained: Trained, material: Material) -> FloatArray:
    split = material.encoded[SPLIT]
    vectors = torch.from_numpy(split.embeddings).to(material.device)
    return pair_cosines_of(trained.compressor.to(material.device), vectors, split)


def _register(run: RunLogger, candidate: Trained, material: Material, choice: Choice, verdict: Verdict) -> Version:
    """Makes the text model, logs it with its card and registers it."""
    run_id = choice.run.run_id
    model = build_sentence_transformer(material.encoder, candidate.compressor)
    card = _card(candidate, choice, verdict, model.max_seq_length)
    name = run.text_model(model, candidate.found.file, card, EXAMPLES, run_id, candidate.provenance.recipe.model_dump())
    flush()
    model_id = run.model_id(name)
    run.describe(f"{_chosen(choice)} {verdict.text}")
    tags = {
        TRAINED_RUN: run_id,
        DATASET_DIGEST: material.data.digest,
        registry.DEV_DIGEST: material.data.splits[SPLIT].digest,
        registry.LABELS: candidate.provenance.recipe.labels,
    }
    return registry.add_version(model_id, card, tags)


def _card(candidate: Trained, choice: Choice, verdict: Verdict, longest: int | None) -> str:
    return model_card(
        candidate.provenance,
        candidate.compressor.input_dimension,
        longest=longest,
        choice=choice,
        verdict=verdict.text,
        run_id=choice.run.run_id,
    )
