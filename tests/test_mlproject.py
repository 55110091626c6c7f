"""The MLproject file offers the commands with their options, defaults and environments."""

import re

import click
import pytest
import yaml
from click.testing import CliRunner

from tests.helpers.commands import ROOT
from twinsqueeze.cli import cli
from twinsqueeze.commands import train
from twinsqueeze.grid import load_grid
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import SIMILARITY
from twinsqueeze.utils.text import format_value

ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


def test_every_command_is_an_entry_point():
    # An entry point has a run of its own, on the server that was away.
    assert set(ENTRY_POINTS) == set(cli.commands) - {"sync"}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_declared_parameters_are_passed_on_and_have_the_defaults_of_the_command(name):
    command, parameters = ENTRY_POINTS[name]["command"], ENTRY_POINTS[name]["parameters"]
    assert command.startswith(f"python -m twinsqueeze {name} ")
    passed = dict(re.findall(r"--(\S+) \{(\w+)\}", command))
    assert list(passed.values()) == [option.replace("-", "_") for option in passed]
    assert set(passed.values()) == set(parameters)
    options = {spelling: option for option in cli.commands[name].params for spelling in option.opts}
    for option, parameter in passed.items():
        default = options[f"--{option}"].default
        if "default" in parameters[parameter]:
            text = str(default).lower() if isinstance(default, bool) else str(default)  # MLproject knows no flags
            assert text == str(parameters[parameter]["default"])
        else:
            assert options[f"--{option}"].required

    # MLflow logs declared parameters, also those with their default: none that does not change the result.
    assert {"resume", "force", "overwrite"}.isdisjoint(parameters)


@pytest.mark.parametrize("name", ["main", "train"])
def test_declared_parameters_of_a_training_have_the_defaults_of_the_recipe(name):
    declared = {key: value["default"] for key, value in ENTRY_POINTS[name]["parameters"].items()}
    defaults = Recipe().model_dump()
    assert declared == {field: defaults[field] for field in declared}
    # MLflow logs the former, the commands log the latter.
    assert [str(value) for value in declared.values()] == [format_value(defaults[field]) for field in declared]
    assert {"alpha", "dim", "epochs", "batch_size", "lr", "seed", "architecture", "loss"} < set(declared)


@pytest.mark.parametrize("preset", ["best", "best-16", "search"])
def test_the_command_best_trains_the_recipes_of_the_grids(monkeypatch, preset):
    trained = []
    monkeypatch.setattr(train, "train", lambda choose_recipe, **_: trained.append(choose_recipe(SIMILARITY)))
    recipes = load_grid(str(ROOT / "experiments" / f"{preset}.yaml"))
    for recipe in recipes:
        options = ["--recipe", preset, "--dim", recipe.dim, "--seed", recipe.seed]
        assert CliRunner().invoke(cli, ["best", *map(str, options)], catch_exceptions=False).exit_code == 0
    assert trained == recipes


@pytest.mark.parametrize("name", cli.commands)
def test_every_option_is_explained_and_has_a_default_or_is_required(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    for parameter in cli.commands[name].params:
        assert isinstance(parameter, click.Option)
        assert parameter.help
        assert parameter.required or parameter.show_default or "[default:" in parameter.help
    assert "\n  Example: twinsqueeze" in result.output
    assert "\\b" not in result.output


def test_environments_refer_to_the_one_list_of_versions():
    assert "-r requirements.txt" in yaml.safe_load((ROOT / "python_env.yaml").read_text())["dependencies"]
    assert {"pip": ["-r requirements.txt"]} in yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^+\s]+", line) for line in pinned)
