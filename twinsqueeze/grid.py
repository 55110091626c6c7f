"""Grids of recipes, read from YAML."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from twinsqueeze.errors import InputError, one_line, truncate_repr
from twinsqueeze.recipe import Recipe

MAX_COMBINATIONS = 2000
# Characters of a grid: PyYAML takes a second for a tenth of a million, so a wrong file must not be read through.
MAX_GRID = 100_000


class _GridLoader(yaml.SafeLoader):
    """YAML's safe part without aliases: merged ones of merged ones would grow without end in a few lines."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), which grids do without: write the value")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _field_name(name: object) -> str:
    return name if isinstance(name, str) else truncate_repr(name)


def load_grid(file: str, **fixed: Any) -> list[Recipe]:
    """The recipes of a grid: every combination of its values, the first field varying slowest.

    Args:
        file: A YAML mapping of the recipe's fields to a value or a list of values; the rest has its default.
        fixed: Fields that override the file's.

    Raises:
        InputError: If the file can't be read, is no such mapping, or has more than 2,000 combinations.
    """
    try:
        with Path(file).open(encoding="utf-8") as stream:
            text = stream.read(MAX_GRID + 1)
        if len(text) > MAX_GRID:
            raise InputError(f"grid {file!r} is longer than {MAX_GRID:,} characters, which no grid is")
        content = _GridLoader(text).get_single_data()
    except FileNotFoundError:
        raise InputError(f"grid {file!r} is not there: name a YAML file such as experiments/published.yaml") from None
    except InputError:
        raise
    except Exception as error:  # its parser lets IndexError, KeyError, AttributeError and RecursionError through
        raise InputError(f"grid {file!r} can't be read as YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        what = "is empty" if content is None else "is no mapping"
        raise InputError(
            f"grid {file!r} {what}: it gives fields of the recipe a value or a list of values, as in `alpha: [0, 0.75]`"
        )
    values = {_field_name(name): value if isinstance(value, list) else [value] for name, value in content.items()}
    values |= {name: [value] for name, value in fixed.items()}
    try:
        for name, options in values.items():
            if not options:
                raise InputError(f"{name} has no value")
        count = math.prod(map(len, values.values()))
        if count > MAX_COMBINATIONS:
            raise InputError(f"{count:,} combinations are more than {MAX_COMBINATIONS:,}: cut it into several files")
        recipes = [Recipe.parse(dict(zip(values, some, strict=True))) for some in product(*values.values())]
        for name, options in values.items():
            if len({getattr(recipe, name) for recipe in recipes}) < len(options):
                raise InputError(f"{name} has the same value twice: {', '.join(map(truncate_repr, options))}")
    except InputError as error:
        raise InputError(f"grid {file!r}: {error}") from None
    return recipes
