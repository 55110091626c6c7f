"""Disks that are full or read-only, files that are not what was written: an error or a repair, and no wrong number."""

import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from tests.helpers.commands import Workplace
from tests.helpers.disks import on_a_disk
from twinsqueeze import errors
from twinsqueeze.errors import InputError
from twinsqueeze.registry import model_loader
from twinsqueeze.reporting import run_loader

MAIN = ["main", "--epochs", "2", "--dim", "8", "--device", "cpu", "--dataset"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache, pairs_folder) -> Workplace:
    """Where a run is finished."""
    place = Workplace(tmp_path_factory.mktemp("work"), shared_cache)
    done = place.command(*MAIN, str(pairs_folder))
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def run_id(place, monkeypatch) -> str:
    """Of that run, with its store as this process's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    mlflow.set_tracking_uri(None)
    return place.runs()[-1].info.run_id


def flips(path: Path, places: int):
    """Flips a bit at places spread over a file, one at a time, and mends it again."""
    whole = path.read_bytes()
    for i in range(places):
        place = i * (len(whole) - 1) // (places - 1)
        changed = bytearray(whole)
        changed[place] ^= 1 << i % 8
        path.write_bytes(changed)
        yield place
    path.write_bytes(whole)


def artifact(place: Workplace, run_id: str, name: str) -> Path:
    """The file itself, where MLflow keeps it."""
    return Path(place.client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / name


def names_of(place: Workplace, run_id: str) -> list[str]:
    """All that a run's model may be called."""
    model_id = place.client.get_run(run_id).outputs.model_outputs[0].model_id
    return [run_id, f"runs:/{run_id}/compressor", f"models:/{model_id}"]


def test_a_flipped_bit_of_a_runs_model_is_refused(place, run_id):
    """In the header with what it was trained on and its ranges for int8, and in the weights."""
    names = names_of(place, run_id)
    files = {model_loader.resolve_model(name).checkpoint for name in names}
    (file,) = files
    assert {(model_loader.resolve_model(name).run_id, model_loader.resolve_model(name).model_id) for name in names} == {
        (run_id, names[2].removeprefix("models:/"))
    }
    for i, _ in enumerate(flips(file, 30)):
        with pytest.raises(InputError, match=r"compressor\.safetensors has changed"):
            model_loader.resolve_model(names[i % len(names)])
    assert model_loader.resolve_model(run_id).checkpoint == file


def test_a_flipped_bit_of_a_models_description_changes_no_run(place, run_id):
    """MLmodel has no digest: whatever becomes of it, the model is refused or belongs to the run that trained it."""
    names = names_of(place, run_id)
    description = model_loader.resolve_model(run_id).checkpoint.parents[1] / "MLmodel"
    for i, _ in enumerate(flips(description, 60)):
        try:
            found = model_loader.resolve_model(names[i % len(names)])
        except InputError:
            continue
        assert (found.run_id, found.model_id) == (run_id, names[2].removeprefix("models:/"))


@pytest.mark.parametrize("name", ["predictions.json", "baselines.json", "train_pair_losses.parquet"])
def test_a_flipped_bit_of_a_runs_table_is_seen(place, run_id, name):
    readers = {
        "predictions.json": lambda: run_loader.read_predictions(run_id),
        "baselines.json": lambda: run_loader._read_table(run_id, name),
        "train_pair_losses.parquet": lambda: run_loader.read_train_losses(run_id),
    }
    assert len(readers[name]())
    file = artifact(place, run_id, name)
    for _ in flips(file, 20):
        with pytest.raises(InputError, match=r"is not what was recorded: .* has changed"):
            readers[name]()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not what was recorded"):
        readers[name]()
    file.write_bytes(whole)


def test_a_damaged_table_is_left_out_of_a_comparison_and_said(place, run_id):
    ((run,), _) = run_loader.load_runs("0")
    (whole,), notes = run_loader.load_tables([run])
    assert whole.baselines
    assert not notes
    for _ in flips(artifact(place, run_id, "baselines.json"), 2):
        (table,), notes = run_loader.load_tables([run])
        assert not table.baselines
        assert "baselines.json has changed" in notes[0]


def test_a_damaged_cache_is_repaired(place, run_here, tmp_path, pairs_folder, monkeypatch):
    """Every file of it: vectors and baselines are made again, and are what they were."""
    cache = tmp_path / "cache"
    shutil.copytree(place.cache, cache)
    monkeypatch.setenv("TWINSQUEEZE_CACHE", str(cache))
    files = {path: path.read_bytes() for path in cache.iterdir()}
    assert len(files) >= 3
    for i, (path, content) in enumerate(files.items()):
        path.write_bytes(content[:-7] if i % 2 else content[:99] + bytes([content[99] ^ 4]) + content[100:])
    code, _, err = run_here(*MAIN, str(pairs_folder))
    assert code == 0, err
    assert "a cached file is damaged, so the result is computed again" in err
    again, first = Workplace(tmp_path, cache).runs()[0], place.runs()[-1]
    same = {name: value for name, value in first.data.metrics.items() if not name.startswith("system/")}
    assert again.data.metrics == same
    read = [path for path, content in files.items() if path.read_bytes() == content]
    assert len(read) >= 3  # those of these pairs; the rest are other tests'


