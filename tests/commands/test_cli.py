"""Mistakes of users: one line on standard error, exit code 2, nothing made."""

import re
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import get_args
from unittest.mock import Mock

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from tests.helpers.commands import ROOT
from twinsqueeze import cli
from twinsqueeze.commands import export
from twinsqueeze.data import sentence_pairs, table_files
from twinsqueeze.model import precision
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry import promotion
from twinsqueeze.tracking import links
from twinsqueeze.tracking import run as tracking_run
from twinsqueeze.tracking.run_logger import RunLogger

# The tracking store is opened before sentences are encoded, so that nothing is encoded in vain.
STORE = {"mlflow.db", "mlflow.db.lock"}


def refused(done: subprocess.CompletedProcess) -> str:
    """The line that a command refused by."""
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("twinsqueeze: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def made(workplace) -> set[str]:
    return {path.name for path in workplace.folder.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("mian", "No such command 'mian'. Did you mean 'main'?"),
        ("main --alpha -1", "alpha must be a finite number of at least 0, not '-1'"),
        ("train --batch_size -3", "batch_size must be"),  # as `mlflow run` spells it
        ("main --init teacher", "init must be random, or for a linear compressor pca or teacher, not"),
        (
            "main --architecture linear --dim 30 --quantizer product",
            "quantizer must be none or sign, or product for a linear compressor whose dim is a multiple",
        ),
        ("main --architecture linear --subvector-dim 6 --quantizer product", "quantizer must be none or"),
        ("main --subvector-dim 0", "subvector_dim must be a whole number of at least 1, not '0'"),
        ("main --unlabeled-sentences -1", "unlabeled_sentences must be a whole number from 0 to 24000, not '-1'"),
        ("main --neighbor-temperature 0", "neighbor_temperature must be a finite number above 0"),
        ("main --alhpa 1", "No such option '--alhpa'. (Did you mean one of: '--alpha',"),
        ("main stray", "unexpected extra argument"),
        ("main --score-max five", "'five' is not a valid float"),
        ("main --columns score", "pass names such as sentence1=text1,sentence2=text2,score=label, not 'score'"),
        ("main --columns text=a --dataset demo", "columns can rename sentence1, sentence2, score, not 'text'"),
        ("main --dataset=", "Invalid value for '--dataset': it is empty"),
        ("main --dataset dmo", "folder with train, dev and test (did you mean 'demo'?)"),
        ("main --dataset DATA --encoder ./nowhere", "encoder './nowhere' not found: pass"),
        ("main --dataset DATA --encoder nobody/has-this", "encoder 'nobody/has-this' cannot be loaded"),
        ("main --dataset DATA --encoder DATA", "no sentence-transformers model"),
        ("best --recipe bst-16", "vectors-16, not 'bst-16' (did you mean 'best-16'?)"),
        ("evaluate", "Missing option '--model'"),
        ("evaluate --model nonsense", "model 'nonsense' not found: pass a run id"),
        ("evaluate --model DATA", "has 0 .safetensors files"),
        ("evaluate --model nonsense --split validation", "split must be one of train, dev, test"),
        ("evaluate --model nonsense --device tpu", "device must be"),
        ("register --metric dev/f1", "of auto, dev/mse, dev/mae, dev/pearson, dev/spearman, dev/ndcg_at_10, dev/"),
        ("register --metric test/spearman", "test is never used for selection"),
        ("export --model nonsense --output out --format gguf", "format must be one of folder, "),
        ("export --model nonsense --output DATA", "is not empty: name another folder, or give"),
        ("export --model nonsense --output DATA --overwrite yes", "is not an earlier export"),
        ("export --model nonsense --output DATA/dev.csv", "is a file: name a folder"),
        ("export --model nonsense --output DATA/dev.csv/out", "dev.csv/out' can't be written to"),
    ],
)
def test_wrong_arguments(workplace, pairs_folder, arguments, message):
    before = sorted(pairs_folder.iterdir())
    done = workplace.command(*(text.replace("DATA", str(pairs_folder)) for text in arguments.split()))
    assert message in refused(done)
    assert not made(workplace)
    assert sorted(pairs_folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("main --dim 65", "dim must be at most 64, "),
        (f"evaluate --model {'0' * 32}", "0" * 32),
        ("evaluate --model models:/nothing@champion", "models:/nothing@champion"),
        (f"evaluate --model runs:/{'0' * 32}/compressor", f"runs:/{'0' * 32}/compressor"),
        ("register", "no finished training run in the experiment"),
        ("register --experiment nowhere", "experiment 'nowhere' not found"),
        ("register --rollback true", "registered model 'twinsqueeze' not found"),
        ("compare", "no finished training run in the experiment"),
        ("compare --experiment nowhere", "experiment 'nowhere' not found; existing experiments: 'Default'"),
    ],
)
def test_what_the_store_does_not_have(workplace, tiny_options, arguments, message):
    command = arguments.split()
    assert message in refused(workplace.command(*command, *(tiny_options if command[0] == "main" else ())))
    assert made(workplace) == STORE
    assert workplace.runs() == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://user:secret@127.0.0.1:9", "the model registry http://127.0.0.1:9 does not answer"),
        ("nowhere://registry", "the model registry nowhere://registry can't be used"),
        (f"sqlite:///{__file__}/mlflow.db", f"the model registry sqlite:///{__file__}/mlflow.db can't be used"),
    ],
)
def test_a_registry_that_is_not_there(workplace, uri, message):
    for options in ([], ["--rollback", "true"]):
        line = refused(workplace.command("register", *options, MLFLOW_REGISTRY_URI=uri))
        assert message in line
        assert "secret" not in line


