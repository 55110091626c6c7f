"""Disks that are full or read-only, files that are not what was written: an error or a repair, and no wrong number."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.commands import Workplace
from tests.helpers.disks import on_a_disk, stopped_by_a_disk
from twinsqueeze import errors
from twinsqueeze.errors import InputError
from twinsqueeze.registry import model_loader
from twinsqueeze.reporting import run_loader


@pytest.fixture(scope="module")
def place(trained_place, tmp_path_factory) -> Workplace:
    """A copy of a workplace with trained models, whose files the tests may damage."""
    return trained_place.copy_to(tmp_path_factory.mktemp("copy"), artifacts=True)


@pytest.fixture
def run_id(place, use_store) -> str:
    """A training run, whose store is the current one."""
    use_store(place.uri)
    return place.runs("train")[0].info.run_id


@pytest.fixture
def names(place, run_id) -> list[str]:
    """The names of the run's model."""
    model = place.client.get_logged_model(place.client.get_run(run_id).outputs.model_outputs[0].model_id)
    return [run_id, f"runs:/{run_id}/{model.name}", f"models:/{model.model_id}"]


def flip_bits(path: Path, places: int) -> Iterator[int]:
    """Flips a bit at places spread over a file, one at a time, and restores the file; yields the numbers from 0."""
    whole = path.read_bytes()
    for i in range(places):
        changed = bytearray(whole)
        changed[i * (len(whole) - 1) // (places - 1)] ^= 1 << i % 8
        path.write_bytes(changed)
        yield i
    path.write_bytes(whole)


def test_a_flipped_bit_of_a_runs_model_is_refused(names):
    """In the header, which has the recipe and the ranges of int8, and in the weights."""
    found = [model_loader.resolve_model(name) for name in names]
    assert {(model.run_id, f"models:/{model.model_id}") for model in found} == {(names[0], names[2])}
    (file,) = {model.checkpoint for model in found}
    for i in flip_bits(file, 9):
        with pytest.raises(InputError, match=r"compressor\.safetensors has changed"):
            model_loader.resolve_model(names[i % len(names)])
    assert model_loader.resolve_model(names[0]).checkpoint == file


def test_a_flipped_bit_of_a_models_description_changes_no_run(names):
    """MLmodel has no digest: the model is refused or belongs to the run that trained it."""
    description = model_loader.resolve_model(names[0]).checkpoint.parents[1] / "MLmodel"
    for i in flip_bits(description, 12):
        try:
            found = model_loader.resolve_model(names[i % len(names)])
        except InputError:
            continue
        assert (found.run_id, f"models:/{found.model_id}") == (names[0], names[2])


def test_a_flipped_bit_of_a_runs_table_is_refused_or_noted_in_a_comparison(place, run_id):
    artifacts = Path(place.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    for name, read in (
        ("predictions.json", run_loader.read_predictions),
        ("train_pair_losses.parquet", run_loader.read_train_losses),
    ):
        assert len(read(run_id))
        for _ in flip_bits(artifacts / name, 4):
            with pytest.raises(InputError, match=r"is not what was recorded: .* has changed"):
                read(run_id)
    runs = [run for run in run_loader.load_runs("0")[0] if run.run_id == run_id]
    (whole,), notes = run_loader.load_tables(runs)
    assert whole.baselines
    assert not notes
    for _ in flip_bits(artifacts / "baselines.json", 2):
        (table,), notes = run_loader.load_tables(runs)
        assert not table.baselines
        assert "baselines.json has changed" in notes[0]


def test_errors_of_disks_and_databases_are_described_and_others_keep_their_traceback():
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(sqlite3.Error) as full:
            database.execute("INSERT INTO t VALUES (zeroblob(100000))")
    for cause, shown in (
        (OSError(28, "No space left on device", "/disk/x"), "No space left on device: /disk/x"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (full.value, "the database can't be used: database or disk is full"),
        (ValueError("I/O error: Read-only file system (os error 30)"), "Read-only file system"),  # of safetensors
    ):
        error = RuntimeError("the file is not written")
        error.__cause__ = cause
        assert errors.describe_storage_error(error) == shown
    assert errors.describe_storage_error(ValueError("the disk is fine")) is None
    assert errors.describe_storage_error(FileNotFoundError(2, "No such file")) is None
    looped = ValueError("a")
    looped.__cause__ = looped
    assert errors.describe_storage_error(looped) is None


@pytest.mark.slow
def test_artifacts_that_cannot_be_written_stay_in_a_record_for_sync(workplace, create_store, small_training):
    """Nor can the cache be written, which fails no run. The folder has room when `sync` runs: no disk is there then."""
    create_store(workplace.folder)
    folder = workplace.folder / "mlruns"
    disk = {"size": "8k", "TWINSQUEEZE_CACHE": str(folder / "cache"), "TWINSQUEEZE_FLUSH_TIMEOUT": "3"}
    printed, left = stopped_by_a_disk(workplace, folder, "main", "--epochs", "2", *small_training, **disk)
    assert "the cache can't be written, so the next run computes the result again" in printed
    assert not [name for name in left if name.endswith(".part")]
    assert "`python -m twinsqueeze sync` sends" in printed.splitlines()[-1]
    workplace.run("sync")
    (run,) = workplace.runs()
    assert run.info.status == "FINISHED"
    assert workplace.download(run.info.run_id, "figures/loss_curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_fresh_store_that_cannot_be_made_leaves_nothing(workplace, small_training):
    folder = workplace.folder / "store"
    uri = f"sqlite:///{folder}/mlflow.db"
    printed, left = stopped_by_a_disk(workplace, folder, "main", *small_training, size="300k", MLFLOW_TRACKING_URI=uri)
    assert "can't be used" in printed.splitlines()[-1]
    assert set(left) <= {"mlflow.db.lock"}


@pytest.fixture
def disk_with_store(place, tmp_path) -> dict[str, str | Path]:
    """A disk with a copy of the trained store, which is the tracking store."""
    return {"source": place.folder / "mlflow.db", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/store/mlflow.db"}


@pytest.mark.slow
def test_a_store_whose_disk_fills_up_in_mid_run_stops_it(workplace, disk_with_store, small_training):
    size = f"{disk_with_store['source'].stat().st_size // 1024 + 60}k"
    disk = disk_with_store | {"size": size, "TWINSQUEEZE_FLUSH_TIMEOUT": "3"}
    stopped_by_a_disk(workplace, workplace.folder / "store", "main", "--epochs", "1000", *small_training, **disk)


@pytest.mark.slow
def test_a_store_that_is_read_only_is_read_and_not_written(workplace, run_id, disk_with_store):
    disk = disk_with_store | {"size": "20m", "options": "ro"}
    export = ["export", "--model", run_id, "--output", "model", "--format", "safetensors"]
    code, printed, _ = on_a_disk(workplace, workplace.folder / "store", *export, **disk)
    assert code == 0, printed
    assert (workplace.folder / "model" / "compressor.safetensors").is_file()
    stopped_by_a_disk(workplace, workplace.folder / "store", "compare", reason="readonly database", **disk)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "size"),
    [("compare --output {disk}/new/tables", "150k"), ("export --model {run_id} --output {disk}/new/model", "300k")],
)
def test_outputs_appear_whole_or_not_at_all(place, run_id, command, size):
    """Tables, figures and a report, or a model, only a part of which fits on the disk."""
    folder = place.folder / "small"
    arguments = command.format(disk=folder, run_id=run_id).split()
    assert stopped_by_a_disk(place, folder, *arguments, size=size)[1] == []
