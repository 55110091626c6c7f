"""Real processes that are told to stop, or whose `mlflow run` is."""

import os
import signal
import subprocess
import time
from threading import Event, Thread

import psutil
import pytest

from tests.helpers.commands import ROOT, Workplace
from twinsqueeze.utils import signals

LONG = ["--epochs", "100000", "--device", "cpu"]


def wait_for_training(process: subprocess.Popen) -> None:
    """Returns when the first line of progress is there."""
    for line in process.stderr:
        if line.startswith("training: epoch"):
            return
    raise AssertionError("it ended before it trained")


def trainers(place: Workplace) -> list[psutil.Process]:
    """Processes that train with this test's cache and store."""
    found = []
    for process in psutil.process_iter():
        try:
            if "twinsqueeze" in process.cmdline() and process.environ().get("MLFLOW_TRACKING_URI") == place.uri:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_command_that_is_stopped_leaves_a_killed_run(workplace, pairs_folder, number):
    with workplace.start("main", "--dataset", str(pairs_folder), *LONG[:1], "30000", *LONG[2:]) as process:
        wait_for_training(process)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(30) == 128 + number
    assert "Traceback" not in rest
    (run,) = workplace.runs()
    assert run.info.status == "KILLED"
    assert run.data.tags["mlflow.note.content"] == f"Killed: stopped by {number.name}."


@pytest.mark.slow
def test_a_second_signal_does_not_spoil_the_record(workplace, pairs_folder):
    with workplace.start("main", "--dataset", str(pairs_folder), *LONG[:1], "30000", *LONG[2:]) as process:
        wait_for_training(process)
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        process.stderr.read()
        process.wait(30)
    assert workplace.runs()[0].info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_training_does_not_outlive_mlflow_run(workplace, pairs_folder, number):
    """The signal goes to `mlflow run` alone, which dies and leaves its child behind."""
    arguments = ["run", str(ROOT), "--env-manager", "local", "-P", f"dataset={pairs_folder}", "-P", "epochs=30000"]
    with workplace.start(*arguments, module="mlflow", cwd=workplace.folder) as process:
        wait_for_training(process)
        assert trainers(workplace)
        process.send_signal(number)
        assert wait_until(lambda: not trainers(workplace))
        process.stderr.close()
    (run,) = workplace.runs()
    assert wait_until(lambda: workplace.runs()[0].info.status in {"KILLED", "FAILED"}), run.info.status


@pytest.fixture
def no_signal_yet(monkeypatch):
    monkeypatch.setattr(signals, "_pending", None)
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.raise_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_wait_while_a_record_is_written(no_signal_yet):
    written = []

    def write() -> None:
        with signals.defer_signals(then_stop=True):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            written.append("all of it")

    with pytest.raises(signals.Interrupted) as stop:
        write()
    assert written == ["all of it"]
    assert stop.value.exit_code == 143


def test_a_signal_does_not_wait_for_what_another_thread_writes(no_signal_yet):
    begun, over = Event(), Event()
    found = []

    def write() -> None:
        with signals.defer_signals(then_stop=False):
            begun.set()
            over.wait(60)
            signals.check_interrupted()
            found.append("all of it")
        try:
            signals.check_interrupted()
        except signals.Interrupted:
            found.append("stopped")

    writer = Thread(target=write)
    writer.start()
    begun.wait(60)
    with pytest.raises(signals.Interrupted):
        signal.raise_signal(signal.SIGTERM)
    over.set()
    writer.join(60)
    assert found == ["all of it", "stopped"]
