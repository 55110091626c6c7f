"""Real trainings that are killed, and resumed by the same command."""

import json
import signal
import subprocess
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import mlflow
import numpy as np
import psutil
import pytest
from mlflow.entities import Run

from tests.helpers.commands import Workplace
from tests.helpers.forks import ForkedProcess
from tests.helpers.stores import query
from twinsqueeze.commands import orphaned_runs
from twinsqueeze.tracking.orphaned_runs import mark_orphans_killed
from twinsqueeze.training.checkpointing import SUFFIX
from twinsqueeze.utils.processes import ProcessIdentity

ALTERED = "tests.helpers.altered_command"
ABLATION = ["ablation", "--grid", "grid.yaml"]


@pytest.fixture
def write_grid(pairs_folder, tiny_encoder):
    common = {"alpha": [0, 0.75], "dataset": str(pairs_folder), "encoder": str(tiny_encoder), "device": "cpu"}

    def write(folder: Path, **fields) -> None:
        (folder / "grid.yaml").write_text(json.dumps(common | fields))

    return write


def finished(place: Workplace) -> dict[tuple[str, str], list[Run]]:
    """Finished trainings by alpha and dim, newest first."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in place.runs("train"):
        if run.info.status == "FINISHED":
            found.setdefault((run.data.params["alpha"], run.data.params["dim"]), []).append(run)
    return found


def result(place: Workplace, run: Run) -> tuple[bytes, list[tuple]]:
    """The model's file, and every point of every metric that is no time."""
    points = "SELECT key, step, value FROM metrics WHERE run_uuid = ? AND key NOT LIKE 'time/%'"
    return place.checkpoint(run).read_bytes(), query(place.folder, points, run.info.run_id)


def checkpoints(place: Workplace, pattern: str = f"*{SUFFIX}") -> list[Path]:
    return [path for path in (place.folder / "state" / "trainings").glob(pattern) if path.suffix != ".lock"]


def check_ended(place: Workplace) -> list[Run]:
    """Checks that no run is RUNNING and no checkpoint remains; returns the runs of killed processes."""
    killed = [run for run in place.runs() if run.info.status != "FINISHED"]
    for run in killed:
        process = ProcessIdentity.parse(run.data.tags["twinsqueeze.process"])
        endings = (f"Killed: its process {process.pid} on ", "Killed: stopped by SIGTERM.")
        assert run.data.tags["mlflow.note.content"].startswith(endings)
        assert run.info.status == "KILLED"
        assert run.info.end_time
    assert checkpoints(place, "*") == []
    return killed


def test_main_resumes_after_a_kill(workplace, create_store, small_training):
    create_store(workplace.folder)
    command = ["main", "--epochs", "40", *small_training]
    with workplace.start(*command, module=ALTERED, PAUSE="epochs") as process:
        process.wait_for(lambda: checkpoints(workplace))
        process.kill()
    (dead,) = workplace.runs()
    assert dead.info.status == "RUNNING"

    err = workplace.run(*command).stderr
    assert "an interrupted training resumes from epoch" in err
    assert f"{dead.info.run_id} was RUNNING but its process is gone: marked as KILLED; `twinsqueeze sync`" in err
    (killed,) = check_ended(workplace)
    ((resumed,),) = finished(workplace).values()
    epoch, _, epochs = resumed.data.tags["twinsqueeze.resumed_from"].partition(" of ")
    assert epochs == "40"
    assert resumed.data.tags["twinsqueeze.resumes_run"] == killed.info.run_id == dead.info.run_id
    assert f"resumed from {epoch}." in resumed.data.tags["mlflow.note.content"]
    note = f"Run {resumed.info.run_id} resumes from {epoch}."
    assert killed.data.tags["mlflow.note.content"].endswith(f" is gone. {note}")

    workplace.run("sync")
    sent = workplace.client.get_run(killed.info.run_id)
    assert sent.info.status == "KILLED"
    assert sent.data.tags["mlflow.note.content"] == killed.data.tags["mlflow.note.content"]


def test_a_grid_resumes_after_a_kill(workplace, create_store, write_grid):
    """It is killed when the first of two recipes of a batch is recorded."""
    create_store(workplace.folder)
    write_grid(workplace.folder, dim=8, epochs=3)
    with workplace.start(*ABLATION, module=ALTERED, PAUSE="second result") as process:
        statuses = ["FINISHED", "RUNNING", "RUNNING"]
        process.wait_for(lambda: sorted(run.info.status for run in workplace.runs()) == statuses)
        process.kill()

    assert "1 of 2 recipes are in the experiment already" in workplace.run(*ABLATION).stderr
    assert len(check_ended(workplace)) == 2
    assert [len(runs) for runs in finished(workplace).values()] == [1, 1]

    assert "already" not in workplace.run(*ABLATION, "--force", "true", "--resume", "false").stderr
    for whole, resumed in finished(workplace).values():
        assert result(workplace, resumed) == result(workplace, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("in_workers", "number", "of", "code", "status"),
    [
        ("", signal.SIGTERM, "it", 143, "KILLED"),
        ("1", signal.SIGTERM, "it", 143, "KILLED"),
        ("1", signal.SIGKILL, "it", -signal.SIGKILL, "RUNNING"),
        ("1", signal.SIGKILL, "one of its processes", 2, "FAILED"),
    ],
)
def test_a_grid_resumes_all_batches_that_trained_in_parallel(
    workplace, create_store, write_grid, in_workers, number, of, code, status
):
    """Two shapes train in parallel, in threads or in processes; it is stopped when both have a checkpoint."""
    create_store(workplace.folder)
    write_grid(workplace.folder, dim=[8, 12], epochs=40)
    with workplace.start(*ABLATION, module=ALTERED, PAUSE="epochs", IN_WORKERS=in_workers) as process:
        process.wait_for(lambda: len(checkpoints(workplace)) == 2)
        spawned = [child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline())]
        assert len(spawned) == (2 if in_workers else 0)
        stopped = process if of == "it" else spawned[0]
        stopped.send_signal(number)
        _, err = process.finish(code)
    assert ("a training process was killed" in err) == (of != "it")
    (parent,) = workplace.runs()
    assert parent.info.status == status
    assert len(checkpoints(workplace)) == 2

    with workplace.start(*ABLATION, module=ALTERED) as process:
        _, err = process.finish()
    assert err.count("2 interrupted trainings resume from epoch") == 2
    found = finished(workplace)
    assert [len(runs) for runs in found.values()] == [1] * 4
    assert {run.data.params["threads"] for (run,) in found.values()} == {"2"}
    assert checkpoints(workplace, "*") == []


