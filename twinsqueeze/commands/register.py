"""The command register: the best run becomes a version of the registered model."""

from twinsqueeze.commands import run_recording
from twinsqueeze.errors import InputError
from twinsqueeze.evaluation.metrics import METRICS
from twinsqueeze.experiment import ExperimentData
from twinsqueeze.model.sentence_transformer import build_sentence_transformer
from twinsqueeze.registry import model_registry
from twinsqueeze.registry.model_card import ModelSelection, render_model_card
from twinsqueeze.registry.model_registry import Version
from twinsqueeze.registry.promotion import (
    ONLY_DATASET,
    SPLIT,
    LoadedCompressor,
    PromotionDecision,
    compare_with_champion,
    dev_pairs,
    load_compressor,
    select_best_run,
)
from twinsqueeze.reporting import run_loader, terminal
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import check_tracking_server, flush, start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET_DIGEST, TRAINED_RUN
from twinsqueeze.utils import console

THIS_EXPERIMENT = "current"
EXAMPLES = ("A man is playing a guitar.", "Two dogs run through the snow.")


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
    model_registry.check_registry()
    check_tracking_server()
    if rollback:
        _roll_back()
        return
    experiment_id = run_loader.resolve_experiment(None if experiment == THIS_EXPERIMENT else experiment)
    choice = select_best_run(experiment_id, metric, dataset)
    run_id = choice.run.run_id
    known_version, champion = model_registry.version_of(run_id), model_registry.champion()
    if known_version and (
        model_registry.CHAMPION in known_version.aliases or model_registry.ROLLED_BACK in known_version.tags
    ):
        _report_already_registered(choice, known_version, metric)
        return
    candidate = load_compressor(run_id)
    material = dev_pairs(candidate, candidate.provenance.recipe.encoder, choice.run)
    verdict = compare_with_champion(candidate, material, champion, choice)
    with start_run(f"register-{choice.run.recipe.name}", "registration") as run:
        run.log_params({"experiment": experiment, "dataset": dataset, "metric": metric, "trained_run": run_id})
        run.set_tags(run_recording.data_tags(material) | {TRAINED_RUN: run_id})
        # One that is no champion is compared anew: the champion may have changed, or a stop have come before its alias.
        version = known_version or _register(run, candidate, material, choice, verdict)
        while not model_registry.assign_alias_if_unchanged(version, champion, promoted=verdict.promoted):
            console.info("another process has changed the champion: comparing with the new one")
            champion = model_registry.champion()
            verdict = compare_with_champion(candidate, material, champion, choice)
            if not known_version:
                longest = material.encoder.load_model().max_seq_length
                model_registry.describe(version, _card(candidate, choice, verdict, longest))
                run.set_description(f"{_model_selection(choice)} {verdict.text}")
        run.log_metrics(verdict.figures)
        run.log_params({"version": version.number})
    alias = model_registry.CHAMPION if verdict.promoted else model_registry.CHALLENGER
    done = "That run was registered before, and compared again: it is" if known_version else "Registered as"
    console.print_result(_model_selection(choice), f"{done} version {version.number}, {alias}. {verdict.text}")
    if material.pairs.notice:
        console.warn(material.pairs.notice)
    after = (
        ("undo the promotion", links.mlflow_run_command(run, "register", rollback="true"))
        if verdict.promoted
        else ("put it in use all the same", _manual_promotion_command(version.number))
    )
    terminal.print_next_steps([*_uses(alias), after, *links.ui_steps(run)])


def _roll_back() -> None:
    former, back = model_registry.roll_back()
    left = f", in the place of version {former.number}" if former else ""
    with start_run("rollback", "registration") as run:
        text = f"Rolled back: version {back.number} is the champion again{left}."
        run.log_params({"rollback": "true", "version": back.number})  # as `mlflow run` writes it
        run.set_description(text)
    console.print_result(text)
    terminal.print_next_steps([*_uses(model_registry.CHAMPION), *links.ui_steps(run)])


def _uses(alias: str) -> list[tuple[str, str]]:
    uri = f"models:/{model_registry.NAME}@{alias}"
    return [
        ("serve it", f"mlflow models serve -m {uri} --env-manager local -p 5001"),
        ("write its files", f"python -m twinsqueeze export --model {uri} --output model"),
    ]


def _manual_promotion_command(number: int) -> str:
    """The command that puts a version in use without a comparison."""
    call = f"set_registered_model_alias('{model_registry.NAME}', '{model_registry.CHAMPION}', '{number}')"
    return f'python -c "import mlflow; mlflow.MlflowClient().{call}"'


def _report_already_registered(choice: ModelSelection, version: Version, metric: str) -> None:
    """Records that the best run is registered already: what a second call has to do is nothing."""
    rolled_back = version.tags.get(model_registry.ROLLED_BACK)
    since = f" It was rolled back at {rolled_back}." if rolled_back else ""
    text = f"That run is {version} of {model_registry.NAME} already, so nothing was registered.{since}"
    with start_run(f"register-{choice.run.recipe.name}", "registration") as run:
        run.log_params({"metric": metric, "trained_run": choice.run.run_id, "version": version.number})
        run.set_description(text)
    console.print_result(_model_selection(choice), text)


def _model_selection(choice: ModelSelection) -> str:
    score = choice.row.scores[choice.metric]
    deviation = f" ± {score.deviation:.4f}" if score.count > 1 else ""
    seeds = "one seed" if score.count == 1 else f"{score.count} seeds"
    recipes = "The only recipe" if choice.recipes == 1 else f"Best of {choice.recipes} recipes"
    return (
        f"{recipes} by mean {choice.metric}: {score.mean:.4f}{deviation} over {seeds}; its best on "
        f"dev is {choice.run.recipe.name}, run {choice.run.run_id}."
    )


def _register(
    run: RunLogger,
    candidate: LoadedCompressor,
    material: ExperimentData,
    choice: ModelSelection,
    verdict: PromotionDecision,
) -> Version:
    """Makes the text model, logs it with its card and registers it."""
    run_id = choice.run.run_id
    model = build_sentence_transformer(material.encoder, candidate.compressor)
    card = _card(candidate, choice, verdict, model.max_seq_length)
    name = run.log_sentence_transformer(
        model, candidate.found.checkpoint, card, EXAMPLES, run_id, candidate.provenance.recipe.model_dump()
    )
    flush()
    model_id = run.model_id(name)
    run.set_description(f"{_model_selection(choice)} {verdict.text}")
    tags = {
        TRAINED_RUN: run_id,
        DATASET_DIGEST: material.pairs.digest,
        model_registry.DEV_DIGEST: material.pairs.splits[SPLIT].digest,
        model_registry.LABELS: candidate.provenance.recipe.label_transform,
    }
    return model_registry.add_version(model_id, card, tags)


def _card(candidate: LoadedCompressor, choice: ModelSelection, verdict: PromotionDecision, longest: int | None) -> str:
    return render_model_card(
        candidate.provenance,
        candidate.compressor.input_dimension,
        longest=longest,
        choice=choice,
        verdict=verdict.text,
        run_id=choice.run.run_id,
    )
