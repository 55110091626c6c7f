"""Records on disk: a damaged file is refused, and never read as something else."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.spool.journal import JOURNAL, SENT, RunSpool, pending_runs

# Values that JSON round-trips.
values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values |= st.text()
operations = st.lists(st.dictionaries(st.text(), values | st.lists(values, max_size=3), max_size=4), max_size=6)
many_examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(operations: list[dict]) -> tuple[RunSpool, Path, bytes]:
    """A record, the path of its journal, and what is in it."""
    spool = RunSpool.create("a run", "sqlite:////somewhere/mlflow.db", *operations)
    spool.release()
    return spool, spool.folder / JOURNAL, (spool.folder / JOURNAL).read_bytes()


@many_examples
@given(operations, st.data())
def test_a_truncated_file_loses_its_last_line_at_most(state, operations, data):
    spool, file, content = write(operations)
    size = data.draw(st.integers(content.index(b"\n") + 1, len(content)))
    file.write_bytes(content[:size])
    read = RunSpool.read(spool.folder, lock=True)
    assert (read.name, read.uri, read.start_time) == (spool.name, spool.uri, spool.start_time)
    assert read.operations == operations[: content[:size].count(b"\n") - 1]


@many_examples
@given(operations, st.data())
def test_a_flipped_bit_and_reordered_and_missing_lines_are_refused(state, operations, data):
    spool, file, content = write(operations)
    lines = content.splitlines(keepends=True)
    position = data.draw(st.integers(0, len(content) - 2))  # before the newline that completes the last line
    flipped = bytes([content[position] ^ 1 << data.draw(st.integers(0, 7))])
    damaged = [content[:position] + flipped + content[position + 1 :]]
    if len(lines) > 2:
        damaged += [b"".join(data.draw(st.permutations(lines))), b"".join([lines[0], *lines[2:]])]
    for changed in damaged:
        file.write_bytes(changed)
        assert changed == content or "has changed since it was written" in RunSpool.read(spool.folder).damage


def test_progress_is_saved_and_a_truncated_progress_file_is_harmless(state):
    spool, *_ = write([{"op": "batch", "tags": {"a": str(i)}} for i in range(4)])
    spool.ids = {"run_id": "x"}
    spool.mark_sent(1)
    spool.ids["models"] = {"m": "y"}
    spool.mark_sent(3)
    reopened = RunSpool.read(spool.folder)
    assert (reopened.num_sent, reopened.ids) == (3, {"run_id": "x", "models": {"m": "y"}})
    sent = spool.folder / SENT
    sent.write_bytes(sent.read_bytes()[:-3])
    truncated = RunSpool.read(spool.folder)
    assert truncated.num_sent == 0
    truncated.mark_sent(2)
    assert RunSpool.read(spool.folder).num_sent == 2


def test_a_record_is_locked_until_it_is_released(state):
    spool = RunSpool.create("a run", "x")
    spool.append({"op": "batch", "tags": {}})
    assert [(run.folder, run.is_locked) for run in pending_runs()] == [(spool.folder, True)]
    with pytest.raises(BlockingIOError):
        RunSpool.read(spool.folder, lock=True)
    assert RunSpool.read(spool.folder).operations == [{"op": "batch", "tags": {}}]
    spool.release()
    RunSpool.read(spool.folder, lock=True).remove()
    assert pending_runs() == []


def test_a_file_in_the_folders_place_is_refused(state):
    state.write_text("in the way")
    with pytest.raises(InputError, match="have TWINSQUEEZE_STATE name another folder"):
        RunSpool.create("a run", "x")
