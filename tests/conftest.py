"""What tests share: a small set of pairs as vectors, and the real STS-B where it is there."""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

# Before anything imports what reads them: no network, nothing unpickled, no cache and no unfinished work of the user's.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["TWINSQUEEZE_STATE"] = tempfile.mkdtemp(prefix="twinsqueeze-state-")
# Two workers share the cores: threads that wait for each other sleep and leave the core to the other's work.
os.environ["OMP_WAIT_POLICY"] = "passive"

from tests.helpers.commands import Workplace
from tests.helpers.pairs import random_pairs, write_pairs
from twinsqueeze import cli
from twinsqueeze.data.encoder import EncodedPairs


def pytest_configure() -> None:
    """Where tests run in the background, a shell has them ignore Ctrl-C, as would the commands that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["TWINSQUEEZE_STATE"], ignore_errors=True)


@pytest.fixture(scope="session")
def small_train() -> EncodedPairs:
    """150 pairs: 4 full batches of 32 and a last one of 22."""
    return random_pairs(pairs=150, sentences=120, dimension=24, seed=1)


@pytest.fixture(scope="session")
def small_dev() -> EncodedPairs:
    return random_pairs(pairs=60, sentences=70, dimension=24, seed=2)


@pytest.fixture(scope="session")
def stsb_folder() -> Path:
    """The real STS-B, for tests with the marker `stsb`."""
    folder = os.environ.get("TWINSQUEEZE_STSB")
    assert folder, "tests marked stsb need TWINSQUEEZE_STSB, the folder with STS-B's train.csv, dev.csv and test.csv"
    return Path(folder).resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("TWINSQUEEZE_STSB"):
        absent = pytest.mark.skip(reason="STS-B is not here: set TWINSQUEEZE_STSB to its folder")
        for item in items:
            if item.get_closest_marker("stsb"):
                item.add_marker(absent)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of embeddings for all commands that the tests start."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small train, dev and test files."""
    return write_pairs(tmp_path_factory.mktemp("data") / "sentences")


@pytest.fixture
def workplace(tmp_path: Path, shared_cache: Path) -> Workplace:
    """An empty folder with a tracking store of its own."""
    return Workplace(tmp_path, shared_cache)


@pytest.fixture
def run_here(workplace, monkeypatch, capsys):
    """Runs the command line in this process, which saves the seconds of the imports; gives exit code and output."""
    for name, value in workplace.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setattr(cli.signals, "raise_on_signals", lambda: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["twinsqueeze", *arguments])
        code: object = 0
        try:
            cli.run()
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return run
