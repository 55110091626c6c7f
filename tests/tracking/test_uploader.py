"""The thread that uploads, with a replayer that fails on demand."""

from collections.abc import Iterator

import pytest

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.spool import uploader
from twinsqueeze.tracking.spool.journal import RunSpool, pending_runs
from twinsqueeze.tracking.spool.uploader import Uploader


class FakeReplayer:
    """Raises the given errors before it sends an operation, and lists what it sent."""

    def __init__(self, errors: dict[str, list[Exception]]) -> None:
        self.spool = RunSpool.create("a run", "x")
        self.refusal = None
        self.errors = errors
        self.sent: list[str] = []

    def send(self, operation) -> None:
        if errors := self.errors.get(operation["op"]):
            raise errors.pop(0)
        self.sent.append(operation["op"])
        self.spool.ids["sent"] = list(self.sent)


@pytest.fixture(autouse=True)
def short_pauses(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TWINSQUEEZE_STATE", str(tmp_path))
    monkeypatch.setattr(uploader, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(uploader, "LONGEST_PAUSE", 0.02)


@pytest.fixture
def messages(monkeypatch) -> list[str]:
    messages = []
    monkeypatch.setattr(uploader, "notify", messages.append)
    return messages


@pytest.fixture
def thread(messages) -> Iterator[Uploader]:
    thread = Uploader("http://the-server")
    yield thread
    thread.stop()


def enqueue(thread: Uploader, replayer: FakeReplayer, *operations: str) -> None:
    for operation in operations:
        replayer.spool.append({"op": operation})
        thread.enqueue(replayer, {"op": operation})


def test_failures_are_retried_in_order_and_reported_once(thread, messages):
    replayer = FakeReplayer({"b": [OSError("away")] * 4})
    enqueue(thread, replayer, "a", "b", "c", "end")
    assert thread.wait(10) is None
    assert replayer.sent == ["a", "b", "c", "end"]
    assert [line.partition(" ")[0] for line in messages] == ["WARNING:", "the"]
    assert "away" in messages[0]
    assert pending_runs() == []


def test_one_lost_answer_is_not_reported(thread, messages):
    enqueue(thread, FakeReplayer({"b": [OSError("lost")]}), "a", "b", "end")
    assert thread.wait(10) is None
    assert messages == []


def test_the_timeout_ends_and_the_record_says_what_was_sent(thread):
    replayer = FakeReplayer({"b": [OSError("away")] * 10_000})
    enqueue(thread, replayer, "a", "b", "end")
    assert thread.wait(0.3) == thread.failure == "away"
    thread.stop()
    assert RunSpool.read(replayer.spool.folder).ids == {"sent": ["a"]}
    reopened = RunSpool.read(replayer.spool.folder, lock=True)
    assert (reopened.num_sent, [operation["op"] for operation in reopened.operations]) == (1, ["a", "b", "end"])
    reopened.release()


def test_a_refused_record_holds_up_no_other(thread, messages):
    refused, other = FakeReplayer({"b": [InputError("deleted")]}), FakeReplayer({})
    enqueue(thread, refused, "a", "b", "end")
    enqueue(thread, other, "a", "end")
    assert thread.wait(10) == "deleted"
    assert refused.sent == ["a"]
    assert other.sent == ["a", "end"]
    assert [(run.spool.folder, run.refusal) for run in thread.runs] == [(refused.spool.folder, "deleted")]
    assert [run.folder for run in pending_runs()] == [refused.spool.folder]
    assert "deleted" in messages[0]
