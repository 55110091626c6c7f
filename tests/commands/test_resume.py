"""Real trainings that are killed, and resumed by the same command."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from mlflow.entities import Run

from tests.helpers.commands import Workplace
from twinsqueeze.tracking.orphaned_runs import mark_orphans_killed
from twinsqueeze.training.checkpointing import SUFFIX
from twinsqueeze.utils.processes import ProcessIdentity

# Steps of one pair, so that seconds of training are few epochs to record.
MAIN = ["main", "--device", "cpu", "--dim", "8", "--batch-size", "1", "--epochs", "120"]
GRID = "alpha: [0, 0.75]\ndim: 8\nbatch_size: 1\nepochs: 60\ndevice: cpu\n"
IN_WORKERS = "tests.helpers.train_in_workers"
KILLS = 10  # per job


def finished(place: Workplace) -> dict[tuple[str, str], list[Run]]:
    """Finished trainings by alpha and dim, newest first."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in place.runs():
        if run.info.status == "FINISHED" and run.data.tags["twinsqueeze.kind"] == "train":
            found.setdefault((run.data.params["alpha"], run.data.params["dim"]), []).append(run)
    return found


def result(place: Workplace, run: Run) -> tuple[bytes, dict[str, list[tuple[int, float]]]]:
    """The model's file, and every point of every metric."""
    (file,) = place.model(run).rglob("*.safetensors")
    return file.read_bytes(), {
        name: sorted((point.step, point.value) for point in place.client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def checkpoint_files(place: Workplace) -> list[Path]:
    """Checkpoints, finished or not."""
    return [path for path in (place.folder / "state" / "trainings").glob("*") if path.suffix != ".lock"]


def checkpoints(place: Workplace) -> list[Path]:
    """Finished checkpoints."""
    return [path for path in checkpoint_files(place) if path.suffix == SUFFIX]


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.stderr.read()
    process.wait(60)
    process.stderr.close()


def check_ended(place: Workplace) -> list[Run]:
    """Checks that no run is RUNNING and no checkpoint remains; returns the runs of killed processes."""
    assert {run.info.status for run in place.runs()} <= {"FINISHED", "KILLED"}
    killed = [run for run in place.runs() if run.info.status == "KILLED"]
    for run in killed:
        process = ProcessIdentity.parse(run.data.tags["twinsqueeze.process"])
        endings = (f"Killed: its process {process.pid} on ", "Killed: stopped by SIGTERM.")
        assert run.data.tags["mlflow.note.content"].startswith(endings)
        assert run.info.end_time
    assert checkpoint_files(place) == []
    return killed


def test_main_resumes_after_a_kill(workplace, run_here, pairs_folder):
    options = [*MAIN, "--dataset", str(pairs_folder)]
    assert workplace.runs() == []  # makes the store
    process = workplace.start(*options)
    wait_for(lambda: checkpoint_files(workplace), process)
    time.sleep(np.random.default_rng(0).uniform(0, 0.5))
    kill(process)
    (dead,) = workplace.runs()
    assert dead.info.status == "RUNNING"

    code, _, err = run_here(*options)
    assert code == 0, err
    assert "an interrupted training resumes from epoch" in err
    assert (
        f"run {dead.info.run_id} was RUNNING but its process is gone: marked as KILLED; `python -m twinsqueeze sync`"
        in err
    )
    (killed,) = check_ended(workplace)
    ((resumed,),) = finished(workplace).values()
    epoch, _, epochs = resumed.data.tags["twinsqueeze.resumed_from"].partition(" of ")
    assert epochs == "120"
    assert resumed.data.tags["twinsqueeze.resumes_run"] == killed.info.run_id == dead.info.run_id
    assert f"resumed from {epoch}." in resumed.data.tags["mlflow.note.content"]
    note = f"Run {resumed.info.run_id} resumes from {epoch}."
    assert killed.data.tags["mlflow.note.content"].endswith(f" is gone. {note}")

    assert run_here("sync")[0] == 0
    sent = workplace.client.get_run(killed.info.run_id)
    assert sent.info.status == "KILLED"
    assert sent.data.tags["mlflow.note.content"] == killed.data.tags["mlflow.note.content"]

    code, _, err = run_here(*options, "--resume", "false")
    assert code == 0, err
    assert "interrupted" not in err
    whole, _ = finished(workplace)["0.75", "8"]
    assert "twinsqueeze.resumed_from" not in whole.data.tags
    assert result(workplace, resumed) == result(workplace, whole)


@pytest.mark.slow
def test_a_grid_resumes_after_a_kill(workplace, run_here, pairs_folder):
    """It is killed when the first of two recipes of a batch is recorded."""
    (workplace.folder / "grid.yaml").write_text(GRID)
    options = ["ablation", "--grid", "grid.yaml", "--dataset", str(pairs_folder)]
    assert workplace.runs() == []
    process = workplace.start(*options)
    wait_for(lambda: len(workplace.runs()) == 3, process)
    kill(process)
    assert sorted(run.info.status for run in workplace.runs()) == ["FINISHED", "RUNNING", "RUNNING"]

    code, _, err = run_here(*options)
    assert code == 0, err
    assert "1 of 2 recipes are in the experiment already" in err
    assert len(check_ended(workplace)) == 2
    assert [len(runs) for runs in finished(workplace).values()] == [1, 1]

    code, _, err = run_here(*options, "--force", "true", "--resume", "false")
    assert code == 0, err
    for whole, resumed in finished(workplace).values():
        assert result(workplace, resumed) == result(workplace, whole)


@pytest.mark.parametrize(
    ("module", "number", "of", "code", "status"),
    [
        ("twinsqueeze", signal.SIGTERM, "it", 143, "KILLED"),
        pytest.param(IN_WORKERS, signal.SIGTERM, "it", 143, "KILLED", marks=pytest.mark.slow),
        pytest.param(IN_WORKERS, signal.SIGKILL, "it", -signal.SIGKILL, "RUNNING", marks=pytest.mark.slow),
        pytest.param(IN_WORKERS, signal.SIGKILL, "one of its processes", 2, "FAILED", marks=pytest.mark.slow),
    ],
)
def test_a_grid_resumes_all_batches_that_trained_in_parallel(
    workplace, pairs_folder, monkeypatch, module, number, of, code, status
):
    """Two shapes train in parallel, in threads or in processes; it is stopped when both have a checkpoint."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (workplace.folder / "grid.yaml").write_text(GRID.replace("dim: 8", "dim: [8, 12]").replace("60", "300"))
    options = ["ablation", "--grid", "grid.yaml", "--dataset", str(pairs_folder)]
    with workplace.start(*options, module=module) as process:
        wait_for(lambda: len(checkpoints(workplace)) == 2, process)
        spawned = [child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline())]
        assert len(spawned) == (2 if module == IN_WORKERS else 0)
        stopped = process if of == "it" else spawned[0]
        stopped.send_signal(number)
        err = process.stderr.read()
        assert process.wait(60) == code
    assert ("a training process was killed" in err) == (of != "it")
    (parent,) = workplace.runs()
    assert parent.info.status == status
    assert len(checkpoints(workplace)) == 2

    done = workplace.command(*options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 interrupted trainings resume from epoch") == 2
    found = finished(workplace)
    assert [len(runs) for runs in found.values()] == [1] * 4
    assert {run.data.params["threads"] for (run,) in found.values()} == {"2"}
    assert checkpoint_files(workplace) == []


def seconds_of(place: Workplace, arguments: list[str], module: str) -> tuple[float, float]:
    """Runs a command to its end; returns when it began to train, and how long it took."""
    start = time.monotonic()
    with place.start(*arguments, module=module) as process:
        trains = next(time.monotonic() - start for line in process.stderr if line.startswith("training:"))
        process.stderr.read()
    assert process.returncode == 0
    return trains, time.monotonic() - start


def places(folder: Path, cache: Path, grid: str) -> Iterator[Workplace]:
    """New folders, each with a store of its own."""
    for number in count():
        place = Workplace(folder / str(number), cache)
        place.folder.mkdir(parents=True)
        (place.folder / "grid.yaml").write_text(grid)
        assert place.runs() == []
        yield place


def kill_often(new_places: Iterator[Workplace], arguments: list[str], module: str, seed: int) -> int:
    """Kills a command at random moments and starts it again, until it has come to its end; and all that often.

    Every fifth time it is told to stop instead.

    Returns:
        How often a command came to its end.
    """
    whole = next(new_places)
    trains, ends = seconds_of(whole, arguments, module)
    faster = 1.0  # than that it goes by now
    wanted = {recipe: result(whole, run) for recipe, (run,) in finished(whole).items()}
    # Half a training at most, then the next goes on: so kills come everywhere, and mostly before the end.
    moments = np.random.default_rng(seed)
    kills = ended = 0
    while kills < KILLS:
        place = next(new_places)
        for attempt in count(1):
            moment = moments.uniform(0.8 * trains, (trains + ends) / 2)
            start = time.monotonic()
            with place.start(*arguments, module=module) as process:
                try:
                    _, err = process.communicate(timeout=moment / faster if kills < KILLS else None)
                    assert process.returncode == 0, err
                    if attempt == 1:  # else the machine may have become faster, and kills would come too late for ever
                        faster = max(faster, ends / (time.monotonic() - start))
                    break
                except subprocess.TimeoutExpired:
                    number = signal.SIGKILL if attempt % 5 else signal.SIGTERM
                    process.send_signal(number)
                    process.communicate()
                    kills += number == signal.SIGKILL
        ended += 1
        print(f"{arguments[0]}: {kills} kills, ended {ended} times", flush=True)
        check_ended(place)
        found = finished(place)
        assert found.keys() == wanted.keys()
        for recipe, runs in found.items():
            assert len(runs) == 1 or arguments[0] == "main"  # that is trained again where it was killed behind the end
            for run in runs:
                assert result(place, run) == wanted[recipe]
    return ended


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments(tmp_path, shared_cache, pairs_folder):
    """Of main and of a grid of two shapes, both at once, each shape in a process of its own."""
    data = ["--dataset", str(pairs_folder)]
    grid = GRID.replace("dim: 8", "dim: [8, 12]").replace("epochs: 60", "epochs: 200")
    jobs = {
        "main": ([*MAIN, "--epochs", "300"], "twinsqueeze"),
        "grid": (["ablation", "--grid", "grid.yaml"], IN_WORKERS),
    }
    with ThreadPoolExecutor() as pool:
        going = [
            pool.submit(kill_often, places(tmp_path / name, shared_cache, grid), [*job, *data], module, seed)
            for seed, (name, (job, module)) in enumerate(jobs.items())
        ]
        assert all(job.result() for job in going)


def test_only_runs_of_processes_that_are_gone_here_are_ended(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workplace.uri)
    here = ProcessIdentity.current()
    with subprocess.Popen(["true"]) as short:
        gone = ProcessIdentity(host=here.host, pid=short.pid, started=psutil.Process(short.pid).create_time())
    processes = {
        "gone": gone,
        "gone, of the same": gone,
        "with a number that is another's now": here.model_copy(update={"started": here.started - 3600}),
        "living": here,
        "elsewhere": gone.model_copy(update={"host": "elsewhere"}),
        "elsewhere, of the same": gone.model_copy(update={"host": "elsewhere"}),
    }
    texts = {name: process.model_dump_json() for name, process in processes.items()} | {
        "garbled": "{",
        "nobody's": None,
    }
    ids = {}
    for name, text in texts.items():
        tags = {"same": str("same" in name)} | ({"twinsqueeze.process": text} if text else {})
        ids[name] = workplace.client.create_run("0", run_name=name, tags=tags).info.run_id
    ended = workplace.client.create_run("0", tags={"twinsqueeze.process": texts["gone"]}).info.run_id
    workplace.client.set_terminated(ended, "FINISHED")

    found = mark_orphans_killed("0", lambda tags: tags["same"] == "True", "Run x goes on.")
    assert found == {
        ids["gone, of the same"]: True,
        ids["with a number that is another's now"]: False,
        ids["gone"]: False,
    }
    runs = {run.info.run_name: run for run in workplace.runs()}
    killed = {name for name, run in runs.items() if run.info.status == "KILLED"}
    assert killed == {"gone", "gone, of the same", "with a number that is another's now"}
    assert runs["gone, of the same"].data.tags["mlflow.note.content"].endswith(" is gone. Run x goes on.")
    assert runs["gone"].data.tags["mlflow.note.content"].endswith(" is gone.")
    assert mark_orphans_killed("0", lambda tags: False, "") == {}


def test_a_store_that_cannot_be_read_does_not_stop_a_training(monkeypatch, capsys):
    from twinsqueeze.commands import orphaned_runs

    def broken(*_):
        raise mlflow.MlflowException("no answer from https://me:secret@host/")

    monkeypatch.setattr(orphaned_runs.orphaned_runs, "mark_orphans_killed", broken)
    orphaned_runs.close_orphaned_runs(
        type("Run", (), {"run_id": "x", "experiment_id": "0"}), lambda tags: True, "goes on"
    )
    err = capsys.readouterr().err
    assert "no answer" in err
    assert "secret" not in err


def test_a_zombie_is_gone():
    with subprocess.Popen(["sleep", "60"]) as process:
        known = ProcessIdentity(
            host=ProcessIdentity.current().host, pid=process.pid, started=psutil.Process(process.pid).create_time()
        )
        assert known.state == "alive"
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert known.state == "dead"
    assert known.state == "dead"
