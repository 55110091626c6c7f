"""Every hyperparameter of a training, with its default, its bounds and its help text.

The recipe is the one place of these facts: the commands take their options from it, MLproject is tested against it, and
MLflow's parameters are its fields.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from twinsqueeze.errors import InputError, truncate_repr

MAX_SEED = 2**31 - 1


def _field(default: Any, allowed: str, description: str, **bounds: Any) -> Any:
    """A recipe field; `allowed` completes the sentence "NAME must be …" for a value that is refused."""
    return Field(default, description=description, json_schema_extra={"allowed": allowed}, **bounds)


class Recipe(BaseModel):
    """What one training is made of; equal recipes on equal data give equal weights on one machine.

    Text is accepted for numbers, since MLflow and the command line hand over text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = _field(
        0.75,
        "a finite number of at least 0",
        "Strength of the NEFTune-style noise: every training step adds U(-1, 1) * alpha / sqrt(d) to each of the d "
        "numbers of a sentence's unit vector, a noise of norm about alpha / sqrt(3). 0 trains without noise.",
        ge=0,
        allow_inf_nan=False,
    )
    dim: int = _field(
        32,
        "a whole number of at least 2 (the cosine of one-dimensional vectors is -1 or 1)",
        "Numbers in a compressed vector, at most the encoder's.",
        ge=2,
    )
    epochs: int = _field(
        200,
        "a whole number of at least 1",
        "Passes over the training pairs; the last epoch's weights are kept.",
        ge=1,
    )
    batch_size: int = _field(32, "a whole number of at least 1", "Sentence pairs in a training step.", ge=1)
    lr: float = _field(2e-4, "a finite number above 0", "Adam's learning rate.", gt=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine", "linear"] = _field(
        "constant",
        "constant, cosine or linear",
        "How the learning rate goes on from lr. cosine: lr * (1 + cos(pi * t)) / 2, linear: lr * (1 - t), where t is "
        "the share of the steps that are done.",
    )
    weight_decay: float = _field(
        0.0,
        "a finite number of at least 0",
        "Decoupled weight decay, AdamW's: every step takes lr * weight_decay of each weight away. 0 is Adam.",
        ge=0,
        allow_inf_nan=False,
    )
    seed: int = _field(
        0,
        f"a whole number from 0 to {MAX_SEED}",
        "Fixes the initial weights, the order of the pairs, the noise and whose neighbourhoods are drawn, each by a "
        "stream of its own.",
        ge=0,
        le=MAX_SEED,
    )
    architecture: Literal["mlp", "linear", "wide"] = _field(
        "mlp",
        "mlp, linear or wide",
        "Layers of the compressor. mlp: d -> 128 -> 64 -> dim with ReLU between; linear: d -> dim; wide: "
        "d -> 1024 + 2 * dim -> dim with ReLU between, which begins as the linear layer would.",
    )
    start: Literal["random", "components", "head"] = _field(
        "random",
        "random, or for a linear or wide compressor components or head",
        "Weights before training. random: PyTorch's for mlp, else orthogonal rows. components: the first principal "
        "components of the train sentences' vectors. head: those of a linear layer of all d numbers that is trained "
        "on the scores before.",
    )
    part: int = _field(
        4,
        "a whole number of at least 1",
        "Numbers that product codes make one byte of; nothing where there are none. Longer parts cover more numbers in "
        "as many bytes, each less exactly.",
        ge=1,
    )
    precision: Literal["float32", "product", "binary"] = _field(
        "float32",
        "float32 or binary, or product for a linear or wide compressor whose dim is a multiple of part",
        "What vectors are trained and measured as, through the quantiser. product: each part becomes one of 256 "
        "centroids, a byte; binary: the signs, a bit each.",
    )
    objective: Literal["mse", "pearson"] = _field(
        "mse",
        "mse or pearson",
        "Training loss. mse: mean squared error of the twins' cosine to the label; pearson: 1 less Pearson's "
        "correlation of cosines and labels in the batch.",
    )
    neighbourhood: float = _field(
        0.0,
        "a finite number of at least 0",
        "Weight of the neighbourhood loss, which keeps who is near whom. 0 leaves it out.",
        ge=0,
        allow_inf_nan=False,
    )
    nearest: int = _field(
        0,
        "a whole number from 0 to 100",
        "Whom the neighbourhood loss compares. 0: the sentences of a batch's pairs; n: 512 of the train split, "
        "drawn with the n that the encoder puts nearest to each.",
        ge=0,
        le=100,
    )
    synthetic: int = _field(
        0,
        "a whole number from 0 to 100000",
        "Sentences that the project makes of the encoder's own words, which join those of the train split in all that "
        "needs no scores: what weights and centroids begin with, and the neighbourhood loss's n nearest.",
        ge=0,
        le=100_000,
    )
    temperature: float = _field(
        0.05,
        "a finite number above 0",
        "Of the neighbourhood loss: cosines count as exp(cosine / temperature).",
        gt=0,
        allow_inf_nan=False,
    )
    teacher: Literal["encoder", "head"] = _field(
        "encoder",
        "encoder or head",
        "Whose neighbourhoods are kept: the encoder's, or those of a linear layer of all d numbers that is trained on "
        "the scores before.",
    )
    head_alpha: float = _field(
        2.0,
        "a finite number of at least 0",
        "Strength of the noise in the training of that linear layer of all d numbers; nothing where there is none.",
        ge=0,
        allow_inf_nan=False,
    )
    labels: Literal["tanh", "linear"] = _field(
        "tanh",
        "tanh or linear",
        "Label y of a score s from 0 to 5. tanh: (tanh(4 * (s/5 - 0.5)) + 1) / 2; linear: s/5.",
    )
    encoder: str = _field(
        "all-MiniLM-L6-v2",
        "the name of a sentence-transformers model or the path of its folder",
        "The frozen sentence encoder: a sentence-transformers name or a folder. The default's weights are installed "
        "with the package.",
        min_length=1,
    )
    dataset: str = _field(
        "auto",
        "auto, stsb, demo, a Hub id or the path of a folder",
        "Scored sentence pairs. stsb: STS-B from the Hub; demo: bundled pairs, no benchmark; a Hub id; a folder with "
        "train, dev and test as .csv, .tsv, .jsonl or .parquet. auto: stsb if it can be had within 5 s, else demo.",
        min_length=1,
    )
    device: Literal["auto", "cpu", "cuda"] = _field(
        "auto", "auto, cpu or cuda", "Where to train. auto: cuda if there is one, else cpu."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML's yes and on would pass for 1
            raise ValueError("a truth value")
        return value

    @field_validator("start", "precision")
    @classmethod
    def _fits_the_architecture(cls, value: str, info: ValidationInfo) -> str:
        if value in {"components", "head", "product"} and info.data.get("architecture") == "mlp":
            raise ValueError("only linear layers begin with what train sentences have")
        if value == "product" and info.data.get("dim", 0) % info.data.get("part", 1):
            raise ValueError("parts are whole")
        return value

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """The recipe of `values`, defaults filled in.

        Raises:
            InputError: For the first value that is out of bounds or names no field of the recipe.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InputError(_format_error(error, cls.model_fields)) from None

    def validate_dim(self, dimension: int) -> None:
        """Raises an `InputError` if `dim` is more than the encoder's vectors have."""
        if self.dim > dimension:
            raise InputError(f"dim must be at most {dimension}, the numbers of the encoder's vectors, not {self.dim}")

    @property
    def needs_teacher(self) -> bool:
        """Whether a linear layer of all of the encoder's numbers is trained before the compressor."""
        return self.start == "head" or (self.teacher == "head" and self.neighbourhood > 0)

    @property
    def digest(self) -> str:
        """16 hex digits over all fields but dataset and device.

        Pairs have a digest of their own, whatever they are called here, and the device is how a result is computed and
        not what is asked.
        """
        text = json.dumps(self.model_dump(exclude={"dataset", "device"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """What a run is called, such as `mlp32-alpha0.75-seed0`."""
        return f"{self.compressor_name}-alpha{self.alpha:g}-seed{self.seed}"

    @property
    def compressor_name(self) -> str:
        """The compressor without noise and seed, such as `mlp32`, `linear256-binary` or `linear128-product4`."""
        precision = {"float32": "", "product": f"-product{self.part}"}.get(self.precision, f"-{self.precision}")
        return f"{self.architecture}{self.dim}{precision}"

    @property
    def vector_bytes(self) -> int:
        """Bytes of a compressed vector as it is measured."""
        return bytes_per_vector(self.precision, self.dim, self.part)


# What `best` trains: experiments/best.yaml has its seeds and sizes, experiments/LOG.md how it was found.
BEST: dict[str, Any] = {
    "architecture": "linear",
    "start": "head",
    "precision": "product",
    "dim": 128,
    "objective": "pearson",
    "labels": "linear",
    "teacher": "head",
    "neighbourhood": 0.5,
    "synthetic": 12_000,
    "temperature": 0.07,
    "alpha": 0.0,
    "lr": 1e-3,
    "schedule": "linear",
    "batch_size": 256,
    "epochs": 15,
}


def _format_error(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if name not in fields:
        return f"{truncate_repr(name)} is no field of the recipe; the fields are {', '.join(fields)}"
    extra = fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return f"{name} must be {extra['allowed']}, not {truncate_repr(first['input'])}"


# Said of rows where queries that are not quantised are compared with stored vectors, as in a search of codes.
FLOAT_QUERIES = "float queries"
# The product quantiser of FAISS's whose search is timed.
TIMED_QUANTISER = 32


def bytes_per_vector(precision: str, dim: int, part: int | None = None) -> int:
    """Bytes of a compressed vector.

    Args:
        precision: What it is stored as.
        dim: Its numbers.
        part: How many of them product codes make one byte of; needed for product alone.
    """
    if precision == "product":
        assert part
        return dim // part
    bits = {"float32": 32, "int8": 8, "binary": 1, "ubinary": 1}[precision]
    return -(-bits * dim // 8)
