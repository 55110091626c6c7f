"""What users type wrongly: one line on standard error, exit code 2, nothing made."""

import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Collection
from importlib.metadata import EntryPoint

import pytest

from tests.helpers.commands import ROOT
from tests.helpers.pairs import write_pairs
from twinsqueeze import cli
from twinsqueeze.tracking import links

QUICK = str(ROOT / "experiments" / "quick.yaml")


# Opened before anything is encoded, so that nothing is encoded in vain; an encoder says later how long its vectors are.
STORE = {"mlflow.db", "mlflow.db.lock"}


def refused(outcome: tuple[int, str, str], workplace, made: Collection[str] = ()) -> str:
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("twinsqueeze: ")
    assert err.count("\n") == 1
    assert {path.name for path in workplace.folder.iterdir()} == set(made)
    if made:
        assert workplace.runs() == []
    return err


@pytest.mark.parametrize("command", ["main", "train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "-1"], "alpha must be a finite number of at least 0, not '-1'"),
        (["--alpha", "nan"], "alpha must be"),
        (["--alpha", "inf"], "alpha must be"),
        (["--alpha", "much"], "alpha must be"),
        (["--dim", "1"], "dim must be a whole number of at least 2"),
        (["--epochs", "0"], "epochs must be"),
        (["--batch-size", "-3"], "batch_size must be"),
        (["--batch_size", "-3"], "batch_size must be"),  # as `mlflow run` spells it
        (["--lr", "0"], "lr must be"),
        (["--seed", "2147483648"], "seed must be a whole number from 0 to 2147483647"),
        (["--architecture", "cnn"], "architecture must be mlp, linear or residual, not 'cnn'"),
        (["--loss", "l1"], "loss must be mse"),
        (["--init", "teacher"], "init must be random, or for a linear or residual compressor pca or teacher, not"),
        (
            ["--architecture", "linear", "--dim", "30", "--quantizer", "product"],
            "quantizer must be none or sign, or product for a linear or residual compressor whose dim is a multiple",
        ),
        (["--architecture", "linear", "--subvector-dim", "6", "--quantizer", "product"], "quantizer must be none or"),
        (["--subvector-dim", "0"], "subvector_dim must be a whole number of at least 1, not '0'"),
        (["--synthetic-sentences", "-1"], "synthetic_sentences must be a whole number from 0 to 100000, not '-1'"),
        (["--neighbor-temperature", "0"], "neighbor_temperature must be a finite number above 0"),
        (["--label-transform", "none"], "label_transform must be tanh or linear"),
        (["--device", "gpu"], "device must be auto, cpu or cuda"),
        (["--alhpa", "1"], "No such option '--alhpa'"),  # with click's suggestion behind it
        (["stray"], "unexpected extra argument"),
        (["--score-max", "five"], "'five' is not a valid float"),
    ],
)
def test_bad_values_of_a_training(run_here, workplace, command, arguments, message):
    assert message in refused(run_here(command, *arguments), workplace)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["main", "--dataset", "./nowhere"], "dataset './nowhere' not found: pass stsb"),
        (["main", "--dataset", "nobody/has-this"], "cannot be loaded from the Hub"),
        (["main", "--dataset", "DATA", "--score-max", "nan"], "score_max must be"),
        (["main", "--dataset", "DATA", "--encoder", "./nowhere"], "encoder './nowhere' not found: pass"),
        (["main", "--dataset", "DATA", "--encoder", "nobody/has-this"], "encoder 'nobody/has-this' cannot be loaded"),
        (["main", "--dataset", "DATA", "--encoder", "DATA"], "no sentence-transformers model"),
        (["main", "--dataset", "DATA", "--dim", "385"], "dim must be at most 384, "),
        (["evaluate"], "Missing option '--model'"),
        (["evaluate", "--model", "nonsense"], "model 'nonsense' not found: pass a run id"),
        (["evaluate", "--model", "DATA"], "has 0 .safetensors files"),
        (["evaluate", "--model", "nonsense", "--split", "validation"], "split must be one of train, dev, test"),
        (["evaluate", "--model", "nonsense", "--device", "tpu"], "device must be"),
        (["compare-me"], "No such command 'compare-me'"),
    ],
)
def test_what_is_not_there(run_here, workplace, pairs_folder, arguments, message):
    arguments = [str(pairs_folder) if argument == "DATA" else argument for argument in arguments]
    made = STORE if "385" in arguments else ()
    assert message in refused(run_here(*arguments), workplace, made)