def test_what_is_no_trouble_of_a_disk_keeps_its_traceback():
    assert errors.describe_storage_error(ValueError("the disk is fine")) is None
    assert errors.describe_storage_error(FileNotFoundError(2, "No such file")) is None
    looped = ValueError("a")
    looped.__cause__ = looped
    assert errors.describe_storage_error(looped) is None


def refused(found: tuple[int, str, str, list[str]]) -> tuple[str, list[str]]:
    """The one line of a command that the disk has stopped, and what is left on it."""
    code, _, err, left = found
    assert code == 2, err
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith("twinsqueeze: ")
    return line, left


FULL = r"No space left|disk is full|disk I/O|disk has"


@pytest.mark.slow
@pytest.mark.parametrize(("size", "options"), [("1m", "ro"), ("8k", "")])
def test_a_cache_that_cannot_be_written_costs_no_run(workplace, pairs_folder, size, options):
    cache = workplace.folder / "cache"
    code, _, err, left = on_a_disk(
        workplace, cache, *MAIN, str(pairs_folder), size=size, options=options, TWINSQUEEZE_CACHE=str(cache)
    )
    assert code == 0, err
    assert "the cache can't be written, so the next run computes the result again" in err
    assert not [name for name in left if name.endswith(".part")]
    assert workplace.runs()[0].info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize(("size", "options", "said"), [("1m", "ro", "Read-only file system"), ("100k", "", FULL)])
def test_an_artifact_folder_that_cannot_be_written(workplace, pairs_folder, size, options, said):
    """The record is kept, and sent once there is room: here, on the disk around that one."""
    folder = workplace.folder / "mlruns"
    more = {"TWINSQUEEZE_FLUSH_TIMEOUT": "3"}
    line, _ = refused(on_a_disk(workplace, folder, *MAIN, str(pairs_folder), size=size, options=options, **more))
    assert pd.Series(line).str.contains(said).all(), line
    assert "`python -m twinsqueeze sync` sends" in line
    assert workplace.command("sync").returncode == 0
    (run,) = workplace.runs()
    assert run.info.status == "FINISHED"
    assert workplace.download(run.info.run_id, "figures/loss_curves.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(("size", "options", "said"), [("1m", "ro", "Read-only file system"), ("300k", "", FULL)])
def test_a_fresh_store_that_cannot_be_made_leaves_nothing(workplace, pairs_folder, size, options, said):
    folder = workplace.folder / "store"
    found = on_a_disk(
        workplace,
        folder,
        *MAIN,
        str(pairs_folder),
        size=size,
        options=options,
        MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db",
    )
    line, left = refused(found)
    assert "can't be used" in line
    assert pd.Series(line).str.contains(said).all(), line
    assert set(left) <= {"mlflow.db.lock"}


@pytest.mark.slow
def test_a_store_whose_disk_fills_up_in_mid_run(place, pairs_folder, tmp_path):
    folder = tmp_path / "store"
    database = place.folder / "mlflow.db"
    found = on_a_disk(
        Workplace(tmp_path, place.cache),
        folder,
        *MAIN,
        str(pairs_folder),
        "--epochs",
        "1000",
        size=f"{database.stat().st_size // 1024 + 60}k",
        source=database,
        MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db",
    )
    line, _ = refused(found)
    assert pd.Series(line).str.contains(FULL).all(), line


@pytest.mark.slow
def test_a_store_that_is_read_only_is_read_and_not_written(place, run_id, tmp_path):
    folder = tmp_path / "store"
    how = {
        "size": "20m",
        "options": "ro",
        "source": place.folder / "mlflow.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    here = Workplace(tmp_path, place.cache)
    code, _, err, _ = on_a_disk(
        here, folder, "export", "--model", run_id, "--output", "model", "--format", "safetensors", **how
    )
    assert code == 0, err
    assert (tmp_path / "model" / "compressor.safetensors").is_file()
    line, _ = refused(on_a_disk(here, folder, "compare", **how))
    assert "readonly database" in line


@pytest.mark.slow
def test_outputs_appear_whole_or_not_at_all(place, run_id):
    """A table, figures and a report that fit only in part, and a model that does."""
    folder = place.folder / "small"
    line, left = refused(on_a_disk(place, folder, "compare", "--output", str(folder), size="150k"))
    assert pd.Series(line).str.contains(FULL).all(), line
    assert left == []
    output = str(folder / "model")
    line, left = refused(on_a_disk(place, folder, "export", "--model", run_id, "--output", output, size="5m"))
    assert pd.Series(line).str.contains(FULL).all(), line
    assert left == []
