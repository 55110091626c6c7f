"""Nothing is unpickled, no foreign code is run, files are what was registered, passwords stay where they were given."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from safetensors.numpy import save

from tests.helpers.commands import ROOT
from tests.helpers.forks import ForkedProcess
from tests.helpers.servers import mlflow_server
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.registry import model_loader, model_registry
from twinsqueeze.tracking import links
from twinsqueeze.tracking.model_files import log_compressor
from twinsqueeze.tracking.run import start_run
from twinsqueeze.utils.text import describe_error, redact_credentials

CHAMPION = "models:/twinsqueeze@champion"


@pytest.fixture(scope="module")
def lines_with() -> Callable[[str], list[str]]:
    """Returns a function that lists the lines of the project that match a pattern, except those of this file."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]  # what git has or would take
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [ROOT / name for name in names if name.endswith((".py", ".md", ".yaml", "MLproject", "run"))]
    texts = [path.read_text() for path in paths if path.is_file() and path != Path(__file__)]
    assert len(texts) > 100
    lines = [line for text in texts for line in text.splitlines()]
    return lambda pattern: [line for line in lines if re.search(pattern, line)]


def test_no_code_trusts_files(lines_with):
    """Imports that unpickle are errors of ruff (TID251)."""
    assert [line for line in lines_with(r"(trust_remote_code|allow_pickle)=(?!False)") if "np.save(" not in line] == []


def test_servers_that_are_started_listen_on_loopback(lines_with):
    """What is written down or bound here says nothing else than MLflow's defaults."""
    from mlflow.cli import server  # `mlflow ui` is another name of it
    from mlflow.models.cli import serve

    defaults = [option.default for command in (server, serve) for option in command.params if option.name == "host"]
    assert defaults == ["127.0.0.1"] * 2
    hosts = r"0\.0\.0\.0|--host[ =](?!127)|\[::\]|(create_|make_|HTTP|TCP)[sS]erver\(\(?\"(?!127\.0\.0\.1\")"
    assert lines_with(hosts) == []


@pytest.mark.parametrize(
    "attack", ["evil.Evil", "evil--evil.Evil", "sentence_transformers..evil.Evil", "os.path.join", "config", "pickle"]
)
def test_an_encoder_with_code_of_its_own_is_refused(tiny_encoder, tmp_path, monkeypatch, attack):
    """Code of a module, of the configuration or in pickled weights would leave a file when it is run."""
    folder, ran = tmp_path / "encoder", tmp_path / "ran"
    shutil.copytree(tiny_encoder, folder)
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))  # as where a command is run in that folder
    if attack == "pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"cbuiltins\nopen\n(V" + str(ran).encode() + b"\nVw\ntR.")
    elif attack == "config":
        classes = {"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}}
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | classes))
    else:
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["type"] = attack
        (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="cannot be loaded"):
        resolve_encoder(str(folder)).load()
    assert not ran.exists()
    assert "evil" not in sys.modules


@pytest.fixture
def store(create_store, tmp_path, use_store) -> mlflow.MlflowClient:
    """A store with a logged model that is version 1 of the registered one."""
    use_store(create_store(tmp_path))
    rng = np.random.default_rng(0)
    layer = {"0.weight": rng.normal(size=(4, 8)).astype(np.float32), "0.bias": np.zeros(4, np.float32)}
    with start_run("run", "train") as run:
        log_compressor(run, save(layer), np.ones((1, 8), np.float32), {})
    model_registry.promote(model_registry.add_version(run.model_id(), "", {}), None)
    return mlflow.MlflowClient()


