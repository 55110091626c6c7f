"""The thread that uploads, with a replayer that fails on demand."""

import math
from collections.abc import Iterator

import pytest

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.spool import uploader
from twinsqueeze.tracking.spool.journal import RunSpool, pending_runs
from twinsqueeze.tracking.spool.uploader import Uploader

pytestmark = pytest.mark.usefixtures("state")


class FakeReplayer:
    """Raises errors before it sends the operation `b`, and lists what it sent."""

    def __init__(self, *errors: Exception) -> None:
        self.spool = RunSpool.create("a run", "x")
        self.refusal = None
        self.errors = list(errors)
        self.sent: list[str] = []

    def send(self, operation) -> None:
        if operation["op"] == "b" and self.errors:
            raise self.errors.pop(0)
        self.sent.append(operation["op"])
        self.spool.ids["sent"] = list(self.sent)


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


@pytest.mark.parametrize(("failures", "words"), [(1, []), (4, ["WARNING:", "the"])])
def test_failures_are_retried_in_order_and_reported_once_unless_it_is_one(thread, messages, failures, words):
    replayer = FakeReplayer(*[OSError("away")] * failures)
    enqueue(thread, replayer, "a", "b", "c", "end")
    assert thread.wait(math.inf) is None
    assert replayer.sent == ["a", "b", "c", "end"]
    assert [line.partition(" ")[0] for line in messages] == words
    assert all("away" in line for line in messages[:1])
    assert pending_runs() == []


def test_a_refused_record_holds_up_no_other(thread, messages):
    refused, other = FakeReplayer(InputError("deleted")), FakeReplayer()
    enqueue(thread, refused, "a", "b", "end")
    enqueue(thread, other, "a", "end")
    assert thread.wait(math.inf) == "deleted"
    assert refused.sent == ["a"]
    assert other.sent == ["a", "end"]
    assert [(run.spool.folder, run.refusal) for run in thread.runs] == [(refused.spool.folder, "deleted")]
    assert [run.folder for run in pending_runs()] == [refused.spool.folder]
    assert "deleted" in messages[0]
