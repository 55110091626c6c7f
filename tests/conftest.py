"""What tests share: a small set of pairs as vectors, and the real STS-B where it is there."""

import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

# Before anything imports what reads them: no network, nothing unpickled, no cache and no unfinished work of the user's.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["TWINSQUEEZE_STATE"] = tempfile.mkdtemp(prefix="twinsqueeze-tests-")
os.environ["TWINSQUEEZE_CACHE"] = os.environ["TWINSQUEEZE_STATE"] + "/cache"
# Two workers share the cores: threads that wait for each other sleep and leave the core to the other's work.
os.environ["OMP_WAIT_POLICY"] = "passive"
if (
    sys.platform == "darwin"
):  # what aborts a forked process: Objective-C classes, and the proxies in the system's settings
    os.environ |= {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES", "no_proxy": "*"}

import mlflow

from tests.helpers import shortcuts
from tests.helpers.commands import Workplace
from tests.helpers.forks import FORKS
from tests.helpers.pairs import random_pairs, write_pairs
from twinsqueeze.data.dataset import EncodedSplit
from twinsqueeze.data.embedding import embed_splits
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.utils import worker_pool
from twinsqueeze.utils.disk_cache import DiskCache


def pytest_configure() -> None:
    """Where tests run in the background, a shell has them ignore Ctrl-C, as would the commands that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that all workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["TWINSQUEEZE_STATE"], ignore_errors=True)


@pytest.fixture(scope="session")
def small_train() -> EncodedSplit:
    """150 pairs: 4 full batches of 32 and a last one of 22."""
    return random_pairs(pairs=150, sentences=120, dimension=24, seed=1)


@pytest.fixture(scope="session")
def small_dev() -> EncodedSplit:
    return random_pairs(pairs=60, sentences=70, dimension=24, seed=2)


@pytest.fixture(scope="session")
def stsb_folder() -> Path:
    """The real STS-B."""
    if "TWINSQUEEZE_STSB" not in os.environ:
        pytest.skip("needs TWINSQUEEZE_STSB, the folder with STS-B's train.csv, dev.csv and test.csv")
    return Path(os.environ["TWINSQUEEZE_STSB"]).resolve()


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Returns a function that fills a folder once for all workers; tests only read what is in it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            folder, done = root / name, root / f"{name}.done"
            if not done.exists():
                fill(folder)
                done.touch()
            return folder

    return make


@pytest.fixture(scope="session")
def fast_stores(make_once) -> Iterator[None]:
    """New SQLite stores in this process take no second."""
    with pytest.MonkeyPatch.context() as patch:
        shortcuts.copy_tables(patch, make_once)
        yield


@pytest.fixture(scope="session")
def shared_cache(make_once, fast_stores) -> Path:
    """One cache of embeddings for all commands that the tests start."""
    return make_once("cache", Path.mkdir)


@pytest.fixture(scope="session")
def pairs_folder(make_once) -> Path:
    """Small train, dev and test files."""
    return make_once("sentences", write_pairs)


@pytest.fixture(scope="session")
def tiny_encoder(make_once) -> Path:
    """The folder of an encoder of 64 numbers that encodes in milliseconds."""

    def make(folder: Path) -> None:
        from tests.helpers.tiny_encoder import make_tiny_encoder  # imports sentence-transformers

        make_tiny_encoder(folder)

    return make_once("tiny-encoder", make)


@pytest.fixture(scope="session")
def tiny_options(make_once, pairs_folder, tiny_encoder, shared_cache) -> list[str]:
    """Options of a training that takes a fraction of a second; its sentences are in the cache."""

    def encode(_: Path) -> None:
        embed_splits(load_pairs(str(pairs_folder)).splits, resolve_encoder(str(tiny_encoder)), DiskCache(shared_cache))

    make_once("encoded", encode)
    return ["--dataset", str(pairs_folder), "--encoder", str(tiny_encoder), "--device", "cpu"]


@pytest.fixture(scope="session")
def small_training(tiny_options) -> list[str]:
    """The same options, to 8 dimensions."""
    return [*tiny_options, "--dim", "8"]


@pytest.fixture(scope="session")
def trained_place(make_once, shared_cache, tiny_encoder) -> Workplace:
    """A tracking store, to be read only: 2 alphas with 2 seeds trained, compared, and the best one registered."""

    def train(folder: Path) -> None:
        place = Workplace(folder, shared_cache)
        data = write_pairs(folder / "sentences", train=200, dev=150, test=24)
        grid = {"dataset": str(data), "encoder": str(tiny_encoder), "device": "cpu", "dim": 8, "epochs": 3}
        (folder / "grid.yaml").write_text(json.dumps(grid | {"alpha": [0, 0.75], "seed": [0, 1]}))
        for command in (["ablation", "--grid", "grid.yaml"], ["compare"], ["register"]):
            place.run(*command)

    return Workplace(make_once("trained", train), shared_cache)


@pytest.fixture(scope="session")
def create_store(fast_stores) -> Callable[[Path], str]:
    """Returns a function that creates an empty store in a folder, where its artifacts will be as well."""

    def create(folder: Path) -> str:
        uri = f"sqlite:///{folder}/mlflow.db"
        mlflow.MlflowClient(uri).search_experiments()
        with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
            database.execute("UPDATE experiments SET artifact_location = ?", [f"{folder}/mlruns/0"])
        return uri

    return create


@pytest.fixture
def use_store(monkeypatch) -> Callable[[str], None]:
    """Returns a function that makes a store the current one of this process."""

    def use(uri: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(None)

    return use


@pytest.fixture
def workplace(tmp_path: Path, shared_cache: Path) -> Workplace:
    """An empty folder with a tracking store of its own."""
    return Workplace(tmp_path, shared_cache)


@pytest.fixture
def forked_workers(monkeypatch) -> None:
    """Worker pools in this process fork their workers, which saves the seconds of the imports."""
    monkeypatch.setattr(worker_pool.multiprocessing, "get_context", lambda _: FORKS)
