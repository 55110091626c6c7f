"""The command register: registers the best run as a version of the registered model."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from twinsqueeze.commands.evaluate import EvaluationOptions, evaluate_and_log
from twinsqueeze.errors import InputError
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.model.sentence_transformer import describe_text_model
from twinsqueeze.registry import model_registry, promotion
from twinsqueeze.registry.model_card import ModelSelection, render_model_card
from twinsqueeze.registry.model_loader import load_sentence_transformer_for, resolve_model
from twinsqueeze.registry.model_registry import CHALLENGER, CHAMPION, NAME, ROLLED_BACK, Version
from twinsqueeze.reporting import terminal
from twinsqueeze.task import NO_ENCODER
from twinsqueeze.tracking import links, model_files
from twinsqueeze.tracking.run import check_registry, check_tracking_server, start_run
from twinsqueeze.tracking.run_logger import RunLogger
from twinsqueeze.tracking.tags import DATASET, DATASET_DIGEST, NOTICE, TRAINED_RUN
from twinsqueeze.utils import console

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EXAMPLE_ROWS = 2  # of unit vectors, in the input example of a compressor without encoder


def register(
    experiment: str,
    *,
    metric: str = promotion.AUTO_METRIC,
    dataset: str = promotion.ANY_DATASET,
    rollback: bool = False,
) -> None:
    """Register the best run of an experiment and make it the champion if it beats the present one on dev.

    The runs are selected and compared by the metric; "auto" is the selection score of their task. `rollback` restores
    the previous champion instead.
    """
    promotion.check_metric(metric)
    check_tracking_server()
    check_registry()
    if rollback:
        _roll_back()
        return
    selection = promotion.select_best_run(experiment, metric, dataset)
    version = model_registry.find_trained_by(selection.run.run_id)
    if version and (CHAMPION in version.aliases or ROLLED_BACK in version.tags):
        _report_already_registered(selection, version, metric)
    else:
        _register(selection, version, {"experiment": experiment, "dataset": dataset, "metric": metric})


def _register(selection: ModelSelection, known_version: Version | None, params: dict[str, str]) -> None:
    """Compare a run with the champion, register it unless it is a version already, and set its alias."""
    run_id, notice = selection.run.run_id, selection.run.notice
    resolved = resolve_model(run_id)
    compressor, metadata = read_checkpoint(resolved.checkpoint, run_id)
    if metadata is None:
        raise InputError(f"the checkpoint of run {run_id} has no metadata: register a run that `main` trained")
    has_encoder = metadata.recipe.encoder != NO_ENCODER
    model = load_sentence_transformer_for(run_id, resolved)[0] if has_encoder else None
    text_model = describe_text_model(model) if model else None
    render_card = partial(render_model_card, metadata, compressor.input_dim, text_model, run_id=run_id)
    compare = partial(promotion.compare_with_champion, selection, evaluate_champion=partial(_evaluate, run_id))
    with start_run(f"register-{selection.run.recipe.name}", "registration") as run:
        run.log_params({**params, "trained_run": run_id})
        data = {DATASET: selection.run.dataset, DATASET_DIGEST: metadata.dataset_digest, NOTICE: notice}
        run.set_tags({TRAINED_RUN: run_id} | {name: value for name, value in data.items() if value})
        champion = model_registry.find_alias(CHAMPION)
        decision = compare(champion)
        card = render_card(selection=replace(selection, comparison=decision.reason))
        version = known_version or _add_version(run, selection, model, resolved.checkpoint, card)
        while not model_registry.assign_alias_if_unchanged(version, champion, promoted=decision.promoted):
            console.info("another process has changed the champion: comparing with the new one")
            champion = model_registry.find_alias(CHAMPION)
            decision = compare(champion)
        model_registry.set_description(version, render_card(selection=replace(selection, comparison=decision.reason)))
        run.set_description(f"{selection.summary} {decision.reason}")
        run.log_metrics(decision.metrics)
        run.log_params({"version": version.number})
    alias = CHAMPION if decision.promoted else CHALLENGER
    registered = "Run already registered, compared again:" if known_version else "Registered as"
    console.print_result(selection.summary, f"{registered} version {version.number}, {alias}. {decision.reason}")
    if notice:
        console.warn(notice)
    steps = _usage_steps(run, alias, **({} if has_encoder else {"format": "safetensors"}))
    if not decision.promoted:
        call = f"set_registered_model_alias('{NAME}', '{CHAMPION}', '{version.number}')"
        steps.append(("promote it anyway", f'python -c "import mlflow; mlflow.MlflowClient().{call}"'))
    elif champion:
        steps.append(("undo the promotion", links.next_command(run, "register", rollback="true")))
    terminal.print_next_steps([*steps, *links.ui_steps(run)])


def _evaluate(run_id: str, champion: Version) -> pd.DataFrame:
    """Evaluate the champion on the dev data of a training, in a run of its own, and return its predictions."""
    console.info(f"evaluating the champion, version {champion.number}, on the dev data of run {run_id}")
    options = EvaluationOptions(f"models:/{NAME}/{champion.number}", split="dev", data_of=run_id)
    recorder, evaluation = evaluate_and_log(options, nested=True)
    return recorder.predictions(evaluation)


def _add_version(
    run: RunLogger, selection: ModelSelection, model: "SentenceTransformer | None", checkpoint: Path, card: str
) -> Version:
    """Register encoder and compressor, or without an encoder the compressor alone."""
    trained = selection.run
    with run.log_model(trained.recipe.model_dump(), {}) as folder:
        if model:
            model_files.save_sentence_transformer(folder, model, checkpoint, card, trained.run_id)
        else:
            compressor, _ = read_checkpoint(checkpoint, trained.run_id)
            example = np.eye(EXAMPLE_ROWS, compressor.input_dim, dtype=np.float32)
            model_files.save_compressor(folder, checkpoint.read_bytes(), example, card, trained.run_id)
    tags = {
        TRAINED_RUN: trained.run_id,
        DATASET_DIGEST: trained.comparison_key.dataset_digest,
        model_registry.DEV_DIGEST: selection.dev_digest,
        model_registry.LABEL_TRANSFORM: trained.recipe.label_transform,
    }
    return model_registry.add_version(run.model_id(), card, tags)


def _report_already_registered(selection: ModelSelection, version: Version, metric: str) -> None:
    rolled_back = version.tags.get(ROLLED_BACK)
    suffix = f" It was rolled back at {rolled_back}." if rolled_back else ""
    text = f"Nothing to do: this run is already {version} of {NAME}.{suffix}"
    with start_run(f"register-{selection.run.recipe.name}", "registration") as run:
        run.log_params({"metric": metric, "trained_run": selection.run.run_id, "version": version.number})
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
    terminal.print_next_steps([*_usage_steps(run, CHAMPION), *links.ui_steps(run)])


def _usage_steps(run: RunLogger, alias: str, **options: str) -> list[tuple[str, str]]:
    uri = f"models:/{NAME}@{alias}"
    return [
        ("serve it", f"mlflow models serve -m {uri} --env-manager local -p 5001"),
        ("write its files", links.next_command(run, "export", model=uri, output="model", **options)),
    ]