@pytest.mark.parametrize(
    ("uri", "reason", "advice"),
    [
        ("./mlruns", "no longer stores runs in folders", "to sqlite:///{folder}/mlruns/mlflow.db, or"),
        ("file:///nowhere/my%20runs", "no longer stores runs", "to sqlite:////nowhere/my runs/mlflow.db, or"),
        ("store.db", "no longer stores runs in folders", "to sqlite:///{folder}/store.db, or"),
        ("localhost:5000", "http:// is missing", "to http://localhost:5000\n"),
        ("user:secret@10.0.0.1:80/mlflow", "http:// is missing", "to http://10.0.0.1:80/mlflow\n"),
        ("~/my runs", "no longer stores runs in folders", f"to sqlite:///{Path.home()}/my runs/mlflow.db, or"),
        ("http:localhost:5000", "http:// is missing", "to http://localhost:5000\n"),
        ("https:/localhost", "http:// is missing", "to https://localhost\n"),
        ("sqlite:store.db", "no file is named", "to sqlite:///{folder}/store.db\n"),
        ("sqlite://store.db", "no file is named", "to sqlite:///{folder}/store.db\n"),
        ("sqlite:///:memory:", "no file is named", "to sqlite:///{folder}/mlflow.db\n"),
        (f"sqlite:///{ROOT}/tests", "no file is named", f"to sqlite:///{ROOT}/tests/mlflow.db\n"),
        ("postgres://user:secret@127.0.0.1/runs", "unknown scheme", "postgresql://HOST/DATABASE\n"),
        ("htp://127.0.0.1", "unknown scheme", "http://HOST:PORT, "),
        ("postgresql+psycopg://user:secret@127.0.0.1:9/runs", "127.0.0.1", "repair or start it"),
        ("mysql+nodriver://user:secret@127.0.0.1:9/runs", "nodriver", "repair or start it"),
        ("mysql+pymysql://user:secret@127.0.0.1:9/runs", "driver pymysql is not installed", "install it, or"),
    ],
)
def test_an_address_of_no_tracking_store(workplace, monkeypatch, uri, reason, advice):
    monkeypatch.setitem(sys.modules, "pymysql", None)
    pauses = []  # of MLflow between attempts
    monkeypatch.setattr("mlflow.store.db.utils.time", SimpleNamespace(sleep=pauses.append))
    line = refused(workplace.command("compare", MLFLOW_TRACKING_URI=uri))
    assert reason in line
    assert advice.format(folder=workplace.folder) in line
    assert "secret" not in line
    assert (made(workplace), pauses) == (set(), [])


def test_a_setting_of_the_environment_that_is_no_number(workplace, tiny_options):
    done = workplace.command("train", *tiny_options, TWINSQUEEZE_FLUSH_TIMEOUT="soon")
    assert done.returncode == 2
    assert done.stderr.endswith("TWINSQUEEZE_FLUSH_TIMEOUT must be a number of seconds, 0 or more, not 'soon'\n")
    assert workplace.runs() == []


