"""The recipe: every hyperparameter of a training, whose fields are in recipe_fields.py.

The recipe is the only place of these facts: commands derive their options from it, MLproject is tested against it, and
MLflow's parameters are its fields.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from pydantic import ValidationError, ValidationInfo, field_validator

from twinsqueeze.errors import InputError
from twinsqueeze.presets import PRESETS, load_preset
from twinsqueeze.recipe_fields import NO_BASE, RecipeFields, format_error
from twinsqueeze.task import NEIGHBORS, RETRIEVAL, SIMILARITY, Task
from twinsqueeze.utils.text import format_value

# The fields whose values are those of a base; `init` is not used with one.
BASE_FIELDS = ("architecture", "dim", "quantizer", "subvector_dim", "codes_per_subvector")
# Fields that are in no name or in every one.
UNNAMED_FIELDS = ("alpha", "seed", "encoder", "dataset", "device")
# Label of rows that compare float32 queries with stored codes, as a search does.
FLOAT_QUERIES = "float queries"


def bytes_per_vector(precision: str, dim: int, num_codes: int | None = None) -> int:
    """Returns the bytes of a stored vector; product codes need their number."""
    if precision == "product":
        assert num_codes
        return num_codes
    bits = {"float32": 32, "int8": 8, "binary": 1, "ubinary": 1}[precision]
    return -(-bits * dim // 8)


class Recipe(RecipeFields):
    """The hyperparameters of one training; equal recipes on equal data give equal weights on one machine.

    Numbers may be given as text, since MLflow and the command line pass text.

    Examples:
        >>> Recipe(alpha=0.5, dim=16).name
        'mlp16-a0.5-s0'
        >>> Recipe.preset("best", seed=1).bytes_per_vector
        32
    """

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML's yes and on would pass for 1
            raise ValueError("a truth value")
        return value

    @field_validator("epochs")
    @classmethod
    def _check_base(cls, value: int, info: ValidationInfo) -> int:
        if not value and info.data.get("base") == NO_BASE:
            raise ValueError("needs a base")
        return value

    @field_validator("init", "quantizer")
    @classmethod
    def _check_architecture(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("base") != NO_BASE:  # whose architecture is not known yet
            return value
        if value in {"pca", "teacher", "product"} and info.data.get("architecture") == "mlp":
            raise ValueError("needs a linear compressor")
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
        """Returns a preset, one of `PRESETS`, with some fields replaced; raises an `InputError` as `parse` does.

        With a `base`, the preset leaves `BASE_FIELDS` to it.
        """
        fields = load_preset(name)
        if overrides.get("base", NO_BASE) != NO_BASE:
            fields = {name: value for name, value in fields.items() if name not in (*BASE_FIELDS, "init")}
        return cls.parse({**fields, **overrides})

    def check_task(self, task: Task, dataset: str) -> None:
        """Raises an `InputError` if the recipe can't be trained on data of a task; it names presets that can."""
        problem = self._task_problem(task) if self.epochs else None  # without epochs nothing is trained
        if problem:
            presets = [name for name, recipe in _preset_recipes().items() if not recipe._task_problem(task)]
            raise InputError(f"{problem}, and dataset {dataset!r} has {task.data}: {', '.join(presets)} fit such data")

    def _task_problem(self, task: Task) -> str | None:
        if self.needs_scores:
            return None if task == SIMILARITY else f"loss {self.loss} needs scores"
        if task != RETRIEVAL and self.loss == "infonce":
            return "loss infonce needs queries with passages"
        if task == NEIGHBORS and self.needs_projection:
            return "the projection teacher needs pairs"
        if self.loss == "none" and not self.neighbor_weight:
            return "loss none needs a neighbor_weight above 0"
        return None

    def validate_dim(self, encoder_dim: int) -> None:
        """Raises an `InputError` if `dim` exceeds the dimension of the encoder."""
        if self.dim > encoder_dim:
            raise InputError(f"dim must be at most {encoder_dim}, the dimension of the encoder, not {self.dim}")

    @property
    def has_base(self) -> bool:
        """Whether the training starts from a trained compressor."""
        return self.base != NO_BASE

    @property
    def needs_scores(self) -> bool:
        """Whether the loss compares cosines with human scores."""
        return self.loss in {"mse", "pearson"}

    @property
    def needs_teacher(self) -> bool:
        """Whether the training needs a teacher besides the encoder."""
        return self.epochs > 0 and (self.init == "teacher" or (self.teacher != "encoder" and self.neighbor_weight > 0))

    @property
    def needs_projection(self) -> bool:
        """Whether that teacher is trained on the pairs before the compressor."""
        return self.needs_teacher and self.teacher != "whitened"

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
        unnamed = (*UNNAMED_FIELDS, *BASE_FIELDS, "init") if self.has_base else UNNAMED_FIELDS
        fields = [name for name in type(self).model_fields if name not in unnamed]
        changes = {
            preset: [name for name in fields if getattr(self, name) != getattr(recipe, name)]
            for preset, recipe in _preset_recipes().items()
        }
        base = min(changes, key=lambda preset: len(changes[preset]))
        changed = changes[base]
        if base == "published":
            base = self.compressor_name
            changed = [name for name in changed if name not in BASE_FIELDS]
        values = {name: self.base[:8] if name == "base" else getattr(self, name) for name in changed}
        shown = [f"{name}{'_' if isinstance(v, str) else ''}{format_value(v)}" for name, v in values.items()]
        return "-".join([base, f"a{format_value(self.alpha)}", f"s{self.seed}", *shown])

    @property
    def compressor_name(self) -> str:
        """The compressor without noise and seed, such as `mlp32`, `linear256-sign` or `linear128-product4`."""
        codes = f"x{self.codes_per_subvector}" if self.codes_per_subvector > 1 else ""
        suffix = {"none": "", "product": f"-product{self.subvector_dim}{codes}", "sign": "-sign"}[self.quantizer]
        return f"{self.architecture}{self.dim}{suffix}"

    @property
    def precision(self) -> str:
        """Storage format that its vectors are evaluated in: float32, product or binary."""
        return {"none": "float32", "product": "product", "sign": "binary"}[self.quantizer]

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of a compressed vector in that format."""
        return bytes_per_vector(self.precision, self.dim, self.dim // self.subvector_dim * self.codes_per_subvector)


@cache
def _preset_recipes() -> dict[str, Recipe]:
    return {name: Recipe.preset(name) for name in PRESETS}
