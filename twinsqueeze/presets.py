"""The named presets: recipes whose YAML files are in twinsqueeze/recipes/."""

from importlib.resources import files
from typing import Any

import yaml

from twinsqueeze.errors import InputError, suggest, truncate_repr
from twinsqueeze.task import NEIGHBORS, RETRIEVAL, SIMILARITY

# `published` has the defaults.
PRESETS = (
    "published", "best", "best-16", "best-64", "search", "search-16", "floats", "pairs", "pairs-16", "vectors",
    "vectors-16",
)  # fmt: skip
# Which preset `best` takes by default, by the task of the data.
BEST_PRESETS = {SIMILARITY: "best", RETRIEVAL: "pairs", NEIGHBORS: "vectors"}


def load_preset(name: str) -> dict[str, Any]:
    """Returns the fields of a preset that differ from the defaults; raises an `InputError` if it does not exist."""
    if name not in PRESETS:
        raise InputError(
            f"recipe must be one of {', '.join(PRESETS)}, not {truncate_repr(name)}{suggest(name, PRESETS)}"
        )
    text = files("twinsqueeze").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    fields: dict[str, Any] = yaml.safe_load(text)
    return fields
