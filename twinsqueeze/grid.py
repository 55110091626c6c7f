"""Grids of recipes, read from YAML."""

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from twinsqueeze.errors import InputError, one_line, suggest, truncate_repr
from twinsqueeze.presets import load_preset
from twinsqueeze.recipe import Recipe
from twinsqueeze.utils.files import expand_user

MAX_COMBINATIONS = 2000
# PyYAML parses them in about a second; a wrong file must not be parsed as a whole.
MAX_CHARACTERS = 100_000


class _GridLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, whose nesting can grow exponentially."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported: write the value")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def find_grid(name: str) -> Path:
    """Returns the file of a grid: a grid of the package by its name, such as `published`, or the file called so."""
    return _packaged_grids().get(name) or expand_user(name)


def _packaged_grids() -> dict[str, Path]:
    folder = Path(__file__).with_name("grids")  # a wheel has the files of experiments/ there (pyproject.toml)
    if not folder.is_dir():
        folder = Path(__file__).parents[1] / "experiments"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"), key=lambda file: file.stem)}


def load_grid(file: str, **overrides: Any) -> list[Recipe]:
    """Returns the recipes of a grid: every combination of its values, the first field varying slowest.

    The grid is a file or a name as for `find_grid`: a YAML mapping of recipe fields to a value or a list of values.
    `recipe` names a preset that has the other fields, and `overrides` replace fields of the file. Raises `InputError`
    for any other file.
    """
    example = "map fields of the recipe to a value or a list of values, as in `alpha: [0, 0.75]`"
    content = read_mapping("grid", file, _packaged_grids(), example)
    try:
        preset = str(content.pop("recipe", "published"))
        load_preset(preset)  # raises for an unknown one
        values = {}
        for name, value in (content | overrides).items():
            field = name if isinstance(name, str) else truncate_repr(name)
            values[field] = value if isinstance(value, list) else [value]
        return _combine(preset, values)
    except InputError as error:
        raise InputError(f"grid {file!r}: {error}") from None


def read_mapping(kind: str, name: str, packaged: Mapping[str, Path], example: str) -> dict[Any, Any]:
    """Returns the YAML mapping of a file, or of one of the `packaged` files by its name.

    Raises `InputError` for any other file, with `kind`, such as "grid", and what to write instead, `example`.
    """
    try:
        with (packaged.get(name) or expand_user(name)).open(encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
        content = _GridLoader(text).get_single_data() if len(text) <= MAX_CHARACTERS else None
    except FileNotFoundError:
        raise InputError(
            f"{kind} {name!r} not found{suggest(name, packaged)}: pass a YAML file, or one of {', '.join(packaged)}"
        ) from None
    except Exception as error:  # PyYAML also raises IndexError, KeyError, AttributeError and RecursionError
        raise InputError(f"{kind} {name!r} can't be read as YAML: {one_line(error)}") from error
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{kind} {name!r} is longer than {MAX_CHARACTERS:,} characters: it is not a {kind}")
    if not isinstance(content, dict):
        raise InputError(f"{kind} {name!r} {'is empty' if content is None else 'is not a mapping'}: {example}")
    return content


def _combine(preset: str, values: dict[str, list[Any]]) -> list[Recipe]:
    for name, options in values.items():
        if not options:
            raise InputError(f"{name} has no value")
    count = math.prod(map(len, values.values()))
    if count > MAX_COMBINATIONS:
        raise InputError(
            f"{count:,} combinations are more than {MAX_COMBINATIONS:,}: split the grid into several files"
        )
    recipes = [Recipe.preset(preset, **dict(zip(values, some, strict=True))) for some in product(*values.values())]
    for name, options in values.items():
        if len({getattr(recipe, name) for recipe in recipes}) < len(options):
            raise InputError(f"{name} has the same value twice: {', '.join(map(truncate_repr, options))}")
    return recipes
