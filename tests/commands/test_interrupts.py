"""Real processes that are told to stop, or whose `mlflow run` is."""

import signal
import time
from contextlib import ExitStack
from threading import Event, Thread

import pytest

from tests.helpers.commands import ROOT, Workplace
from tests.helpers.forks import ForkedProcess
from twinsqueeze.utils import signals
from twinsqueeze.utils.processes import ProcessIdentity

LONG = ["main", "--epochs", "30000"]


def wait_for_training(place: Workplace, process: ForkedProcess) -> None:
    """Returns when the store has the metrics of an epoch."""
    process.wait_for(lambda: any(run.data.metrics for run in place.runs()))


@pytest.mark.parametrize(
    ("number", "times"),
    [
        (signal.SIGINT, 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((signal.SIGTERM, 1), (signal.SIGINT, 5))),
    ],
)
def test_a_command_that_is_stopped_leaves_a_killed_run(workplace, create_store, small_training, number, times):
    create_store(workplace.folder)
    with workplace.start(*LONG, *small_training) as process:
        wait_for_training(workplace, process)
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.005)
        _, err = process.finish(128 + number)
    assert "Traceback" not in err
    (run,) = workplace.runs()
    assert run.info.status == "KILLED"
    assert run.data.tags["mlflow.note.content"] == f"Killed: stopped by {number.name}."


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
def test_training_does_not_outlive_mlflow_run(tmp_path, create_store, shared_cache, pairs_folder, tiny_encoder):
    """A signal goes to `mlflow run` alone, which dies and leaves its child behind."""
    parameters = {"dataset": pairs_folder, "encoder": tiny_encoder, "dim": 8, "epochs": 30000}
    arguments = ["run", str(ROOT), "--env-manager", "local"]
    for name, value in parameters.items():
        arguments += ["-P", f"{name}={value}"]
    started = {}
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            place = Workplace(tmp_path / number.name, shared_cache)
            place.folder.mkdir()
            create_store(place.folder)
            started[number] = place, stack.enter_context(place.start(*arguments, module="mlflow"))
        for number, (place, process) in started.items():
            wait_for_training(place, process)
            process.send_signal(number)
        for place, process in started.values():
            (run,) = place.runs()
            while ProcessIdentity.parse(run.data.tags["twinsqueeze.process"]).state == "alive":
                time.sleep(0.1)
            process.wait()
            assert place.runs()[0].info.status in {"KILLED", "FAILED"}


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
            signal.raise_signal(signal.SIGTERM)
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
