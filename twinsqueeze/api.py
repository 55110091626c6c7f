"""The Python API: train, compare and use compressors in a few lines. Nothing here prints or needs MLflow by itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from twinsqueeze import experiment
from twinsqueeze.data.encoder import encode_in_batches, resolve_encoder, sort_by_length
from twinsqueeze.data.sentence_pairs import PairDataset
from twinsqueeze.errors import InputError
from twinsqueeze.experiment import (
    SILENT,
    EvaluatedTraining,
    Evaluation,
    ExperimentData,
    Reporter,
    data_key,
    prepare_data,
)
from twinsqueeze.inference.compression import VectorCompressor
from twinsqueeze.model.checkpoint import Provenance, read_checkpoint, serialize_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.precision import check_precision
from twinsqueeze.recipe import Recipe
from twinsqueeze.training.loop import History
from twinsqueeze.types import AnyArray, FloatArray
from twinsqueeze.utils import console
from twinsqueeze.utils.device import resolve_device
from twinsqueeze.utils.files import CHECKPOINT_FILE, expand_user

_tracking: ContextVar[bool] = ContextVar("tracking", default=False)


class Compressor:
    """Compresses vectors, or texts with the encoder that it was trained with.

    Made by `train` or `Compressor.load`.

    Example:
        >>> import numpy as np, twinsqueeze as ts
        >>> recipe = ts.Recipe(dim=8, epochs=1)
        >>> compressor = ts.train(recipe, ts.load_pairs("demo")).compressor
        >>> compressor.compress(np.ones((3, 384))).shape
        (3, 8)
        >>> compressor.encode(["A man plays the guitar."]).shape
        (1, 8)
    """

    def __init__(self, network: CompressorNetwork, provenance: Provenance | None = None) -> None:
        self._network = network
        self._provenance = provenance

    def __repr__(self) -> str:
        name = self.recipe.name if self.recipe else "of unknown training"
        return f"<Compressor {name}: {self.input_dim} to {self.dim} dimensions>"

    @property
    def dim(self) -> int:
        """Dimension of a compressed vector."""
        return self._network.dim

    @property
    def input_dim(self) -> int:
        """Dimension of the encoder's vectors."""
        return self._network.input_dimension

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that it was trained with; None for weights of another program."""
        return self._provenance.recipe if self._provenance else None

    def compress(self, vectors: AnyArray, precision: str = "float32") -> AnyArray:
        """Compresses vectors.

        Args:
            vectors: (n, input_dim) of any real dtype.
            precision: float32; int8 or ubinary, as `sentence_transformers.quantize_embeddings` packs them; binary; or
                product for the codes of a compressor with a product quantizer.

        Returns:
            (n, dim) float32 of unit length, or the codes: int8 (n, dim), uint8 (n, bytes).

        Raises:
            InputError: If the vectors have another dimension or are not finite, or the precision is not available.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.input_dim:
            raise InputError(f"vectors must have the shape (n, {self.input_dim}), not {vectors.shape}")
        int8_ranges = self._provenance.int8_ranges if self._provenance else None
        check_precision(precision, int8_ranges, self._network.codebooks, repr(self))
        return VectorCompressor(self._network, precision, int8_ranges)(vectors.astype(np.float32), "vectors", 0)

    def encode(self, texts: Sequence[str], precision: str = "float32") -> AnyArray:
        """Encodes texts with the frozen encoder and compresses their vectors.

        Args:
            texts: n texts.
            precision: As for `compress`.

        Returns:
            As `compress`.

        Raises:
            InputError: If the encoder can't be loaded or is not the one of the training.
        """
        if not len(texts):
            return self.compress(np.empty((0, self.input_dim), np.float32), precision)
        distinct = sort_by_length(set(texts))
        vectors = np.concatenate(list(encode_in_batches(self._encode, distinct)))
        row = {text: i for i, text in enumerate(distinct)}
        return self.compress(vectors[[row[text] for text in texts]], precision)

    @cached_property
    def _encode(self) -> Callable[[list[str]], FloatArray]:
        if self._provenance is None:
            raise InputError("this compressor does not record its encoder: encode the texts, then call compress")
        encoder = resolve_encoder(self._provenance.recipe.encoder)
        if encoder.fingerprint != self._provenance.encoder_fingerprint:
            raise InputError(f"the files of encoder {encoder.name!r} are not those of the training: restore them")
        return encoder.load()

    def save(self, folder: str | Path) -> None:
        """Writes the compressor to a folder, as one safetensors file that also records its training."""
        path = expand_user(folder)
        path.mkdir(parents=True, exist_ok=True)
        content = (
            serialize_checkpoint(self._network, self._provenance) if self._provenance else self._network.to_bytes({})
        )
        (path / CHECKPOINT_FILE).write_bytes(content)

    @classmethod
    def load(cls, model: str | Path) -> Self:
        """Loads a compressor.

        Args:
            model: A folder or a safetensors file; with MLflow also a run id or a URI such as
                `models:/twinsqueeze@champion` or `runs:/RUN_ID/compressor`.

        Raises:
            InputError: If there is no such model, or it holds no compressor.
        """
        path = expand_user(model)
        file = path / CHECKPOINT_FILE if path.is_dir() else path
        if not file.is_file():
            # MLflow takes seconds to import and is needed for its own models alone.
            from twinsqueeze.registry.model_loader import resolve_model  # noqa: PLC0415 - as above

            file = resolve_model(str(model)).checkpoint
        return cls(*read_checkpoint(file, str(model)))


