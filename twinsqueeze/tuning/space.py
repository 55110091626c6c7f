"""Search spaces: the recipe fields that a study searches, and their ranges, from YAML."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from twinsqueeze.errors import InputError, truncate_repr
from twinsqueeze.grid import read_mapping
from twinsqueeze.presets import load_preset
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import TASKS, Task
from twinsqueeze.utils.files import expand_user
from twinsqueeze.utils.text import format_value

# A study is on one dataset, and compares recipes over seeds.
NOT_SEARCHED = ("base", "seed", "encoder", "dataset", "device")
EXAMPLE = "map `search` to fields with ranges or choices, as in `search: {lr: {low: 1.0e-4, high: 1.0e-2, log: true}}`"
RANGE_KEYS = ("low", "high", "log", "step")
SIGNIFICANT_DIGITS = 3  # of sampled floats: further digits change no result
# Values of parameters by name, as Optuna stores them.
Params = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, in equal steps of the value or, if `log`, of its logarithm."""

    low: float
    high: float
    log: bool = False
    step: float | None = None  # None for any number between them; 1 for whole numbers

    @property
    def is_integer(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int)

    def values(self) -> list[float] | None:
        """Returns all values; None if they are too many to try."""
        if self.step is None or self.log:
            return None
        count = round((self.high - self.low) / self.step) + 1
        return [self.low + i * self.step for i in range(count)]


# The recipe fields that each choice sets, by the choice's value or its text.
Choices = dict[Any, dict[str, Any]]


