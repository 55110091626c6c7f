"""Records on disk: a damaged file is refused, and never read as something else."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.spool import journal
from twinsqueeze.tracking.spool.journal import RunSpool, pending_runs

# Values that JSON round-trips.
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
operations = st.lists(st.fixed_dictionaries({"op": st.text(), "values": values}), max_size=6)
many_examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TWINSQUEEZE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def write(operations: list[dict]) -> RunSpool:
    spool = RunSpool.create("a run", "sqlite:////somewhere/mlflow.db")
    for operation in operations:
        spool.append(operation)
    spool.release()
    return spool


def check_damage(folder: Path) -> None:
    assert "has changed since it was written" in RunSpool.read(folder).damage


@many_examples
@given(operations, st.data())
def test_a_truncated_file_loses_its_last_line_at_most(state, operations, data):
    spool = write(operations)
    file = spool.folder / journal.JOURNAL
    content = file.read_bytes()
    size = data.draw(st.integers(len(content.split(b"\n")[0]) + 1, len(content)))
    file.write_bytes(content[:size])
    num_complete = content[:size].count(b"\n") - 1
    read = RunSpool.read(spool.folder)
    assert (read.name, read.uri, read.start_time) == (spool.name, spool.uri, spool.start_time)
    assert read.operations == operations[:num_complete]
    assert RunSpool.read(spool.folder, lock=True).operations == operations[:num_complete]


@many_examples
@given(operations, st.data())
def test_a_flipped_bit_is_refused_or_the_end_of_the_last_line(state, operations, data):
    spool = write(operations)
    file = spool.folder / journal.JOURNAL
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    if position == len(content) - 1:  # the newline that completes the last line
        if operations:
            assert RunSpool.read(spool.folder).operations == operations[:-1]
        return
    check_damage(spool.folder)


@many_examples
@given(operations.filter(lambda operations: len(operations) > 1), st.data())
def test_reordered_and_missing_lines_are_refused(state, operations, data):
    spool = write(operations)
    file = spool.folder / journal.JOURNAL
    lines = file.read_bytes().splitlines(keepends=True)
    order = data.draw(st.permutations(range(len(lines))).filter(lambda order: order != sorted(order)))
    file.write_bytes(b"".join(lines[i] for i in order))
    check_damage(spool.folder)
    file.write_bytes(b"".join(lines[:1] + lines[2:]))
    check_damage(spool.folder)


def test_progress_is_saved_and_a_truncated_progress_file_is_harmless(state):
    spool = write([{"op": "batch", "tags": {"a": str(i)}} for i in range(4)])
    spool = RunSpool.read(spool.folder, lock=True)
    spool.ids = {"run_id": "x"}
    spool.mark_sent(1)
    spool.ids["models"] = {"m": "y"}
    spool.mark_sent(3)
    spool.release()
    reopened = RunSpool.read(spool.folder, lock=True)
    assert (reopened.num_sent, reopened.ids) == (3, {"run_id": "x", "models": {"m": "y"}})
    reopened.release()
    sent = spool.folder / journal.SENT
    sent.write_bytes(sent.read_bytes()[:-3])
    truncated = RunSpool.read(spool.folder, lock=True)
    assert truncated.num_sent == 0
    truncated.mark_sent(2)
    truncated.release()
    assert RunSpool.read(spool.folder, lock=True).num_sent == 2


def test_files_that_have_changed_are_not_sent(state):
    spool = RunSpool.create("a run", "sqlite:////somewhere/mlflow.db")
    folder = spool.new_dir()
    (folder / "figures").mkdir()
    (folder / "figures" / "x.png").write_bytes(b"as it was")
    (operation,) = spool.hash_files(folder)
    assert spool.verify_file(operation) == folder / "figures" / "x.png"
    (folder / "figures" / "x.png").write_bytes(b"as it is")
    with pytest.raises(InputError, match=r"figures/x\.png has changed"):
        spool.verify_file(operation)


def test_a_record_is_locked_while_its_process_lives(state):
    program = (
        "import sys, time\nfrom twinsqueeze.tracking.spool.journal import RunSpool\n"
        "spool = RunSpool.create('a run', 'x')\nspool.append({'op': 'batch', 'tags': {}})\n"
        "print(spool.folder, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        assert [(run.folder, run.is_locked) for run in pending_runs()] == [(folder, True)]
        with pytest.raises(BlockingIOError):
            RunSpool.read(folder, lock=True)
        assert RunSpool.read(folder).operations == [{"op": "batch", "tags": {}}]
        process.kill()
    spool = RunSpool.read(folder, lock=True)
    spool.remove()
    assert pending_runs() == []


def test_a_file_in_the_folders_place_is_refused(state):
    state.write_text("in the way")
    with pytest.raises(InputError, match="have TWINSQUEEZE_STATE name another folder"):
        RunSpool.create("a run", "x")
