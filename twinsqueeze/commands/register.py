"""The command register: registers the best run as a version of the registered model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from twinsqueeze.commands import run_recording
from twinsqueeze.model.sentence_transformer import build_sentence_transformer
from twinsqueeze.registry import model_registry, promotion
from twinsqueeze.registry.model_card import ModelSelection, render_model_card
from twinsqueeze.registry.model_registry import CHALLENGER, CHAMPION, NAME, ROLLED_BACK, Version
from twinsqueeze.registry.promotion import ANY_DATASET, SPLIT, Candidate, PromotionDecision
from twinsqueeze.reporting import run_loader, terminal
from twinsqueeze.tracking import links, model_files
from twinsqueeze.tracking.run import check_tracking_server, start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET_DIGEST, TRAINED_RUN
from twinsqueeze.utils import console

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CURRENT_EXPERIMENT = "current"


def register(
    experiment: str = CURRENT_EXPERIMENT,
    *,
    metric: str = "dev/spearman",
    dataset: str = ANY_DATASET,
    rollback: bool = False,
) -> None:
    """Register the best run of an experiment and make it the champion if it beats the present one on dev.

    Args:
        experiment: Name or id, or "current" for the experiment that a new run would belong to.
        metric: Metric for selection and comparison: dev/spearman, dev/pearson, dev/mse or dev/mae.
        dataset: Name of the dataset whose runs are compared, or "any" if the experiment has only one.
        rollback: Restore the previous champion instead.

    Raises:
        InputError: If there is nothing to register, or an argument is invalid.
    """
    promotion.check_metric(metric)
    model_registry.check_registry()
    check_tracking_server()
    if rollback:
        _roll_back()
        return
    experiment_id = run_loader.resolve_experiment(None if experiment == CURRENT_EXPERIMENT else experiment)
    selection = promotion.select_best_run(experiment_id, metric, dataset)
    known_version = model_registry.find_trained_by(selection.run.run_id)
    if known_version and (CHAMPION in known_version.aliases or ROLLED_BACK in known_version.tags):
        _report_already_registered(selection, known_version)
        return
    candidate = promotion.load_candidate(selection, console)
    _register_candidate(candidate, known_version, {"experiment": experiment, "dataset": dataset, "metric": metric})


def _register_candidate(candidate: Candidate, known_version: Version | None, params: Mapping[str, str]) -> None:
    """Compare a candidate with the champion, register it unless it is a version already, and set its alias."""
    selection = candidate.selection
    champion = model_registry.find_alias(CHAMPION)
    decision = promotion.compare_with_champion(candidate, champion)
    model = build_sentence_transformer(candidate.data.encoder, candidate.compressor)
    with start_run(f"register-{selection.run.recipe.name}", "registration") as run:
        run.log_params({**params, "trained_run": selection.run.run_id})
        run.set_tags(run_recording.data_tags(candidate.data) | {TRAINED_RUN: selection.run.run_id})
        version = known_version or _add_version(run, candidate, model, _render_card(candidate, decision, model))
        while not model_registry.assign_alias_if_unchanged(version, champion, promoted=decision.promoted):
            console.info("another process has changed the champion: comparing with the new one")
            champion = model_registry.find_alias(CHAMPION)
            decision = promotion.compare_with_champion(candidate, champion)
        model_registry.set_description(version, _render_card(candidate, decision, model))
        run.set_description(f"{selection.summary} {decision.reason}")
        run.log_metrics(decision.metrics)
        run.log_params({"version": version.number})
    registered = "Run already registered, compared again:" if known_version else "Registered as"
    alias = CHAMPION if decision.promoted else CHALLENGER
    console.print_result(selection.summary, f"{registered} version {version.number}, {alias}. {decision.reason}")
    if candidate.data.pairs.notice:
        console.warn(candidate.data.pairs.notice)
    if decision.promoted:
        next_step = ("undo the promotion", links.mlflow_run_command(run, "register", rollback="true"))
    else:
        next_step = ("promote it anyway", _promotion_command(version))
    terminal.print_next_steps([*_usage_steps(alias), next_step, *links.ui_steps(run)])


def _add_version(run: RunLogger, candidate: Candidate, model: "SentenceTransformer", card: str) -> Version:
    data, recipe, run_id = candidate.data, candidate.metadata.recipe, candidate.selection.run.run_id
    with run.log_model(model_files.SENTENCE_TRANSFORMER_NAME, recipe.model_dump(), {}) as folder:
        model_files.save_sentence_transformer(folder, model, candidate.checkpoint, card, run_id)
    tags = {
        TRAINED_RUN: run_id,
        DATASET_DIGEST: data.pairs.digest,
        model_registry.DEV_DIGEST: data.pairs.splits[SPLIT].digest,
        model_registry.LABEL_TRANSFORM: recipe.label_transform,
    }
    return model_registry.add_version(run.model_id(model_files.SENTENCE_TRANSFORMER_NAME), card, tags)


def _render_card(candidate: Candidate, decision: PromotionDecision, model: "SentenceTransformer") -> str:
    return render_model_card(
        candidate.metadata,
        candidate.compressor.input_dim,
        max_seq_length=model.max_seq_length,
        selection=replace(candidate.selection, comparison=decision.reason),
        run_id=candidate.selection.run.run_id,
    )


def _report_already_registered(selection: ModelSelection, version: Version) -> None:
    rolled_back = version.tags.get(ROLLED_BACK)
    suffix = f" It was rolled back at {rolled_back}." if rolled_back else ""
    text = f"Nothing to do: this run is already {version} of {NAME}.{suffix}"
    with start_run(f"register-{selection.run.recipe.name}", "registration") as run:
        run.log_params({"metric": selection.metric, "trained_run": selection.run.run_id, "version": version.number})
        run.set_description(text)
    console.print_result(selection.summary, text)


def _roll_back() -> None:
    replaced, restored = model_registry.roll_back()
    suffix = f" instead of version {replaced.number}" if replaced else ""
    text = f"Rolled back: version {restored.number} is the champion again{suffix}."
    with start_run("rollback", "registration") as run:
        run.log_params({"rollback": "true", "version": restored.number})  # spelled as `mlflow run -P` logs it
        run.set_description(text)
    console.print_result(text)
    terminal.print_next_steps([*_usage_steps(CHAMPION), *links.ui_steps(run)])


def _usage_steps(alias: str) -> list[tuple[str, str]]:
    uri = f"models:/{NAME}@{alias}"
    return [
        ("serve it", f"mlflow models serve -m {uri} --env-manager local -p 5001"),
        ("write its files", f"python -m twinsqueeze export --model {uri} --output model"),
    ]


def _promotion_command(version: Version) -> str:
    call = f"set_registered_model_alias('{NAME}', '{CHAMPION}', '{version.number}')"
    return f'python -c "import mlflow; mlflow.MlflowClient().{call}"'