def test_a_registered_model_whose_files_have_changed_is_refused(store):
    """One that was registered without digests is read as it is."""
    folder = Path(mlflow.artifacts.download_artifacts(store.get_model_version("twinsqueeze", "1").source))
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "registered_model_meta"]  # MLflow's
    assert folder / "artifacts" / "compressor.safetensors" in files

    def check_refused(change: str, *uris: str) -> None:
        for uri in uris or [CHAMPION]:
            with pytest.raises(InputError, match=f"does not match its recorded digests: {re.escape(change)}"):
                model_loader.resolve_model(uri)

    uris = [CHAMPION, "models:/twinsqueeze/1", "models:/twinsqueeze/latest"]
    for uri in [*uris, *uris]:  # also where MLflow has left a file of its own
        assert model_loader.resolve_model(uri).checkpoint.is_file()
    for file in files:
        name, whole = file.relative_to(folder).as_posix(), file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        check_refused(f"{name} has changed")
        file.write_bytes(whole)
    (folder / "more.json").write_text("{}")
    check_refused("more.json was added", *uris)
    (folder / "more.json").unlink()
    (folder / "requirements.txt").unlink()
    check_refused("requirements.txt is missing")
    store.delete_model_version_tag("twinsqueeze", "1", model_loader.DIGESTS_SHA256)
    assert model_loader.resolve_model(CHAMPION).checkpoint.is_file()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cret@host:5000/x", "http://host:5000/x"),
        ("no answer from https://s3cret@host: 401", "no answer from https://host: 401"),
        ("http://me:s3@cret@host/x", "http://host/x"),
        ("postgresql+psycopg2://me:s3/cret@host/db", "postgresql+psycopg2://host/db"),
        ("mssql://host/db?user=me&password=s3cret&x=1", "mssql://host/db?user=me&password=...&x=1"),
        ("https://host/?access_token=s3cret", "https://host/?access_token=..."),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("models:/twinsqueeze@champion", "models:/twinsqueeze@champion"),
        ("http://host:5000/#/models/a@b", "http://host:5000/#/models/a@b"),
    ],
)
def test_passwords_are_left_out_of_addresses(text, shown):
    assert redact_credentials(text) == shown


def test_an_error_is_described_on_one_line_without_credentials():
    assert describe_error(OSError("no answer\nfrom http://me:s3cret@host/x")) == "no answer from http://host/x"
    assert describe_error(TimeoutError()) == "TimeoutError"
    assert len(describe_error(ValueError("word " * 1000))) == 500


def test_a_traceback_has_no_password(workplace):
    program = """
from unittest.mock import Mock
from twinsqueeze import cli
cli.cli = Mock(side_effect=RuntimeError("http://me:s3cret@host/"))
cli.run()
"""
    with ForkedProcess(["-c", program], workplace.environment, workplace.folder) as process:
        _, errors = process.finish(1)
    assert "Traceback" in errors
    assert "RuntimeError: http://host/" in errors
    assert "s3cret" not in errors


def test_a_database_with_a_password_is_not_printed(store, monkeypatch):
    with start_run("run", "train") as run:
        monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://me:s3cret@host/db")
        shown = str(links.ui_steps(run))
    assert "s3cret" not in shown
    assert "$MLFLOW_TRACKING_URI" in shown


@pytest.mark.slow
def test_passwords_and_tokens_are_nowhere_in_store_and_output(workplace, small_training):
    """The address has a password, and the environment has tokens: all bytes are searched afterwards."""
    secrets = ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY")
    folder = workplace.folder / "server"
    with mlflow_server("sqlite:///mlflow.db", folder, workplace.environment, "--workers", "1") as address:
        variables = dict.fromkeys(secrets, "s3cret") | {"MLFLOW_TRACKING_URI": address.replace("127", "me:s3cret@127")}
        said = ""
        for arguments in (
            ["main", *small_training, "--epochs", "2"],
            ["main", *small_training, "--epochs", "50", "--lr", "1e30"],
            ["compare", "--output", "table"],
            ["register"],
            ["evaluate", "--model", CHAMPION],
            ["export", "--model", CHAMPION, "--output", "model"],
            ["evaluate", "--model", "0" * 32],
        ):
            with workplace.start(*arguments, **variables) as process:
                said += "".join(process.finish(2 if "1e30" in arguments or "0" * 32 in arguments else 0))
    assert f"{address}/#/experiments/0" in said
    assert "s3cret" not in said
    files = [path for path in workplace.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if b"s3cret" in path.read_bytes()] == []