def test_a_model_for_vectors_of_another_dimension(workplace, tiny_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_file({"0.weight": torch.rand(8, 100), "0.bias": torch.rand(8)}, folder / "weights.safetensors")
    evaluate = ["evaluate", "--model", str(folder)]
    assert "pass --dataset" in refused(workplace.command(*evaluate))
    assert not made(workplace)
    assert "compresses vectors of 100 dimensions" in refused(workplace.command(*evaluate, *tiny_options))
    assert made(workplace) == STORE
    assert workplace.runs() == []


def test_a_run_without_a_model(workplace):
    run = workplace.client.create_run("0")
    assert "has no model" in refused(workplace.command("evaluate", "--model", run.info.run_id))


@pytest.mark.parametrize("reason", ["connection refused", "no answer in time"])
def test_a_tracking_server_that_does_not_answer(workplace, tiny_options, monkeypatch, reason):
    timeouts, request_timeout = [], tracking_run.request_timeout

    def wait_a_second(seconds: int):
        timeouts.append(seconds)
        return request_timeout(1)

    monkeypatch.setattr(tracking_run, "request_timeout", wait_a_second)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if reason == "connection refused":
            server.close()
        done = workplace.command("main", *tiny_options, MLFLOW_TRACKING_URI=f"http://user:secret@{address}")
    assert sum(timeouts) < 30  # seconds
    problem = f"the tracking server http://{address} does not answer ({reason})"
    assert refused(done) == f"twinsqueeze: {problem}: start it, or point MLFLOW_TRACKING_URI elsewhere\n"
    assert not made(workplace)


def test_a_run_of_mlflow_run_ends_with_the_line_as_its_description(workplace):
    run_id = workplace.client.create_run("0").info.run_id
    line = refused(workplace.command("main", "--alpha", "-1", MLFLOW_RUN_ID=run_id))
    ended = workplace.client.get_run(run_id)
    assert ended.info.status == "FAILED"
    assert ended.data.tags["mlflow.note.content"] == f"Failed: {line.removeprefix('twinsqueeze: ').strip()}"


def test_a_training_that_diverges_is_failed_and_says_why(workplace, tiny_options):
    done = workplace.command("train", *tiny_options, "--lr", "1e30", "--epochs", "50")
    assert done.returncode == 2
    assert "lower lr" in done.stderr.splitlines()[-1]
    (run,) = workplace.runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"].startswith("Failed: the training diverged")


def test_a_bug_ends_the_run_as_failed_with_what_identifies_its_recipe(workplace, tiny_options, monkeypatch):
    """However soon its process is killed, the next one knows what it was doing."""
    monkeypatch.setattr(RunLogger, "log_params", Mock(side_effect=RuntimeError("out of luck")))
    with pytest.raises(RuntimeError):
        workplace.command("train", *tiny_options)
    (run,) = workplace.runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"] == "Failed: RuntimeError: out of luck"
    assert {"twinsqueeze.recipe_digest", "twinsqueeze.dataset_digest"} < set(run.data.tags)


def test_help_does_not_import_what_takes_seconds():
    program = """
import sys
from twinsqueeze.cli import cli
for command in ("", "main", "train", "evaluate", "register", "export", "compress"):
    assert cli([*command.split(), "--help"], standalone_mode=False) == 0
assert not {"torch", "mlflow", "scipy", "pandas", "datasets", "matplotlib", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_help_lists_every_recipe_field_in_a_section_with_its_choices():
    printed = CliRunner().invoke(cli.cli, ["main", "--help"]).output
    for name, field in Recipe.model_fields.items():
        values = get_args(field.annotation)
        assert f"--{name.replace('_', '-')} {f'[{chr(124).join(values)}]' if values else ''}" in printed
    sections = [line.removesuffix(":") for line in printed.splitlines() if re.fullmatch(r"\w.*:", line)]
    assert sections == ["Common options", "Optimizer", "Architecture", "Quantizer", "Loss", "Neighborhood loss"]


@pytest.mark.parametrize(
    ("command", "values"),
    [
        ("evaluate", sentence_pairs.SPLITS),
        ("register", promotion.METRICS),
        ("export", export.FORMATS),
        ("compress", ("auto", *table_files.FORMATS)),
        ("compress", ("auto", *precision.PRECISIONS)),
    ],
)
def test_help_shows_the_choices_that_a_command_takes(command, values):
    printed = CliRunner().invoke(cli.cli, [command, "--help"]).output
    assert sorted(values) in [sorted(found.split("|")) for found in re.findall(r"\[(\S+\|\S+)\]", printed)]


def test_the_installed_command_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (name,) = project["scripts"]
    command = EntryPoint(name, project["scripts"][name], "console_scripts").load()
    assert (name, command) == ("twinsqueeze", cli.run)


@pytest.mark.parametrize(
    ("given", "value"),
    [("", False), ("--force", True), ("--force true", True), ("--force=false", False), ("--force 0", False)],
)
def test_a_switch_stands_alone_or_has_a_value(monkeypatch, given, value):
    """People type the first, `mlflow run` the second."""
    asked = []
    run_ablation = "twinsqueeze.commands.ablation.run_ablation"
    monkeypatch.setattr(run_ablation, lambda _grid, _recipes, options: asked.append(options.force))
    for arguments in (f"{given} --grid quick", f"--grid quick {given}"):
        cli.cli(["ablation", *arguments.split()], standalone_mode=False)
    assert asked == [value, value]


@pytest.mark.parametrize(
    ("program", "experiment", "expected"),
    [
        ("/usr/bin/twinsqueeze", None, "twinsqueeze evaluate --model 'a b'"),
        ("/x/twinsqueeze/__main__.py", None, "python -m twinsqueeze evaluate --model 'a b'"),
        ("mlflow", "0", "mlflow run . --env-manager local -e evaluate -P 'model=a b'"),
        ("mlflow", "7", "mlflow run . --env-manager local --experiment-id 7 -e evaluate -P 'model=a b'"),
    ],
)
def test_the_next_command_is_spelled_as_the_one_before(monkeypatch, tmp_path, program, experiment, expected):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if path != str(ROOT))])
    run = SimpleNamespace(is_of_project=program == "mlflow", experiment_id=experiment)
    assert links.next_command(run, "evaluate", model="a b") == expected
    monkeypatch.chdir(tmp_path)
    elsewhere = expected.replace("run .", f"run {ROOT}").replace("python", f"PYTHONPATH={ROOT} python")
    assert links.next_command(run, "evaluate", model="a b") == elsewhere