@dataclass(frozen=True)
class SplitScores:
    """The scores of a compressor on one split.

    Attributes:
        mse: Mean squared error of the pairs' cosines to their labels.
        mae: Mean absolute error.
        pearson: Pearson correlation of cosines and labels.
        spearman: Spearman correlation of cosines and labels.
        neighbor_recall: Fraction of the 10 nearest uncompressed neighbors among the 10 nearest compressed ones.
        recall_at_1: Fraction of the similar sentences (score of at least 4) that are the nearest neighbor.
        recall_at_10: The same among the 10 nearest neighbors.
        mrr: Mean reciprocal rank of the first similar sentence.
    """

    mse: float
    mae: float
    pearson: float
    spearman: float
    neighbor_recall: float
    recall_at_1: float
    recall_at_10: float
    mrr: float


@dataclass(frozen=True)
class TrainResult:
    """A trained compressor.

    Attributes:
        recipe: Its recipe.
        compressor: The compressor, with the last epoch's weights.
        history: Its learning curves.
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


def train(recipe: Recipe, data: PairDataset, *, progress: bool = False) -> TrainResult:
    """Trains and evaluates one compressor.

    Vectors of the sentences are cached on disk, so that they are encoded once. The recipe's `dataset` is ignored.

    Args:
        recipe: What to train.
        data: Sentence pairs from `load_pairs`, with train and dev.
        progress: Whether to show progress bars and messages on standard error.

    Raises:
        InputError: If the encoder or the device can't be used, or the training diverges.

    Example:
        >>> import twinsqueeze as ts
        >>> result = ts.train(ts.Recipe(alpha=0.75, epochs=2), ts.load_pairs("demo"))
        >>> len(result.history.loss)
        2
        >>> 0 < result.scores["test"].spearman < 1
        True
    """
    prepared = _prepare(recipe, data, console if progress else SILENT)
    if _tracking.get():
        from twinsqueeze.commands.train import train_and_log  # noqa: PLC0415 - imports MLflow, only if runs are tracked

        run, evaluated = train_and_log(recipe, prepared)
        return _result(evaluated, run.run_id)
    return _result(experiment.evaluate_training(experiment.train(recipe, prepared), prepared))


def compare_recipes(recipes: Sequence[Recipe], data: PairDataset, *, progress: bool = False) -> pd.DataFrame:
    """Trains several recipes, those of one shape as one batch, and returns their scores.

    Args:
        recipes: What to train. Recipes that differ only in alpha and seed train together.
        data: Sentence pairs from `load_pairs`, with train and dev.
        progress: Whether to show progress bars and messages on standard error.

    Returns:
        One row per recipe, in their order, then one per baseline of the first recipe's dimension. Columns: name, kind
        ("compressor" or "baseline"), the recipe fields that vary, bytes, and the scores such as `test/spearman`.

    Raises:
        InputError: If an encoder or a device can't be used, or a training diverges.

    Example:
        >>> import twinsqueeze as ts
        >>> recipes = [ts.Recipe(alpha=alpha, epochs=1) for alpha in (0, 0.75)]
        >>> table = ts.compare_recipes(recipes, ts.load_pairs("demo"))
        >>> list(table["name"][:2])
        ['mlp32-alpha0-seed0', 'mlp32-alpha0.75-seed0']
    """
    if not recipes:
        raise InputError("no recipe to compare: pass at least one")
    reporter: Reporter = console if progress else SILENT
    prepared = {data_key(recipe): _prepare(recipe, data, reporter) for recipe in recipes}
    if _tracking.get():
        from twinsqueeze.commands.ablation import train_grid_and_log  # noqa: PLC0415 - as in `train`

        results = train_grid_and_log(recipes, prepared)
    else:
        results = experiment.train_grid(recipes, prepared)
    varying = [name for name in Recipe.model_fields if len({getattr(recipe, name) for recipe in recipes}) > 1]
    rows = []
    for recipe in recipes:
        row = {"name": recipe.name, "kind": "compressor", **{name: getattr(recipe, name) for name in varying}}
        scores = {split: result.scores for split, result in results[recipe].evaluation.results.items()}
        rows.append(row | {"bytes": recipe.bytes_per_vector} | _flatten(scores))
    baselines = _baseline_table(results[recipes[0]].evaluation).assign(kind="baseline")
    table = pd.concat([pd.DataFrame(rows), baselines], ignore_index=True)
    whole = [name for name in varying if Recipe.model_fields[name].annotation is int]
    return table.astype(dict.fromkeys(whole, "Int64"))  # Int64 has a missing value, for the baselines


@contextmanager
def track(experiment_name: str | None = None) -> Iterator[None]:
    """Records what `train` and `compare_recipes` do in MLflow, as the commands do.

    Runs go to MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db in the working directory.

    Args:
        experiment_name: Experiment of the runs, created if it does not exist; None for MLflow's current one.

    Raises:
        InputError: If the tracking server does not answer, or has not received everything at the end.

    Example:
        with ts.track("my experiment"):
            result = ts.train(ts.Recipe(), data)
        print(result.run_id)
    """
    # MLflow takes seconds to import and is needed here alone.
    import mlflow  # noqa: PLC0415 - as above

    from twinsqueeze.tracking import run  # noqa: PLC0415 - as above

    run.check_tracking_server()
    if experiment_name is not None:
        mlflow.set_experiment(experiment_name)
    token = _tracking.set(True)
    try:
        yield
    finally:
        _tracking.reset(token)
        run.flush()


def _prepare(recipe: Recipe, data: PairDataset, reporter: Reporter) -> ExperimentData:
    device = resolve_device(recipe.device)
    encoder = resolve_encoder(recipe.encoder, device.type)
    return prepare_data(data, encoder, device, validate_dim=recipe.validate_dim, reporter=reporter)


def _result(evaluated: EvaluatedTraining, run_id: str | None = None) -> TrainResult:
    training, evaluation = evaluated.training, evaluated.evaluation
    return TrainResult(
        recipe=training.recipe,
        compressor=Compressor(training.compressor, evaluated.provenance),
        history=training.history,
        scores={split: SplitScores(**result.scores) for split, result in evaluation.results.items()},
        baselines=_baseline_table(evaluation),
        run_id=run_id,
    )


def _baseline_table(evaluation: Evaluation) -> pd.DataFrame:
    return pd.DataFrame(
        [{"name": b.name, "bytes": b.bytes} | _flatten(b.scores) for b in evaluation.baselines if not b.search_only]
    )


def _flatten(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{split}/{name}": value for split, by_name in scores.items() for name, value in by_name.items()}
