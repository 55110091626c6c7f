"""Nothing is unpickled, no foreign code is run, files are what was registered, passwords stay where they were given."""

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from safetensors.numpy import save

from tests.helpers.commands import ROOT
from tests.helpers.forks import ForkedProcess
from tests.helpers.servers import free_port, mlflow_server
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.registry import model_loader, model_registry
from twinsqueeze.tracking import links
from twinsqueeze.tracking.model_files import log_compressor
from twinsqueeze.tracking.run import start_run
from twinsqueeze.utils.text import describe_error, redact_credentials

# Of the project, what git has or would take.
LIST = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
FILES = subprocess.run(LIST, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
SOURCES = [path for path in FILES if path.endswith(".py") and (ROOT / path).is_file()]

UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}


def unsafe(source: str) -> list[str]:
    """Imports and arguments that let a file's bytes become code, as far as ruff's rules S do not know them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.partition(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            trusting = {"trust_remote_code"} if called.endswith(".save") else {"trust_remote_code", "allow_pickle"}
            found += [name for name in trusting if given.get(name, "False") != "False"]
            found += [called] if called == "torch.load" and given.get("weights_only") != "True" else []
    return found


def test_no_code_unpickles_or_trusts():
    assert len(SOURCES) > 60
    found = {path: names for path in SOURCES if (names := unsafe((ROOT / path).read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "SentenceTransformer(x, trust_remote_code=True)",
    ],
)
def test_the_check_sees_what_it_looks_for(source):
    assert unsafe(source)


def test_servers_that_are_started_listen_on_loopback():
    """What is written down or bound here says nothing else than MLflow's defaults."""
    from mlflow.cli import server  # `mlflow ui` is another name of it
    from mlflow.models.cli import serve

    defaults = [option.default for command in (server, serve) for option in command.params if option.name == "host"]
    assert defaults == ["127.0.0.1"] * 2
    everywhere = re.compile(r"0\.0\.0\.0|--host[ =](?!127)|\[::\]|Server\(\(\"\"")
    texts = [path for path in FILES if path.endswith((".py", ".md", ".yaml", "MLproject", "run"))]
    own = Path(__file__).relative_to(ROOT).as_posix()
    found = [path for path in texts if path != own and everywhere.search((ROOT / path).read_text())]
    assert found == []
    hosts = re.findall(r"[A-Za-z]Server\(\(\"([^\"]*)\"", "".join((ROOT / path).read_text() for path in SOURCES))
    assert set(hosts) <= {"127.0.0.1"}


@pytest.fixture
def hostile_encoder(tiny_encoder, tmp_path) -> Path:
    """An encoder's folder with a module of its own that leaves a file when it is imported."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    return folder


def replace_json(folder: Path, file: str, change) -> None:
    (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text()))))


def assert_not_loaded(encoder: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        resolve_encoder(str(encoder)).load()
    assert not (encoder.parent / "ran").exists()


@pytest.mark.parametrize(
    "reference", ["evil.Evil", "evil--evil.Evil", "sentence_transformers..evil.Evil", "os.path.join"]
)
def test_a_module_of_the_encoders_own_is_not_imported(hostile_encoder, monkeypatch, reference):
    monkeypatch.chdir(hostile_encoder)
    monkeypatch.syspath_prepend(str(hostile_encoder))  # as where a command is run in that folder
    replace_json(hostile_encoder, "modules.json", lambda modules: [{**modules[0], "type": reference}, *modules[1:]])
    assert_not_loaded(hostile_encoder)
    assert "evil" not in sys.modules


def test_a_model_class_of_the_encoders_own_is_not_imported(hostile_encoder):
    evil = {"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}}
    replace_json(hostile_encoder, "config.json", lambda config: config | evil)
    assert_not_loaded(hostile_encoder)


def test_weights_that_need_unpickling_are_not_loaded(hostile_encoder, tmp_path):
    """The bytes are those of a pickle that would leave a file: none of it runs."""
    (hostile_encoder / "model.safetensors").unlink()
    ran = str(tmp_path / "ran")
    (hostile_encoder / "pytorch_model.bin").write_bytes(b"cbuiltins\nopen\n(V" + ran.encode() + b"\nVw\ntR.")
    assert_not_loaded(hostile_encoder)


@pytest.fixture
def store(create_store, tmp_path, monkeypatch) -> mlflow.MlflowClient:
    """A store with a logged model that is version 1 of the registered one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", create_store(tmp_path))
    mlflow.set_tracking_uri(None)
    rng = np.random.default_rng(0)
    layer = {"0.weight": rng.normal(size=(4, 8)).astype(np.float32), "0.bias": np.zeros(4, np.float32)}
    with start_run("run", "train") as run:
        model = log_compressor(run, save(layer), np.ones((1, 8), np.float32), 4, {})
    model_registry.promote(model_registry.add_version(run.model_id(model), "", {}), None)
    return mlflow.MlflowClient()


