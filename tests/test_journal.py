"""Records on disk: whatever happens to the file, what is read is what was written, or refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinsqueeze.errors import InputError
from twinsqueeze.tracking.spool import journal
from twinsqueeze.tracking.spool.journal import InUseError, RunSpool, read_record, record_folders

# What JSON keeps as it was.
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
anew = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TWINSQUEEZE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def written(what: list[dict]) -> RunSpool:
    record = RunSpool.create("a run", "sqlite:////somewhere/mlflow.db")
    for operation in what:
        record.append(operation)
    record.release()
    return record


@anew
@given(operations, st.data())
def test_a_file_that_is_cut_loses_its_last_line_at_most(state, what, data):
    record = written(what)
    file = record.folder / journal.JOURNAL
    whole = file.read_bytes()
    cut = data.draw(st.integers(len(whole.split(b"\n")[0]) + 1, len(whole)))
    file.write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n") - 1
    assert read_record(record.folder) == (record.about, what[:lines])
    assert RunSpool.open(record.folder).operations == what[:lines]


@anew
@given(operations, st.data())
def test_a_flipped_bit_is_refused_or_the_end_of_the_last_line(state, what, data):
    record = written(what)
    file = record.folder / journal.JOURNAL
    whole = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(whole)
    if place == len(whole) - 1:  # the newline that says that the last line is whole
        if what:
            assert read_record(record.folder)[1] == what[:-1]
        return
    with pytest.raises(InputError, match="has changed since it was written"):
        read_record(record.folder)


@anew
@given(operations.filter(lambda what: len(what) > 1), st.data())
def test_lines_in_another_order_or_left_out_are_refused(state, what, data):
    record = written(what)
    file = record.folder / journal.JOURNAL
    lines = file.read_bytes().splitlines(keepends=True)
    order = data.draw(st.permutations(range(len(lines))).filter(lambda order: order != sorted(order)))
    file.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(InputError, match="has changed since it was written"):
        read_record(record.folder)
    file.write_bytes(b"".join(lines[:1] + lines[2:]))
    with pytest.raises(InputError, match="has changed since it was written"):
        read_record(record.folder)


def test_what_was_sent_is_not_sent_again_and_a_torn_line_of_it_is_harmless(state):
    what = [{"op": "tags", "values": {"a": str(i)}} for i in range(4)]
    record = written(what)
    record = RunSpool.open(record.folder)
    record.mark_sent(1, {"run_id": "x"})
    record.mark_sent(3, {"run_id": "x", "models": {"m": "y"}})
    record.release()
    again = RunSpool.open(record.folder)
    assert (again.sent, again.known) == (3, {"run_id": "x", "models": {"m": "y"}})
    again.release()
    sent = record.folder / journal.SENT
    sent.write_bytes(sent.read_bytes()[:-3])
    torn = RunSpool.open(record.folder)
    assert torn.sent == 0
    torn.mark_sent(2, {})
    torn.release()
    assert RunSpool.open(record.folder).sent == 2


def test_files_that_have_changed_are_not_sent(state):
    record = RunSpool.create("a run", "sqlite:////somewhere/mlflow.db")
    folder = record.new_folder()
    (folder / "figures").mkdir()
    (folder / "figures" / "x.png").write_bytes(b"as it was")
    operation = {"op": "files", **record.seal(folder)}
    assert record.sealed(operation) == folder
    (folder / "figures" / "x.png").write_bytes(b"as it is")
    with pytest.raises(InputError, match=r"figures/x\.png has changed"):
        record.sealed(operation)


def test_a_record_is_in_use_while_its_process_lives(state):
    program = (
        "import sys, time\nfrom twinsqueeze.tracking.spool.journal import RunSpool\n"
        "record = RunSpool.create('a run', 'x')\nrecord.append({'op': 'tags', 'values': {}})\n"
        "print(record.folder, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        assert record_folders() == [folder]
        with pytest.raises(InUseError):
            RunSpool.open(folder)
        assert read_record(folder)[1] == [{"op": "tags", "values": {}}]
        process.kill()
    record = RunSpool.open(folder)
    record.remove()
    assert record_folders() == []


def test_a_file_in_the_folders_place_is_refused(state):
    state.write_text("in the way")
    with pytest.raises(InputError, match="have TWINSQUEEZE_STATE name another folder"):
        RunSpool.create("a run", "x")
