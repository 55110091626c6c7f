"""The Python API: train, compare and use compressors in a few lines. Nothing here prints or needs MLflow by itself."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from math import nan

import pandas as pd

from twinsqueeze import experiment, experiment_data
from twinsqueeze.compressor import Compressor
from twinsqueeze.data.dataset import Dataset
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.errors import InputError
from twinsqueeze.experiment import EvaluatedTraining, Evaluation
from twinsqueeze.experiment_data import ExperimentData
from twinsqueeze.recipe import Recipe
from twinsqueeze.recipe_fields import NO_BASE
from twinsqueeze.training.base import Base, resolve_bases
from twinsqueeze.training.loop import History
from twinsqueeze.utils.compute import resolve_device
from twinsqueeze.utils.console import SILENT, TERMINAL, Reporter
from twinsqueeze.utils.files import expand_user, is_dir, is_file

__all__ = ["Compressor", "Dataset", "InputError", "Recipe", "compare_recipes", "load_dataset", "track", "train"]
_tracking: ContextVar[bool] = ContextVar("tracking", default=False)


@dataclass(frozen=True)
class SplitScores:
    """The scores of a compressor on one split; NaN where the data do not allow them.

    Attributes:
        mse: Mean squared error of the pairs' cosines to their labels.
        mae: Mean absolute error.
        pearson: Pearson correlation of cosines and labels.
        spearman: Spearman correlation of cosines and labels.
        neighbor_recall: Fraction of the 10 nearest uncompressed neighbors among the 10 nearest compressed ones.
        recall_at_1: Fraction of the similar sentences (score of at least 4) that are the nearest neighbor.
        recall_at_10: The same among the 10 nearest neighbors.
        mrr: Mean reciprocal rank of the first similar sentence.
        ndcg_at_10: Normalized discounted cumulative gain of the 10 passages that a query finds first.
        mrr_at_10: Mean reciprocal rank of the first relevant passage; 0 if it is not among the first 10.
        recall_at_100: Fraction of the relevant passages among the first 100.
    """

    neighbor_recall: float
    mse: float = nan
    mae: float = nan
    pearson: float = nan
    spearman: float = nan
    recall_at_1: float = nan
    recall_at_10: float = nan
    mrr: float = nan
    ndcg_at_10: float = nan
    mrr_at_10: float = nan
    recall_at_100: float = nan


@dataclass(frozen=True)
class TrainResult:
    """A trained compressor.

    Attributes:
        compressor: The compressor, with the last epoch's weights.
        scores: Its scores by split: dev and, if the data have it, test.
        baselines: Scores of baselines on the same splits, one row each.
        run_id: Id of its MLflow run; None outside `track`.
    """

    recipe: Recipe
    compressor: Compressor
    history: History
    scores: dict[str, SplitScores]
    baselines: pd.DataFrame
    run_id: str | None = None


def train(recipe: Recipe, data: Dataset, *, base: Compressor | None = None, progress: bool = False) -> TrainResult:
    """Trains and evaluates one compressor. Vectors are cached on disk, so that sentences are encoded once.

    Args:
        recipe: What to train; its `dataset` is ignored.
        data: A dataset from `load_dataset`, with train and dev.
        base: The trained compressor to start from; `recipe.base` is then its digest or "none".
        progress: Whether to show progress bars and messages on standard error.

    Raises:
        InputError: If the encoder, the base or the device can't be used, or the training diverges.

    Examples:
        >>> import twinsqueeze as ts
        >>> result = ts.train(ts.Recipe(alpha=0.75, epochs=2), ts.load_dataset("demo"))
        >>> len(result.history.loss)
        2
        >>> 0 < result.scores["test"].spearman < 1
        True
    """
    if base is not None:
        if recipe.base not in {NO_BASE, base.digest}:
            raise InputError(f"recipe.base is {recipe.base!r}, which is not the base {base!r}: leave one of them out")
        recipe = recipe.model_copy(update={"base": base.digest})
    (recipe,), bases = resolve_bases([recipe], base.as_base if base is not None else _load_base)
    prepared = _prepare(recipe, data, bases, TERMINAL if progress else SILENT)
    recipe = experiment_data.adapt_recipe(recipe, prepared)
    if not _tracking.get():
        return _result(experiment.evaluate_training(experiment.train(recipe, prepared), prepared))
    from twinsqueeze.commands.train import train_and_log  # noqa: PLC0415 - imports MLflow, only if runs are tracked

    recorder, evaluated = train_and_log(recipe, prepared)
    return _result(evaluated, recorder.run.run_id)


def compare_recipes(recipes: Sequence[Recipe], data: Dataset, *, progress: bool = False) -> pd.DataFrame:
    """Trains several recipes, those of one shape as one batch, and returns their scores.

    Args:
        recipes: What to train. Recipes that differ only in alpha and seed train together.
        data: A dataset from `load_dataset`, with train and dev.
        progress: Whether to show progress bars and messages on standard error.

    Returns:
        One row per recipe, in their order, then one per baseline of the first recipe's dimension. Columns: name, kind
        ("compressor" or "baseline"), the recipe fields that vary, bytes, and the scores such as `test/spearman`.

    Raises:
        InputError: If an encoder or a device can't be used, or a training diverges.

    Examples:
        >>> import twinsqueeze as ts
        >>> recipes = [ts.Recipe(alpha=alpha, epochs=1) for alpha in (0, 0.75)]
        >>> table = ts.compare_recipes(recipes, ts.load_dataset("demo"))
        >>> list(table["name"][:2])
        ['mlp32-a0-s0-epochs1', 'mlp32-a0.75-s0-epochs1']
    """
    if not recipes:
        raise InputError("no recipe to compare: pass at least one")
    reporter = TERMINAL if progress else SILENT
    adapted, bases = resolve_bases(recipes, _load_base)
    prepared = experiment_data.load_data(adapted, lambda recipe: _prepare(recipe, data, bases, reporter))
    recipes = list(prepared)
    if _tracking.get():
        from twinsqueeze.commands.ablation import train_grid_and_log  # noqa: PLC0415 - as in `train`

        evaluated = train_grid_and_log(recipes, prepared)
    else:
        with closing(experiment.train_grid(recipes, prepared)) as results:
            evaluated = {each.recipe: experiment.evaluate_training(each, prepared[each.recipe]) for each in results}
    return _comparison_table([evaluated[recipe] for recipe in recipes])


@contextmanager
def track(experiment_name: str | None = None) -> Iterator[None]:
    """Records what `train` and `compare_recipes` do in MLflow, as the commands do.

    Runs go to MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db in the working directory.

    Args:
        experiment_name: Experiment of the runs, created if it does not exist; None for MLflow's current one.

    Raises:
        InputError: If the tracking server does not answer, or has not received everything at the end.

    Examples:
        >>> with ts.track("my experiment"):  # doctest: +SKIP
        ...     result = ts.train(ts.Recipe(), data)
    """
    from twinsqueeze.tracking import run  # noqa: PLC0415 - as in `train`

    run.check_tracking_server()
    token = _tracking.set(True)
    try:
        with run.use_experiment(experiment_name):
            yield
            run.flush()
    finally:
        _tracking.reset(token)


def _load_base(model: str) -> Base:
    path = expand_user(model)
    if is_dir(path) or is_file(path):
        return Compressor.load(model).as_base(model)
    from twinsqueeze.registry.model_loader import load_base  # noqa: PLC0415 - imports MLflow, which is slow

    return load_base(model)


def _prepare(recipe: Recipe, data: Dataset, bases: Mapping[str, Base], reporter: Reporter) -> ExperimentData:
    recipe.check_task(data.task, data.name)
    device = resolve_device(recipe.device).type
    encoder = None if data.has_vectors else resolve_encoder(recipe.encoder, device)
    base = bases.get(recipe.base)
    validate_dim = partial(base.check_input, encoder) if base else recipe.validate_dim
    prepared = experiment_data.prepare_data(data, encoder, device, validate_dim=validate_dim, reporter=reporter)
    return replace(prepared, base=base)


def _result(evaluated: EvaluatedTraining, run_id: str | None = None) -> TrainResult:
    return TrainResult(
        recipe=evaluated.recipe,
        compressor=Compressor(evaluated.compressor, evaluated.metadata),
        history=evaluated.training.history,
        scores={split: SplitScores(**result.scores) for split, result in evaluated.results.items()},
        baselines=_baseline_table(evaluated),
        run_id=run_id,
    )


def _comparison_table(evaluated: Sequence[Evaluation]) -> pd.DataFrame:
    varying = [name for name in Recipe.model_fields if len({getattr(each.recipe, name) for each in evaluated}) > 1]
    rows = []
    for each in evaluated:
        row = {"name": each.name, "kind": "compressor", **each.recipe.model_dump(include=set(varying))}
        row["bytes"] = each.recipe.bytes_per_vector
        rows.append(row | {split: result.scores for split, result in each.results.items()})
    baselines = _baseline_table(evaluated[0]).assign(kind="baseline")
    table = pd.concat([pd.json_normalize(rows, sep="/"), baselines], ignore_index=True)
    whole = [name for name in varying if Recipe.model_fields[name].annotation is int]
    return table.astype(dict.fromkeys(whole, "Int64"))  # Int64 has a missing value, for the baselines


def _baseline_table(evaluation: Evaluation) -> pd.DataFrame:
    shown = [baseline for baseline in evaluation.baselines if not baseline.search_only]
    return pd.json_normalize([{"name": each.name, "bytes": each.bytes, **each.scores} for each in shown], sep="/")