CHAMPION = "models:/twinsqueeze@champion"


def files_of(store: mlflow.MlflowClient) -> tuple[Path, dict[str, str]]:
    """The registered model's folder, and its files' digests as they were recorded."""
    version = store.get_model_version("twinsqueeze", "1")
    located = mlflow.artifacts.download_artifacts(version.source)
    return Path(located), json.loads(version.tags["twinsqueeze.files_sha256"])


def test_a_registered_version_says_what_its_files_are(store):
    folder, recorded = files_of(store)
    assert recorded == {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "registered_model_meta"  # which MLflow leaves where it reads a version
    }
    assert "artifacts/compressor.safetensors" in recorded


def test_a_flipped_byte_of_a_registered_model_is_refused(store):
    uris = [CHAMPION, "models:/twinsqueeze/1", "models:/twinsqueeze/latest"]
    folder, recorded = files_of(store)
    for uri in [*uris, *uris]:  # also where MLflow has left a file of its own
        assert model_loader.resolve_model(uri).checkpoint.is_file()
    for name in recorded:
        whole = (folder / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        (folder / name).write_bytes(flipped)
        for uri in uris:
            with pytest.raises(InputError, match=f"does not match its recorded digests: {re.escape(name)} has changed"):
                model_loader.resolve_model(uri)
        (folder / name).write_bytes(whole)


def test_files_that_were_added_or_are_gone_are_seen(store):
    folder, _ = files_of(store)
    (folder / "more.json").write_text("{}")
    with pytest.raises(InputError, match=r"more\.json was added"):
        model_loader.resolve_model(CHAMPION)
    (folder / "more.json").unlink()
    (folder / "requirements.txt").unlink()
    with pytest.raises(InputError, match=r"requirements\.txt is missing"):
        model_loader.resolve_model(CHAMPION)


def test_versions_from_before_digests_are_read_as_they_are(store):
    folder, _ = files_of(store)
    (folder / "more.json").write_text("{}")
    store.delete_model_version_tag("twinsqueeze", "1", model_loader.FILES_SHA256)
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


SECRETS = {
    "HF_TOKEN": "hf_s3cretA",
    "MLFLOW_TRACKING_PASSWORD": "s3cretB",
    "MLFLOW_TRACKING_TOKEN": "s3cretC",
    "AWS_SECRET_ACCESS_KEY": "s3cretD",
}


def test_a_server_that_is_not_there_is_named_without_its_password(workplace):
    address = f"http://me:s3cret@127.0.0.1:{free_port()}"
    for command in (["compare"], ["register"], ["export", "--model", "0" * 32, "--output", "x"]):
        done = workplace.command(*command, MLFLOW_TRACKING_URI=address)
        assert done.returncode == 2
        assert "127.0.0.1" in done.stderr
        assert "s3cret" not in done.stdout + done.stderr


def test_a_traceback_has_no_password(workplace):
    program = """
from twinsqueeze import cli
def fail(**_):
    raise RuntimeError("http://me:s3cret@host/")
cli.cli = fail
cli.run()
"""
    with ForkedProcess(["-c", program], workplace.environment, workplace.folder) as process:
        _, errors = process.communicate()
    assert process.returncode == 1
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
def test_passwords_and_tokens_are_nowhere_in_store_and_output(workplace, pairs_folder, tiny_encoder):
    """The address has a password, and the environment has tokens: all bytes are searched afterwards."""
    options = ["--dataset", str(pairs_folder), "--encoder", str(tiny_encoder), "--dim", "8", "--device", "cpu"]
    folder = workplace.folder / "server"
    with mlflow_server("sqlite:///mlflow.db", folder, workplace.environment, "--workers", "1") as address:
        variables = SECRETS | {"MLFLOW_TRACKING_URI": address.replace("127", "me:s3cret@127")}
        said = ""
        for arguments in (
            ["main", *options, "--epochs", "2"],
            ["main", *options, "--epochs", "50", "--lr", "1e30"],
            ["compare", "--output", "table"],
            ["register"],
            ["evaluate", "--model", CHAMPION],
            ["export", "--model", CHAMPION, "--output", "model"],
            ["evaluate", "--model", "0" * 32],
        ):
            done = workplace.process(*arguments, **variables)
            assert done.returncode == (2 if "1e30" in arguments or "0" * 32 in arguments else 0), done.stderr
            said += done.stdout + done.stderr
    assert f"{address}/#/experiments/0" in said
    assert "s3cret" not in said
    files = [path for path in workplace.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if b"s3cret" in path.read_bytes()] == []
