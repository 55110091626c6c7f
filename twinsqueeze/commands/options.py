"""Options that commands share. Imports neither PyTorch nor MLflow."""

from collections.abc import Callable
from typing import Any

import click

from twinsqueeze.recipe import Recipe

Command = Callable[..., None]
Decorator = Callable[[Command], Command]
# Recipe fields that no preset sets.
PRESET_INDEPENDENT = ("seed", "encoder", "dataset", "device")


def option_names(field: str) -> list[str]:
    """An option's spellings, --batch-size for people and --batch_size for `mlflow run -P batch_size=`, and its name."""
    return list(dict.fromkeys([f"--{field.replace('_', '-')}", f"--{field}", field]))


def option(name: str, help_: str, **settings: Any) -> Decorator:
    """An option in both spellings that shows its default; `settings` are those of `click.option`."""
    shown = settings.get("default") is not None
    return click.option(*option_names(name), **{"metavar": "NAME", "show_default": shown, "help": help_, **settings})


def bool_option(name: str, help_: str) -> Decorator:
    """An option that is false until it is given, alone or with a value, since `mlflow run` passes a value always."""
    return option(name, help_, type=bool, is_flag=False, flag_value="true", default=False, metavar="[BOOLEAN]")


def recipe_options(*, preset: bool = False) -> Decorator:
    """Adds an option for every field of the recipe; the recipe validates the values.

    Args:
        preset: Whether the defaults are those of the preset that `--recipe` names.
    """

    def decorate(command: Command) -> Command:
        for name, field in reversed(Recipe.model_fields.items()):
            kind = getattr(field.annotation, "__name__", "choice")
            metavar = {"float": "NUMBER", "int": "INTEGER", "str": "TEXT"}.get(kind, "NAME")
            if preset and name not in PRESET_INDEPENDENT:
                command = option(name, f"{field.description}  [default: the preset's]", metavar=metavar)(command)
            else:
                command = option(name, str(field.description), default=f"{field.default}", metavar=metavar)(command)
        return command

    return decorate


model_option = option("model", "A run id, a model URI or a folder.", required=True, metavar="MODEL")
experiment_option = option(
    "experiment",
    "Name or id of the experiment; `current` is the experiment of a run that is started now.",
    default="current",
)
score_max_option = option(
    "score_max",
    "Upper end of the scores, which start at 0.  [default: 5; STS-B from the Hub: 1]",
    type=float,
    metavar="NUMBER",
)
resume_option = option(
    "resume",
    "Resume the same training where it was interrupted, with the same weights bit for bit; false starts again.",
    type=bool,
    default=True,
    metavar="BOOLEAN",
)
