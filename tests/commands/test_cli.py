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

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from tests.helpers.commands import ROOT
from tests.helpers.pairs import write_pairs
from twinsqueeze import cli
from twinsqueeze.commands import export
from twinsqueeze.data import sentence_pairs, table_files
from twinsqueeze.model import precision
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry import promotion
from twinsqueeze.tracking import links
from twinsqueeze.tracking import run as tracking_run
from twinsqueeze.utils.commands import own_command

QUICK = str(ROOT / "experiments" / "quick.yaml")
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


@pytest.mark.parametrize("command", ["main", "train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--alpha -1", "alpha must be a finite number of at least 0, not '-1'"),
        ("--dim 1", "dim must be a whole number of at least 2"),
        ("--batch_size -3", "batch_size must be"),  # as `mlflow run` spells it
        ("--seed 2147483648", "seed must be a whole number from 0 to 2147483647"),
        ("--architecture cnn", "architecture must be mlp or linear, not 'cnn'"),
        ("--loss l1", "loss must be mse"),
        ("--init teacher", "init must be random, or for a linear compressor pca or teacher, not"),
        (
            "--architecture linear --dim 30 --quantizer product",
            "quantizer must be none or sign, or product for a linear compressor whose dim is a multiple",
        ),
        ("--architecture linear --subvector-dim 6 --quantizer product", "quantizer must be none or"),
        ("--subvector-dim 0", "subvector_dim must be a whole number of at least 1, not '0'"),
        ("--unlabeled-sentences -1", "unlabeled_sentences must be a whole number from 0 to 24000, not '-1'"),
        ("--neighbor-temperature 0", "neighbor_temperature must be a finite number above 0"),
        ("--label-transform none", "label_transform must be tanh or linear"),
        ("--device gpu", "device must be auto, cpu or cuda"),
        ("--alhpa 1", "No such option '--alhpa'. (Did you mean one of: '--alpha',"),
        ("stray", "unexpected extra argument"),
        ("--score-max five", "'five' is not a valid float"),
        ("--columns score", "pass names such as sentence1=text1,sentence2=text2,score=label, not 'score'"),
        ("--columns text=a --dataset demo", "columns can rename sentence1, sentence2, score, not 'text'"),
    ],
)
def test_bad_values_of_a_training(workplace, command, arguments, message):
    assert message in refused(workplace.command(command, *arguments.split()))
    assert not made(workplace)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("main --dataset=", "Invalid value for '--dataset': it is empty"),
        ("main --dataset ./nowhere", "dataset './nowhere' not found: pass stsb"),
        ("main --dataset nobody/has-this", "cannot be loaded from the Hub"),
        ("main --dataset DATA --score-max nan", "score_max must be"),
        ("main --dataset DATA --encoder ./nowhere", "encoder './nowhere' not found: pass"),
        ("main --dataset DATA --encoder nobody/has-this", "encoder 'nobody/has-this' cannot be loaded"),
        ("main --dataset DATA --encoder DATA", "no sentence-transformers model"),
        ("evaluate", "Missing option '--model'"),
        ("evaluate --model nonsense", "model 'nonsense' not found: pass a run id"),
        ("evaluate --model DATA", "has 0 .safetensors files"),
        ("evaluate --model nonsense --split validation", "split must be one of train, dev, test"),
        ("evaluate --model nonsense --device tpu", "device must be"),
        ("ablation", "Missing option '--grid'"),
        ("ablation --grid absent.yaml", "grid 'absent.yaml' not found"),
        ("mian", "No such command 'mian'. Did you mean 'main'?"),
        ("best --recipe bst-16", "vectors-16, not 'bst-16' (did you mean 'best-16'?)"),
        ("main --dataset dmo", "folder with train, dev and test (did you mean 'demo'?)"),
        (
            "register --metric dev/f1",
            "metric must be one of auto, dev/mse, dev/mae, dev/pearson, dev/spearman, dev/ndcg_at_10, dev/",
        ),
        ("register --metric test/spearman", "test is never used for selection"),
        ("register --rollback perhaps", "'perhaps' is not a valid boolean"),
        ("export --model nonsense --output out --format gguf", "format must be one of folder, "),
        ("export --model nonsense --output out", "model 'nonsense' not found: pass a run id"),
        ("export --model DATA --output out", "has 0 .safetensors files"),
        ("export --model nonsense --output DATA", "is not empty: name another folder, or give"),
        ("export --model nonsense --output DATA --overwrite yes", "is not an earlier export"),
        ("export --model nonsense --output DATA/dev.csv", "is a file: name a folder"),
        ("export --model nonsense --output DATA/dev.csv/out", "dev.csv/out' can't be written to"),
    ],
)
def test_what_is_not_there_or_not_possible(workplace, pairs_folder, arguments, message):
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
        (
            "file:///nowhere/my%20runs",
            "no longer stores runs in folders",
            "to sqlite:////nowhere/my runs/mlflow.db, or",
        ),
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


def test_a_run_without_a_model(workplace):
    run = workplace.client.create_run("0")
    assert "has no model" in refused(workplace.command("evaluate", "--model", run.info.run_id))


