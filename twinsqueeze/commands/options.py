"""Options that commands share. Imports neither PyTorch nor MLflow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from twinsqueeze.recipe import Recipe

Command = Callable[..., None]
Decorator = Callable[[Command], Command]
# Recipe fields that no preset sets.
PRESET_INDEPENDENT = ("seed", "encoder", "dataset", "device")
PATH = click.Path(path_type=Path)
METAVARS: dict[Any, str] = {float: "NUMBER", int: "INTEGER", str: "TEXT"}


def option(name: str, help_: str, **settings: Any) -> Decorator:
    """An option, spelled --batch-size by people and --batch_size by `mlflow run -P batch_size=`.

    It shows its default; `settings` are those of `click.option`.
    """
    spellings = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}", name])
    shown = settings.get("default") is not None
    return click.option(*spellings, **{"metavar": "NAME", "show_default": shown, "help": help_, **settings})


def bool_option(name: str, help_: str) -> Decorator:
    """An option that is false until it is given, alone or with a value, since `mlflow run` passes a value always."""
    return option(name, help_, type=bool, is_flag=False, flag_value="true", default=False, metavar="[BOOLEAN]")


def training_options(*, preset: bool = False) -> Decorator:
    """Adds `resume`, `score_max`, and every field of the recipe; `preset`: by default as the preset of `--recipe`."""

    def decorate(command: Command) -> Command:
        command = resume_option(score_max_option(command))
        for name, field in reversed(Recipe.model_fields.items()):
            metavar = METAVARS.get(field.annotation, "NAME")
            if preset and name not in PRESET_INDEPENDENT:
                command = option(name, f"{field.description}  [default: the preset's]", metavar=metavar)(command)
            else:
                command = option(name, str(field.description), default=f"{field.default}", metavar=metavar)(command)
        return command

    return decorate


model_option = option("model", "A run id, a model URI or a folder.", required=True, metavar="MODEL")
experiment_option = option(
    "experiment", "Name or id of the experiment; `current` is the experiment of new runs.", default="current"
)
score_max_option = option(
    "score_max", "Highest score; the lowest is 0.  [default: 5; STS-B from the Hub: 1]", type=float, metavar="NUMBER"
)
resume_option = option(
    "resume", "Resume an interrupted training bit for bit; false: restart.", type=bool, default=True, metavar="BOOLEAN"
)
