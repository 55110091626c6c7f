"""The thread that sends, with a delivery that fails as told."""

from collections.abc import Iterator

import pytest

from twinsqueeze.tracking.spool import uploader
from twinsqueeze.tracking.spool.journal import RunSpool, read_known, record_folders
from twinsqueeze.tracking.spool.uploader import RefusedError, Uploader


class Fake:
    """Fails before each operation as often as it is told to, and notes what it was given."""

    def __init__(self, failures: dict[str, list[Exception]]) -> None:
        self.failures = failures
        self.sent: list[str] = []
        self.again: list[bool] = []
        self.progress = 0

    @property
    def known(self) -> dict[str, list[str]]:
        return {"sent": list(self.sent)}

    def send(self, operation, *, again: bool) -> None:
        if waiting := self.failures.get(operation["op"]):
            raise waiting.pop(0)
        self.sent.append(operation["op"])
        self.again.append(again)


@pytest.fixture(autouse=True)
def hurried(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TWINSQUEEZE_STATE", str(tmp_path))
    monkeypatch.setattr(uploader, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(uploader, "LONGEST_PAUSE", 0.02)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def thread(said) -> Iterator[Uploader]:
    thread = Uploader("the server", tell=said.append)
    yield thread
    thread.stop()


def begun(thread: Uploader, delivery: Fake, *operations: str) -> RunSpool:
    record = RunSpool.create("a run", "x")
    shipment = thread.add(record, delivery)
    for operation in operations:
        record.append({"op": operation})
        thread.put(shipment, {"op": operation})
    return record


def test_what_fails_is_tried_again_in_its_place_and_said_once(thread, said):
    delivery = Fake({"b": [OSError("away")] * 4})
    begun(thread, delivery, "a", "b", "c", "end")
    assert thread.wait(10)
    assert delivery.sent == ["a", "b", "c", "end"]
    assert delivery.again == [False, True, False, False]
    assert [line.partition(" ")[0] for line in said] == ["WARNING:", "the"]
    assert "away" in said[0]
    assert record_folders() == []


def test_one_lost_answer_is_not_worth_a_word(thread, said):
    begun(thread, Fake({"b": [OSError("lost")]}), "a", "b", "end")
    assert thread.wait(10)
    assert said == []


def test_patience_ends_and_the_record_says_how_far_it_came(thread):
    delivery = Fake({"b": [OSError("away")] * 10_000})
    record = begun(thread, delivery, "a", "b", "end")
    assert not thread.wait(0.3)
    assert thread.failure == "away"
    thread.stop()
    assert read_known(record.folder) == {"sent": ["a"]}
    again = RunSpool.open(record.folder)
    assert (again.sent, [operation["op"] for operation in again.operations]) == (1, ["a", "b", "end"])
    again.release()


def test_a_refused_record_holds_up_no_other(thread, said):
    refused, other = Fake({"b": [RefusedError("deleted")]}), Fake({})
    kept = begun(thread, refused, "a", "b", "end")
    begun(thread, other, "a", "end")
    assert thread.wait(10)
    assert refused.sent == ["a"]
    assert other.sent == ["a", "end"]
    assert [(s.record.folder, s.refused) for s in thread.unsent()] == [(kept.folder, "deleted")]
    assert record_folders() == [kept.folder]
    assert "deleted" in said[0]
