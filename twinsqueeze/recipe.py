"""Every hyperparameter of a training, with its default, its bounds and its help text.

The recipe is the only place of these facts: commands derive their options from it, MLproject is tested against it, and
MLflow's parameters are its fields.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from twinsqueeze.errors import InputError
from twinsqueeze.presets import PRESETS, load_preset
from twinsqueeze.recipe_fields import format_error, recipe_field
from twinsqueeze.task import NEIGHBORS, SIMILARITY, Task
from twinsqueeze.utils.text import format_value

# Fields that are in no name or in every one.
UNNAMED_FIELDS = ("alpha", "seed", "encoder", "dataset", "device")
# Label of rows that compare float32 queries with stored codes, as a search does.
FLOAT_QUERIES = "float queries"


def bytes_per_vector(precision: str, dim: int, subvector_dim: int | None = None) -> int:
    """Returns the bytes of a stored vector; product codes need `subvector_dim`, the dimensions per byte."""
    if precision == "product":
        assert subvector_dim
        return dim // subvector_dim
    bits = {"float32": 32, "int8": 8, "binary": 1, "ubinary": 1}[precision]
    return -(-bits * dim // 8)


class Recipe(BaseModel):
    """The hyperparameters of one training; equal recipes on equal data give equal weights on one machine.

    Numbers may be given as text, since MLflow and the command line pass text.

    Examples:
        >>> Recipe(alpha=0.5, dim=16).name
        'mlp16-a0.5-s0'
        >>> Recipe.preset("best", seed=1).bytes_per_vector
        32
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    alpha: float = recipe_field(
        0.75,
        "Strength of the NEFTune-style noise. Every training step adds U(-1, 1) * alpha / sqrt(d) to each of the d "
        "components of a sentence's unit vector: noise of norm about alpha / sqrt(3). 0 trains without noise.",
        ge=0,
    )
    dim: int = recipe_field(32, "Output dimension; at most the encoder's dimension.", ge=2)
    epochs: int = recipe_field(200, "Passes over the training pairs. The last epoch's weights are used.", ge=1)
    batch_size: int = recipe_field(32, "Sentence pairs per training step.", ge=1)
    lr: float = recipe_field(2e-4, "Adam's learning rate.", gt=0)
    lr_schedule: Literal["constant", "cosine", "linear"] = recipe_field(
        "constant",
        "Learning rate schedule, where t is the fraction of steps done. constant: lr; cosine: "
        "lr * (1 + cos(pi * t)) / 2; linear: lr * (1 - t).",
    )
    weight_decay: float = recipe_field(
        0.0,
        "Decoupled weight decay as in AdamW: every step subtracts lr * weight_decay of each weight. 0 is Adam.",
        ge=0,
    )
    seed: int = recipe_field(
        0,
        "Seeds the initial weights, the order of pairs, the noise and the sampled neighborhoods, each in a random "
        "stream of its own.",
        ge=0,
        le=2**31 - 1,
    )
    architecture: Literal["mlp", "linear", "residual"] = recipe_field(
        "mlp",
        "Layers of the compressor. mlp: d -> 128 -> 64 -> dim with ReLU between; linear: d -> dim; residual: a linear "
        "layer plus a branch of 1024 ReLU units whose output starts at zero.",
    )
    init: Literal["random", "pca", "teacher"] = recipe_field(
        "random",
        "Initial weights. random: PyTorch's default for mlp, orthogonal rows otherwise; pca: the first principal "
        "components of the train sentences' vectors; teacher: the first principal components of the teacher, a "
        "d -> d linear projection that is first trained on the scores.",
        "random, or for a linear or residual compressor pca or teacher",
    )
    subvector_dim: int = recipe_field(
        4, "Dimensions that the product quantizer encodes in one byte (FAISS: dsub). Ignored by other quantizers.", ge=1
    )
    quantizer: Literal["none", "product", "sign"] = recipe_field(
        "none",
        "Quantizer that the vectors are trained and evaluated with. none: float32; product: each subvector becomes "
        "one of 256 centroids, a byte; sign: the signs, one bit each.",
        "none or sign, or product for a linear or residual compressor whose dim is a multiple of subvector_dim",
    )
    codebook_lr: float = recipe_field(
        0.0,
        "Adam's learning rate for the centroids of a product quantizer, with the schedule of lr; for data without "
        "scores. 0 keeps those that k-means finds before the training.",
        ge=0,
    )
    loss: Literal["mse", "pearson", "infonce", "none"] = recipe_field(
        "mse",
        "Training loss. mse: mean squared error of the pair's cosine to the label; pearson: 1 - Pearson correlation "
        "of cosines and labels in the batch; infonce: cross-entropy of a query's passage among the passages of the "
        "batch; none: the neighborhood loss alone.",
    )
    infonce_temperature: float = recipe_field(0.05, "Temperature of infonce: softmax(cosine / temperature).", gt=0)
    neighbor_weight: float = recipe_field(
        0.0,
        "Weight of the neighborhood loss: the KL divergence between the softmax of the teacher's cosines and that of "
        "the compressed cosines. 0 disables it.",
        ge=0,
    )
    num_neighbors: int = recipe_field(
        0,
        "Sentences that the neighborhood loss compares. With scores: 0: those of the batch; n: 512 sampled train "
        "sentences, each sampled with its n nearest neighbors by the encoder. Without: each query of the batch adds n "
        "of its 20 nearest train vectors to the candidates.",
        ge=0,
        le=100,
    )
    num_candidates: int = recipe_field(
        0,
        "Random train vectors among which the queries of every batch are searched, besides the passages of the batch. "
        "For data without scores.",
        ge=0,
        le=65_536,
    )
    synthetic_sentences: int = recipe_field(
        0,
        "Synthetic sentences, made of the encoder's vocabulary. They join the train sentences where no scores are "
        "needed: initial weights, centroids, and the sampled neighborhoods.",
        ge=0,
        le=100_000,
    )
    neighbor_temperature: float = recipe_field(
        0.05, "Temperature of the neighborhood loss: softmax(cosine / temperature).", gt=0
    )
    teacher: Literal["encoder", "projection"] = recipe_field(
        "encoder",
        "Teacher of the neighborhood loss: the encoder, or a d -> d linear projection that is first trained on the "
        "scores.",
    )
    teacher_alpha: float = recipe_field(
        2.0, "Strength of the noise while that projection is trained. Ignored if the recipe needs none.", ge=0
    )
    label_transform: Literal["tanh", "linear"] = recipe_field(
        "tanh", "Label y of a score s from 0 to 5. tanh: (tanh(4 * (s/5 - 0.5)) + 1) / 2; linear: s/5."
    )
    encoder: str = recipe_field(
        "all-MiniLM-L6-v2",
        "Frozen sentence encoder: a sentence-transformers name or a folder. The default's weights are installed with "
        "the package.",
        "the name of a sentence-transformers model or the path of its folder",
        min_length=1,
    )
    dataset: str = recipe_field(
        "auto",
        "What to train on. stsb: STS-B from the Hub; demo: bundled pairs, not a benchmark; a Hub id; a file or folder "
        "of scored pairs, of queries with passages, of texts, or of vectors, as .npy, .parquet, .csv, .tsv, .jsonl or "
        ".txt. auto: stsb if it is cached or the Hub answers within 5 s, demo otherwise.",
        "auto, stsb, demo, a Hub id or the path of a file or folder",
        min_length=1,
    )
    device: Literal["auto", "cpu", "cuda"] = recipe_field(
        "auto", "Training device. auto: cuda if available, cpu otherwise."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML's yes and on would pass for 1
            raise ValueError("a truth value")
        return value

    @field_validator("init", "quantizer")
    @classmethod
    def _check_architecture(cls, value: str, info: ValidationInfo) -> str:
        if value in {"pca", "teacher", "product"} and info.data.get("architecture") == "mlp":
            raise ValueError("needs a linear or residual compressor")
        if value == "product" and info.data.get("dim", 0) % info.data.get("subvector_dim", 1):
            raise ValueError("dim is not a multiple of subvector_dim")
        return value

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Returns the recipe of `values`, with defaults for the rest; raises an `InputError` for the first bad one."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InputError(format_error(error, cls.model_json_schema()["properties"])) from None

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """Returns a preset, one of `PRESETS`, with some fields replaced; raises an `InputError` as `parse` does."""
        return cls.parse({**load_preset(name), **overrides})

    def check_task(self, task: Task, dataset: str) -> None:
        """Raises an `InputError` if the recipe can't be trained on data of a task; it names presets that can."""
        if problem := self._task_problem(task):
            presets = [name for name, recipe in _preset_recipes().items() if not recipe._task_problem(task)]
            raise InputError(f"{problem}, and dataset {dataset!r} has {task.data}: {', '.join(presets)} fit such data")

    def _task_problem(self, task: Task) -> str | None:
        if task == SIMILARITY:
            return None if self.needs_scores else f"loss {self.loss} is for data without scores"
        if self.needs_scores:
            return f"loss {self.loss} needs scores"
        if task == NEIGHBORS and self.loss == "infonce":
            return "loss infonce needs queries with passages"
        if task == NEIGHBORS and self.needs_teacher:
            return "the projection teacher needs pairs"
        if self.loss == "none" and not self.neighbor_weight:
            return "loss none needs a neighbor_weight above 0"
        return None

    def validate_dim(self, encoder_dim: int) -> None:
        """Raises an `InputError` if `dim` exceeds the dimension of the encoder."""
        if self.dim > encoder_dim:
            raise InputError(f"dim must be at most {encoder_dim}, the dimension of the encoder, not {self.dim}")

    @property
    def needs_scores(self) -> bool:
        """Whether the loss compares cosines with human scores."""
        return self.loss in {"mse", "pearson"}

    @property
    def needs_teacher(self) -> bool:
        """Whether a d -> d projection is trained on the scores before the compressor."""
        return self.init == "teacher" or (self.teacher == "projection" and self.neighbor_weight > 0)

    @property
    def digest(self) -> str:
        """16 hex digits over all fields except dataset and device."""
        # Pairs have a digest of their own, and the device is how a result is computed, not what is computed.
        text = json.dumps(self.model_dump(exclude={"dataset", "device"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The name of its run: the nearest preset, alpha, seed, and what else the preset has otherwise.

        Such as `best-a0-s0-epochs60`. For `published`, the defaults, it begins with the compressor, as in
        `mlp32-a0.75-s0`.
        """
        fields = [name for name in type(self).model_fields if name not in UNNAMED_FIELDS]
        changes = {
            preset: [name for name in fields if getattr(self, name) != getattr(recipe, name)]
            for preset, recipe in _preset_recipes().items()
        }
        base = min(changes, key=lambda preset: len(changes[preset]))
        changed = changes[base]
        if base == "published":
            base = self.compressor_name
            changed = [name for name in changed if name not in {"architecture", "dim", "quantizer", "subvector_dim"}]
        values = {name: getattr(self, name) for name in changed}
        shown = [f"{name}{'_' if isinstance(v, str) else ''}{format_value(v)}" for name, v in values.items()]
        return "-".join([base, f"a{format_value(self.alpha)}", f"s{self.seed}", *shown])

    @property
    def compressor_name(self) -> str:
        """The compressor without noise and seed, such as `mlp32`, `linear256-sign` or `linear128-product4`."""
        suffix = {"none": "", "product": f"-product{self.subvector_dim}", "sign": "-sign"}[self.quantizer]
        return f"{self.architecture}{self.dim}{suffix}"

    @property
    def precision(self) -> str:
        """Storage format that its vectors are evaluated in: float32, product or binary."""
        return {"none": "float32", "product": "product", "sign": "binary"}[self.quantizer]

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of a compressed vector in that format."""
        return bytes_per_vector(self.precision, self.dim, self.subvector_dim)


@cache
def _preset_recipes() -> dict[str, Recipe]:
    return {name: Recipe.preset(name) for name in PRESETS}
