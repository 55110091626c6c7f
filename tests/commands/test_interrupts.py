"""Real processes that are told to stop, or whose `mlflow run` is."""

import signal
import time
from threading import Event, Thread

import pytest

from tests.helpers.commands import ROOT, Workplace
from tests.helpers.forks import ForkedProcess
from twinsqueeze.utils import signals
from twinsqueeze.utils.processes import ProcessIdentity


def wait_for_training(place: Workplace, process: ForkedProcess) -> None:
    """Returns when the store has the metrics of an epoch."""
    process.wait_for(lambda: any(run.data.metrics for run in place.runs()))


def test_a_command_that_is_stopped_five_times_leaves_a_killed_run(workplace, create_store, small_training):
    create_store(workplace.folder)
    with workplace.start("main", "--epochs", "30000", *small_training) as process:
        wait_for_training(workplace, process)
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        _, err = process.finish(128 + signal.SIGINT)
    assert "Traceback" not in err
    (run,) = workplace.runs()
    assert run.info.status == "KILLED"
    assert run.data.tags["mlflow.note.content"] == "Killed: stopped by SIGINT."


def test_a_stopped_command_does_not_wait_for_threads(workplace):
    """Such as one that a thread pool has started and not registered yet when the signal arrives."""
    program = """
import threading
from pathlib import Path
from twinsqueeze import cli

threading.Thread(target=threading.Event().wait).start()
cli.load_grid = lambda *_: (Path("waits").touch(), threading.Event().wait())
cli.run()
"""
    command = ["-c", program, "ablation", "--grid", "best"]
    with ForkedProcess(command, workplace.environment, workplace.folder) as process:
        process.wait_for((workplace.folder / "waits").exists)
        process.send_signal(signal.SIGTERM)
        _, err = process.finish(143)
    assert err == "twinsqueeze: stopped by SIGTERM\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_training_does_not_outlive_mlflow_run(workplace, create_store, pairs_folder, tiny_encoder, number):
    """A signal goes to `mlflow run` alone, which dies and leaves its child behind."""
    create_store(workplace.folder)
    arguments = ["run", str(ROOT), "--env-manager", "local"]
    for name, value in {"dataset": pairs_folder, "encoder": tiny_encoder, "dim": 8, "epochs": 30000}.items():
        arguments += ["-P", f"{name}={value}"]
    with workplace.start(*arguments, module="mlflow") as process:
        wait_for_training(workplace, process)
        process.send_signal(number)
        (run,) = workplace.runs()
        while ProcessIdentity.parse(run.data.tags["twinsqueeze.process"]).state == "alive":
            time.sleep(0.1)
    assert workplace.runs()[0].info.status in {"KILLED", "FAILED"}


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
    with pytest.raises(signals.Interrupted) as stop, signals.defer_signals(then_stop=True):  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        written.append("all of it")
    assert written == ["all of it"]
    assert stop.value.exit_code == 143


def test_a_signal_does_not_wait_for_what_another_thread_writes(no_signal_yet):
    begun, over = Event(), Event()
    found = []

    def write() -> None:
        with signals.defer_signals(then_stop=False):
            begun.set()
            over.wait()
            signals.check_interrupted()
            found.append("all of it")
        try:
            signals.check_interrupted()
        except signals.Interrupted:
            found.append("stopped")

    writer = Thread(target=write)
    writer.start()
    begun.wait()
    with pytest.raises(signals.Interrupted):
        signal.raise_signal(signal.SIGTERM)
    over.set()
    writer.join()
    assert found == ["all of it", "stopped"]
