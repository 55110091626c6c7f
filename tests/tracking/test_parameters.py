"""Names with spaces, quotes and other characters, as `mlflow run` passes and stores them."""

import json
import shlex
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import Param, Run, RunData, RunInfo, RunTag

from tests.helpers.commands import PROJECT, ROOT, Workplace
from twinsqueeze.cli import cli
from twinsqueeze.commands.options import PATH
from twinsqueeze.tracking.parameters import decode_params

# What an argument of a program can be.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
special = ["a", " ", "'", '"', "~", "(", "$HOME", "`", "\\", "\n", "{x}", "%20", "#", "?", "*", "-", "é", "="]
names = texts | st.lists(st.sampled_from(special)).map("".join)
ENTRY_POINTS = {name: PROJECT.get_entry_point(name) for name in cli.commands if name != "sync"}
STRINGS = [
    (name, parameter.name)
    for name, entry_point in ENTRY_POINTS.items()
    for parameter in entry_point.parameters.values()
    if parameter.type == "string"
]
NAME = '~it\'s (2) #1? 50%20 é {x} "$HOME" & `a`\\b;*'


def stored_run(params: dict[str, str], source_type: str) -> Run:
    data = RunData([], [Param(*item) for item in params.items()], [RunTag("mlflow.source.type", source_type)])
    return Run(RunInfo("0" * 32, "0", "user", "RUNNING", 0, None, "active"), data)


@pytest.mark.parametrize(("name", "parameter"), STRINGS)
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(value=names)
def test_every_text_is_passed_on_and_read_back(name, parameter, value):
    entry_point, command = ENTRY_POINTS[name], cli.commands[name]
    (option,) = (option for option in command.params if option.name == parameter)
    value = value if option.type is not click.BOOL else "false"
    passed = {each.name: "x" for each in entry_point.parameters.values() if each.default is None} | {parameter: value}
    declared, undeclared = entry_point.compute_parameters(passed | {"undeclared": value}, None)
    decoded = decode_params(stored_run(declared | undeclared, "PROJECT"))
    assert (decoded[parameter], decoded["undeclared"]) == (value, value)
    arguments = shlex.split(entry_point.compute_command(passed, None))
    parsed = command.make_context(name, arguments[4:]).params[parameter]
    assert parsed == {PATH: Path(value), click.BOOL: False}.get(option.type, value)


@pytest.mark.parametrize(
    ("value", "source_type"),
    [
        *((value, "LOCAL") for value in ("'a b'", "a b", "'", "a 'b", "")),
        *((value, "PROJECT") for value in ("a b", "it's", "'a' 'b'")),
    ],
)
def test_what_the_command_stored_or_is_not_quoted_is_taken_as_it_is(value, source_type):
    assert decode_params(stored_run({"dataset": value}, source_type)) == {"dataset": value}


def test_commands_accept_such_names_of_files_and_experiments(workplace, tiny_encoder, pairs_folder):
    folder = workplace.folder
    encoder, data = (
        str(shutil.copytree(source, folder / f"{source.name} {NAME}")) for source in (tiny_encoder, pairs_folder)
    )
    fields = {"dataset": data, "encoder": encoder, "epochs": "1", "dim": "8"}
    (folder / f"{NAME}.yaml").write_text(json.dumps(fields))
    np.save(folder / f"{NAME}.npy", np.eye(64))
    experiment = workplace.client.create_experiment(NAME)

    def project_run(entry_point: str, **parameters: str) -> str:
        done = workplace.project_run(experiment, entry_point, **parameters)
        assert done.returncode == 0, done.stderr
        return done.stderr

    project_run("main", **fields)
    (run,) = workplace.client.search_runs([experiment])
    assert run.data.params["encoder"] == shlex.quote(encoder)
    assert workplace.client.get_logged_model(run.outputs.model_outputs[0].model_id).params["encoder"] == encoder
    assert "1 of 1 recipes are in the experiment already" in project_run("ablation", grid=f"{NAME}.yaml")
    project_run("compare", experiment=NAME, output=f"{NAME} tables")
    assert (folder / f"{NAME} tables" / "report.html").is_file()
    project_run("register", experiment=NAME, dataset=Path(data).name)
    project_run("export", model="models:/twinsqueeze@champion", output=NAME)
    project_run("compress", model=NAME, input=f"{NAME}.npy", output=f"{NAME} small.npy")
    assert np.load(folder / f"{NAME} small.npy").shape == (64, 8)
    assert {run.info.status for run in workplace.client.search_runs([experiment])} == {"FINISHED"}


@pytest.mark.slow
def test_mlflow_run_from_a_folder_with_a_space(tmp_path, shared_cache, tiny_encoder, pairs_folder):
    """Relative paths are those of that folder, and the printed commands work there."""
    place = Workplace(tmp_path / "Anna Maria", shared_cache)
    place.folder.mkdir()
    shutil.copytree(tiny_encoder, place.folder / "my encoder")
    shutil.copytree(pairs_folder, place.folder / "my pairs")

    def mlflow_run(*arguments: str) -> str:
        with place.start("run", *arguments, module="mlflow", MLFLOW_TRACKING_URI="") as process:
            return process.finish()[0]

    options = ["-P", "dataset=my pairs", "-P", "encoder=my encoder", "-P", "epochs=1", "-P", "dim=8"]
    output = mlflow_run(str(ROOT), "--env-manager", "local", *options)
    next_command = next(line for line in output.splitlines() if "register the best run" in line)
    mlflow_run(*shlex.split(next_command.partition("mlflow run ")[2]))
    assert [run.info.status for run in place.runs()] == ["FINISHED"] * 2