def test_a_model_for_vectors_of_another_dimension(workplace, tiny_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_file({"0.weight": torch.rand(8, 100), "0.bias": torch.rand(8)}, folder / "weights.safetensors")
    evaluate = ["evaluate", "--model", str(folder)]
    assert "pass --dataset" in refused(workplace.command(*evaluate))
    assert not made(workplace)
    assert "compresses vectors of 100 dimensions" in refused(workplace.command(*evaluate, *tiny_options))
    (folder / "weights.safetensors").write_bytes(b"no tensors")
    assert "contains no compressor" in refused(workplace.command(*evaluate))
    assert made(workplace) == STORE
    assert workplace.runs() == []


def test_a_dataset_that_lacks_what_is_needed(workplace, tmp_path_factory):
    folder = write_pairs(tmp_path_factory.mktemp("data") / "pairs")
    (folder / "test.csv").write_text("sentence1,sentence2,score\na,b,3\nc,d,3\n")
    assert "all scores are 3" in refused(workplace.command("main", "--dataset", str(folder)))
    (folder / "test.csv").unlink()
    assert "lacks the split test" in refused(workplace.command("main", "--dataset", str(folder)))
    assert not made(workplace)


@pytest.mark.parametrize(("kind", "reason"), [("closed", "connection refused"), ("silent", "no answer in time")])
def test_a_tracking_server_that_does_not_answer(workplace, tiny_options, monkeypatch, kind, reason):
    timeouts, request_timeout = [], tracking_run.request_timeout

    def wait_a_second(seconds: int):
        timeouts.append(seconds)
        return request_timeout(1)

    monkeypatch.setattr(tracking_run, "request_timeout", wait_a_second)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"
        if kind == "closed":
            server.close()
        line = refused(workplace.command("main", *tiny_options, MLFLOW_TRACKING_URI=address))
    assert sum(timeouts) < 30  # seconds
    plain = address.replace("user:secret@", "")
    ending = f"the tracking server {plain} does not answer ({reason}): start it, or point MLFLOW_TRACKING_URI elsewhere"
    assert line == f"twinsqueeze: {ending}\n"
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


def test_a_bug_ends_the_run_as_failed(workplace, tiny_options, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("twinsqueeze.experiment.train_replicas", broken)
    with pytest.raises(RuntimeError):
        workplace.command("train", *tiny_options)
    (run,) = workplace.runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"] == "Failed: RuntimeError: out of luck"


def test_help_does_not_import_what_takes_seconds():
    program = """
import sys
from click.testing import CliRunner
from twinsqueeze.cli import cli
for command in ((), ("main",), ("train",), ("evaluate",), ("register",), ("export",), ("compress",)):
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
heavy = {"torch", "mlflow", "scipy", "pandas", "datasets", "matplotlib", "numpy"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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


def test_a_process_of_its_own_is_refused_in_one_line_too(workplace):
    done = workplace.process("main", "--alpha", "nan")
    assert refused(done) == "twinsqueeze: alpha must be a finite number of at least 0, not 'nan'\n"
    assert not made(workplace)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ([], False),
        (["--force"], True),
        (["--force", "true"], True),
        (["--force=false"], False),
        (["--force", "0"], False),
    ],
)
def test_a_switch_stands_alone_or_has_a_value(monkeypatch, given, value):
    """People type the first, `mlflow run` the second."""
    asked = []
    run_ablation = "twinsqueeze.commands.ablation.run_ablation"
    monkeypatch.setattr(run_ablation, lambda _grid, _recipes, options: asked.append(options.force))
    for arguments in ([*given, "--grid", QUICK], ["--grid", QUICK, *given]):
        cli.cli(["ablation", *arguments], standalone_mode=False)
    assert asked == [value, value]


@pytest.mark.parametrize(
    ("program", "is_of_project", "experiment", "expected"),
    [
        ("/usr/bin/twinsqueeze", False, "7", "twinsqueeze evaluate --model 'a b'"),
        ("/x/twinsqueeze/__main__.py", False, "7", "python -m twinsqueeze evaluate --model 'a b'"),
        ("x", True, "0", "mlflow run . --env-manager local -e evaluate -P 'model=a b'"),
        ("x", True, "7", "mlflow run . --env-manager local --experiment-id 7 -e evaluate -P 'model=a b'"),
    ],
)
def test_the_next_command_is_spelled_as_the_one_before(monkeypatch, program, is_of_project, experiment, expected):
    monkeypatch.setattr(sys, "argv", [program])
    run = SimpleNamespace(is_of_project=is_of_project, experiment_id=experiment)
    assert links.next_command(run, "evaluate", model="a b") == expected


def test_the_next_command_fits_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = SimpleNamespace(is_of_project=True, experiment_id="0")
    assert links.next_command(run, "compare") == f"mlflow run {ROOT} --env-manager local -e compare"
    monkeypatch.setattr(sys, "argv", ["/x/twinsqueeze/__main__.py"])
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if path != str(ROOT))])
    assert own_command("sync") == f"PYTHONPATH={ROOT} python -m twinsqueeze sync"