@pytest.mark.longest
@pytest.mark.slow
@pytest.mark.parametrize("name", ["main", "ablation"])
def test_ten_kills_at_random_moments(tmp_path, shared_cache, create_store, small_training, write_grid, name):
    """Five of main, and five of a grid of two shapes: every result is that of one that was not killed."""
    main = ["main", *small_training, "--batch-size", "1", "--epochs", "150"]
    command = {"main": main, "ablation": ABLATION}[name]

    def make_place(number: int) -> Workplace:
        place = Workplace(tmp_path / str(number), shared_cache)
        place.folder.mkdir()
        create_store(place.folder)
        write_grid(place.folder, dim=[8, 12], batch_size=1, epochs=100)
        return place

    def start(place: Workplace) -> ForkedProcess:
        process = place.start(*command, module=ALTERED)
        process.stderr.readline()
        return process

    place = make_place(0)
    with start(place) as process:
        begin = time.monotonic()
        process.finish()
        duration = time.monotonic() - begin
    wanted = {recipe: result(place, run) for recipe, (run,) in finished(place).items()}

    random, kills, places = np.random.default_rng(0), 0, map(make_place, count(1))
    while kills < 5:
        place = next(places)
        for attempt in count():
            with start(place) as process:
                # At most half the duration at first, so that a training is killed several times, and mostly before its
                # end. Later more: on a machine that has become slower, a command may need all of that to start.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(random.uniform(0, duration / 2 * 1.1**attempt))
                process.send_signal(signal.SIGTERM if attempt % 5 == 4 else signal.SIGKILL)
                _, err = process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode in {-signal.SIGKILL, 128 + signal.SIGTERM}, err
            kills += process.returncode == -signal.SIGKILL
        check_ended(place)
        found = finished(place)
        assert found.keys() == wanted.keys()
        for recipe, runs in found.items():
            assert len(runs) == 1 or name == "main"  # which trains again after a kill behind its end
            assert all(result(place, run) == wanted[recipe] for run in runs)


def test_only_runs_of_processes_that_are_gone_here_are_ended(trained_place, tmp_path, use_store):
    workplace = trained_place.copy_to(tmp_path)
    use_store(workplace.uri)
    here = ProcessIdentity.current()
    with subprocess.Popen(["true"]) as short:
        gone = here.model_copy(update={"pid": short.pid})
    processes = {
        "gone": gone,
        "gone, of the same": gone,
        "with a number that is another's now": here.model_copy(update={"started": here.started - 3600}),
        "living": here,
        "elsewhere": gone.model_copy(update={"host": "elsewhere"}),
        "elsewhere, of the same": gone.model_copy(update={"host": "elsewhere"}),
        "finished": gone,
    }
    texts = {name: process.model_dump_json() for name, process in processes.items()} | {"garbled": "{", "nobody's": ""}
    names = {}
    for name, text in texts.items():
        tags = {"same": str("same" in name)} | ({"twinsqueeze.process": text} if text else {})
        run_id = workplace.client.create_run("0", run_name=name, tags=tags).info.run_id
        names[run_id] = name
        if name == "finished":
            workplace.client.set_terminated(run_id, "FINISHED")

    found = mark_orphans_killed("0", lambda tags: tags["same"] == "True", "Run x goes on.")
    orphans = {"gone": False, "gone, of the same": True, "with a number that is another's now": False}
    assert {names[run_id]: is_same for run_id, is_same in found.items()} == orphans
    killed = {run.info.run_name: run for run in workplace.runs() if run.info.status == "KILLED"}
    assert killed.keys() == orphans.keys()
    for name, ending in (("gone", " is gone."), ("gone, of the same", " is gone. Run x goes on.")):
        assert killed[name].data.tags["mlflow.note.content"].endswith(ending)
    assert mark_orphans_killed("0", lambda tags: False, "") == {}


def test_a_store_that_cannot_be_read_does_not_stop_a_training(monkeypatch, capsys):
    fail = Mock(side_effect=mlflow.MlflowException("no answer from https://me:secret@host/"))
    monkeypatch.setattr(orphaned_runs.orphaned_runs, "mark_orphans_killed", fail)
    orphaned_runs.close_orphaned_runs(Mock(experiment_id="0"), lambda tags: True, "goes on")
    err = capsys.readouterr().err
    assert "no answer" in err
    assert "secret" not in err


def test_a_zombie_is_gone():
    with subprocess.Popen(["sleep", "60"]) as process:
        started = psutil.Process(process.pid).create_time()
        known = ProcessIdentity.current().model_copy(update={"pid": process.pid, "started": started})
        assert known.state == "alive"
        process.send_signal(signal.SIGKILL)
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert known.state == "dead"
    assert known.state == "dead"