@dataclass(frozen=True)
class SearchSpace:
    """The recipe that a study starts from, and what it varies: recipe fields, or named choices of several fields."""

    file: Path
    preset: str  # that the start recipe is based on
    start: Recipe
    parameters: Mapping[str, Range | Choices]

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.file.stem

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the start recipe and what is searched."""
        ranges = {name: vars(each) if isinstance(each, Range) else each for name, each in self.parameters.items()}
        text = json.dumps([self.start.digest, sorted(ranges.items())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def make_recipe(self, params: Params, **overrides: Any) -> Recipe:
        """Returns the recipe of some parameters; raises an `InputError` if their combination is invalid."""
        fields: dict[str, Any] = {}
        for name, value in params.items():
            parameter = self.parameters[name]
            fields |= {name: _round(value)} if isinstance(parameter, Range) else parameter[value]
        return Recipe.parse(self.start.model_dump() | fields | overrides)

    def start_params(self) -> Params:
        """Returns the parameters of the start recipe, without those that it has outside of their range."""
        found: Params = {}
        for name, parameter in self.parameters.items():
            if not isinstance(parameter, Range):
                choices = [c for c, fields in parameter.items() if self.start.model_copy(update=fields) == self.start]
                found |= {name: choices[0]} if choices else {}
            elif parameter.low <= getattr(self.start, name) <= parameter.high:
                found[name] = getattr(self.start, name)
        return found

    def combinations(self, limit: int) -> list[Params] | None:
        """Returns all combinations of parameters; None if there are more than `limit`."""
        options = []
        for parameter in self.parameters.values():
            values = parameter.values() if isinstance(parameter, Range) else list(parameter)
            if values is None:
                return None
            options.append(values)
        if math.prod(map(len, options)) > limit:
            return None
        return [dict(zip(self.parameters, values, strict=True)) for values in product(*options)]

    def validate_dim(self, encoder_dim: int) -> None:
        """Raises an `InputError` if a recipe of the space has more dimensions than the encoder."""
        self.start.validate_dim(encoder_dim)
        for name, parameter in self.parameters.items():
            if isinstance(parameter, Range):
                fields = [{name: parameter.high}] if name == "dim" else []
            else:
                fields = list(parameter.values())
            for each in fields:
                self.start.model_copy(update=each).validate_dim(encoder_dim)


def packaged_spaces() -> dict[str, Path]:
    """Returns the files of the search spaces in the package by name."""
    return {file.stem: file for file in sorted(Path(__file__).parents[1].joinpath("spaces").glob("*.yaml"))}


def load_space(name: str, task: Task, **overrides: Any) -> SearchSpace:
    """Returns the search space of a file, or of one in the package by its name, for the data of a task.

    The file maps `recipe` to a preset, recipe fields to fixed values, and `search` to what is searched; or the name of
    each task to such a mapping. `overrides` replace fixed values. Raises an `InputError` for any other file.
    """
    packaged = packaged_spaces()
    content = read_mapping("space", name, packaged, EXAMPLE)
    try:
        if content.keys() <= TASKS.keys():
            if task.name not in content:
                raise InputError(f"has nothing for {task.data}: add a section {task.name!r}")
            content = content[task.name]
        return _parse(packaged.get(name) or expand_user(name), content, overrides)
    except InputError as error:
        raise InputError(f"space {name!r}: {error}") from None


def _parse(file: Path, content: Any, overrides: Mapping[str, Any]) -> SearchSpace:
    search = content.get("search") if isinstance(content, dict) else None
    if not isinstance(search, dict) or not search:
        raise InputError(f"nothing is searched: {EXAMPLE}")
    preset = str(content.get("recipe", "published"))
    fixed = {_text(name): value for name, value in content.items() if name not in {"recipe", "search"}}
    start = Recipe.parse({**load_preset(preset), **fixed, **overrides})
    if start.has_base:
        raise InputError("a search starts from a preset, not from a base: leave base out")
    parameters = {_text(name): _parse_parameter(_text(name), spec, start) for name, spec in search.items()}
    searched: dict[str, str] = {}
    for name, parameter in parameters.items():
        for field in [name] if isinstance(parameter, Range) else next(iter(parameter.values())):
            if field in searched:
                raise InputError(f"{field} is searched twice, by {searched[field]} and {name}")
            searched[field] = name
    return SearchSpace(file, preset, start, parameters)


def _text(name: Any) -> str:
    return name if isinstance(name, str) else truncate_repr(name)


def _parse_parameter(name: str, spec: Any, start: Recipe) -> Range | Choices:
    if isinstance(spec, dict):
        return _parse_range(name, spec, start)
    if isinstance(spec, list) and spec:
        return _parse_choices(name, spec, start)
    raise InputError(f"{name} must be a list of choices, or {{low: ..., high: ...}}, not {truncate_repr(spec)}")


def _check_searchable(name: str) -> None:
    if name in NOT_SEARCHED:
        raise InputError(f"{name} can't be searched: it is the same in all trials, or the study's own")


def _parse_range(name: str, spec: Mapping[Any, Any], start: Recipe) -> Range:
    if not {"low", "high"} <= spec.keys() <= set(RANGE_KEYS):
        raise InputError(f"{name} must have low and high, and may have log and step, not {truncate_repr(dict(spec))}")
    low, high = (_field_value(name, spec[key], start) for key in ("low", "high"))
    if isinstance(low, str):
        raise InputError(f"{name} has no range, since it is not a number: list its choices")
    log, step = spec.get("log", False), spec.get("step")
    if not isinstance(log, bool):
        raise InputError(f"log of {name} must be true or false, not {truncate_repr(log)}")
    if low >= high:
        raise InputError(f"low of {name} must be below high, not {format_value(low)} and {format_value(high)}")
    if log and (low <= 0 or step is not None):
        raise InputError(f"log of {name} needs {'no step' if low > 0 else 'low above 0'}")
    if step is None:
        return Range(low, high, log, 1 if isinstance(low, int) else None)
    if isinstance(step, bool) or not isinstance(step, type(low) | int) or not 0 < step <= high - low:
        kind = "a whole number" if isinstance(low, int) else "a number"
        raise InputError(f"step of {name} must be {kind} above 0, at most high - low, not {truncate_repr(step)}")
    return Range(low, low + type(low)(math.floor((high - low) / step + 1e-9) * step), log, type(low)(step))


def _parse_choices(name: str, spec: list[Any], start: Recipe) -> Choices:
    if all(isinstance(each, dict) and each for each in spec):
        choices = {}
        for each in spec:
            fields = {_text(field): _field_value(_text(field), value, start, each) for field, value in each.items()}
            choices[", ".join(f"{field} {format_value(value)}" for field, value in fields.items())] = fields
        if len({tuple(sorted(fields)) for fields in choices.values()}) > 1:
            raise InputError(f"the choices of {name} must set the same fields")
    else:
        values = [_field_value(name, each, start) for each in spec]
        choices = {value: {name: value} for value in values}
    if len(choices) < len(spec):
        raise InputError(f"{name} has the same choice twice: {', '.join(map(truncate_repr, spec))}")
    return choices


def _field_value(name: str, value: Any, start: Recipe, others: Mapping[Any, Any] | None = None) -> Any:
    """Returns the value of a recipe field as its type; raises an `InputError` if the recipe refuses it.

    `others` has the fields that are set with it.
    """
    _check_searchable(name)
    return getattr(Recipe.parse({**start.model_dump(), **(others or {}), name: value}), name)


def _round(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{SIGNIFICANT_DIGITS}g}")