@pytest.mark.parametrize("model", ["0" * 32, "models:/nothing@champion", f"runs:/{'0' * 32}/compressor"])
def test_a_model_that_the_store_does_not_have(run_here, model):
    code, out, err = run_here("evaluate", "--model", model)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert model in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["register", "--metric", "dev/f1"], "metric must be one of dev/mse, dev/mae, dev/pearson, dev/spearman, not"),
        (["register", "--metric", "test/spearman"], "test is never used for selection"),
        (["register", "--rollback", "perhaps"], "'perhaps' is not a valid boolean"),
        (["export", "--model", "nonsense", "--output", "out", "--format", "gguf"], "format must be one of folder, "),
        (["export", "--model", "nonsense", "--output", "out"], "model 'nonsense' not found: pass a run id"),
        (["export", "--model", "DATA", "--output", "out"], "has 0 .safetensors files"),
        (["export", "--model", "nonsense", "--output", "DATA"], "is not empty: name another folder, or give"),
        (["export", "--model", "nonsense", "--output", "DATA", "--overwrite", "yes"], "is not an earlier export"),
        (["export", "--model", "nonsense", "--output", "DATA/dev.csv"], "is a file: name a folder"),
        (["export", "--model", "nonsense", "--output", "DATA/dev.csv/out"], "dev.csv/out' can't be written to"),
    ],
)
def test_what_can_be_neither_registered_nor_exported(run_here, workplace, pairs_folder, arguments, message):
    arguments = [argument.replace("DATA", str(pairs_folder)) for argument in arguments]
    before = sorted(pairs_folder.iterdir())
    assert message in refused(run_here(*arguments), workplace)
    assert sorted(pairs_folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["register"], "no finished training run in the experiment"),
        (["register", "--experiment", "nowhere"], "experiment 'nowhere' not found"),
        (["register", "--rollback", "true"], "registered model 'twinsqueeze' not found"),
    ],
)
def test_nothing_to_register(run_here, arguments, message):
    code, out, err = run_here(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://user:secret@127.0.0.1:9", "the model registry http://127.0.0.1:9 does not answer"),
        ("nowhere://registry", "the model registry nowhere://registry can't be used"),
        ("sqlite:////proc/none/mlflow.db", "the model registry sqlite:////proc/none/mlflow.db can't be used"),
    ],
)
def test_a_registry_that_is_not_there(run_here, monkeypatch, uri, message):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    for arguments in (["register"], ["register", "--rollback", "true"]):
        code, out, err = run_here(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
        assert "secret" not in err


def test_a_run_without_a_model(run_here, workplace):
    run = workplace.client.create_run("0")
    code, _, err = run_here("evaluate", "--model", run.info.run_id)
    assert (code, err.count("\n")) == (2, 1)
    assert "has no model" in err


def test_a_model_for_vectors_of_another_dimension(run_here, workplace, pairs_folder, tmp_path_factory):
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("model")
    save_file({"0.weight": torch.rand(8, 100), "0.bias": torch.rand(8)}, folder / "weights.safetensors")
    line = refused(run_here("evaluate", "--model", str(folder)), workplace)
    assert "pass --dataset" in line
    line = refused(run_here("evaluate", "--model", str(folder), "--dataset", str(pairs_folder)), workplace, STORE)
    assert "compresses vectors of 100 dimensions" in line
    (folder / "weights.safetensors").write_bytes(b"no tensors")
    assert "contains no compressor" in refused(run_here("evaluate", "--model", str(folder)), workplace, STORE)


def test_a_dataset_that_lacks_what_is_needed(run_here, workplace, tmp_path_factory):
    folder = write_pairs(tmp_path_factory.mktemp("data") / "pairs")
    (folder / "test.csv").write_text("sentence1,sentence2,score\na,b,3\nc,d,3\n")
    assert "all scores are 3" in refused(run_here("main", "--dataset", str(folder)), workplace)
    (folder / "test.csv").unlink()
    assert "lacks the split test" in refused(run_here("main", "--dataset", str(folder)), workplace)


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_tracking_server_that_does_not_answer(run_here, workplace, pairs_folder, monkeypatch, kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"
        if kind == "closed":
            server.close()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        start = time.monotonic()
        line = refused(run_here("main", "--dataset", str(pairs_folder)), workplace)
    assert time.monotonic() - start < 30  # the promise; it takes 2 and 21
    assert "does not answer" in line
    assert "secret" not in line


def test_a_run_of_mlflow_run_ends_with_the_line_as_its_description(run_here, workplace, monkeypatch):
    run = workplace.client.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    code, _, err = run_here("main", "--alpha", "-1")
    assert code == 2
    ended = workplace.client.get_run(run.info.run_id)
    assert ended.info.status == "FAILED"
    assert ended.data.tags["mlflow.note.content"] == f"Failed: {err.removeprefix('twinsqueeze: ').strip()}"


def test_a_training_that_diverges_is_failed_and_says_why(run_here, workplace, pairs_folder):
    code, _, err = run_here("train", "--dataset", str(pairs_folder), "--lr", "1e30", "--epochs", "50")
    assert code == 2
    assert "lower lr" in err.splitlines()[-1]
    (run,) = workplace.runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"].startswith("Failed: the training diverged")


def test_a_fault_of_ours_is_failed_too(run_here, workplace, pairs_folder, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("twinsqueeze.experiment.train_replicas", broken)
    with pytest.raises(RuntimeError):
        run_here("train", "--dataset", str(pairs_folder))
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


def test_the_installed_command_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (name,) = project["scripts"]
    command = EntryPoint(name, project["scripts"][name], "console_scripts").load()
    assert (name, command) == ("twinsqueeze", cli.run)


def test_a_process_says_it_in_one_line_too(workplace):
    done = workplace.command("main", "--alpha", "nan")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "twinsqueeze: alpha must be a finite number of at least 0, not 'nan'\n"
    assert list(workplace.folder.iterdir()) == []


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
    monkeypatch.setattr("twinsqueeze.commands.ablation.run_ablation", lambda *_, force, **__: asked.append(force))
    for arguments in ([*given, "--grid", QUICK], ["--grid", QUICK, *given]):
        cli.cli(["ablation", *arguments], standalone_mode=False)
    assert asked == [value, value]


def test_the_next_commands_stay_in_the_runs_experiment(workplace):
    elsewhere = workplace.client.create_experiment("elsewhere")
    default, other = (workplace.client.create_run(experiment).info for experiment in ("0", elsewhere))
    assert links.mlflow_run_command(default, "register") == "mlflow run . --env-manager local -e register"
    command = links.mlflow_run_command(other, "evaluate", model="x")
    assert command == f"mlflow run . --env-manager local --experiment-id {elsewhere} -e evaluate -P model=x"
