"""Stores runs on disk until the tracking store has them.

Each run has a record, a folder in `records/` of the state folder:

    journal.jsonl  a header, then one operation per line; locked by the process that writes or uploads the record
    sent.json      how many operations the tracking store has, and the ids that it assigned
    files/         the files that operations name

Each line of the journal begins with a checksum over its number and its text.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from twinsqueeze.errors import InputError
from twinsqueeze.utils.files import dir_sha256, file_sha256, state_dir

# `op`, such as "batch", and what `RunReplayer` needs to send it, all JSON.
Operation = Mapping[str, Any]
JOURNAL, SENT, FILES = "journal.jsonl", "sent.json", "files"


@dataclass(eq=False)
class RunSpool:
    """The record of one run."""

    folder: Path
    name: str = "a record"  # of the run
    uri: str = ""  # of its tracking store, without credentials
    start_time: int = 0  # milliseconds since 1970
    operations: list[Operation] = field(default_factory=list)  # of the journal when it was created or read
    num_sent: int = 0  # operations that the tracking store has
    ids: dict[str, Any] = field(default_factory=dict)  # run_id, experiment_id and models (by name) that it assigned
    damage: str | None = None  # why the record can't be read
    _journal: BinaryIO | None = None
    _num_lines: int = 0

    @classmethod
    def create(cls, name: str, uri: str, *operations: Operation) -> "RunSpool":
        """Create and lock a record; raise an `InputError` if it can't be written."""
        folder = records_dir() / uuid.uuid4().hex
        hidden = folder.with_name(f".{folder.name}")  # until it is locked
        header = name, uri, int(time.time() * 1000)
        try:
            hidden.mkdir(parents=True)
            spool = cls(folder, *header, operations=list(operations), _journal=_lock(hidden))
            spool.append(header, *operations)
            hidden.rename(folder)
        except OSError as error:
            raise InputError(
                f"a run's record can't be written to {str(records_dir())!r} ({error.strerror or error}): make room "
                "there, or have TWINSQUEEZE_STATE name another folder"
            ) from error
        return spool

    @classmethod
    def read(cls, folder: Path, *, lock: bool = False) -> "RunSpool":
        """Read a record, and `lock` it; a `BlockingIOError` says that another process has it."""
        journal = _lock(folder) if lock else None
        try:
            num_sent, ids = json.loads((folder / SENT).read_bytes())
        except (OSError, ValueError):  # nothing was sent, or all is sent again
            num_sent, ids = 0, {}
        spool = cls(folder, num_sent=num_sent, ids=ids, _journal=journal)
        try:
            header, *spool.operations = _read_lines(folder / JOURNAL)
            spool.name, spool.uri, spool.start_time = header
        except (OSError, InputError) as error:
            spool.damage = str(error)
        return spool

    def __str__(self) -> str:
        return f"{self.name} ({self.run_id or self.folder.name})"

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; empty if the tracking store does not have it."""
        return str(self.ids.get("run_id", ""))

    @property
    def experiment_id(self) -> str:
        """Id of the run's experiment; empty if unknown."""
        requested = self.operations[0].get("experiment_id") if self.operations else None
        return str(self.ids.get("experiment_id") or requested or "")

    @property
    def is_complete(self) -> bool:
        """Whether the operations include the end of the run."""
        return bool(self.operations) and self.operations[-1]["op"] == "end"

    @property
    def is_locked(self) -> bool:
        """Whether a process writes or uploads the record."""
        try:
            _lock(self.folder).close()
        except OSError as error:
            return isinstance(error, BlockingIOError)
        return False

    def append(self, *operations: Any) -> None:
        """Append operations to the journal."""
        assert self._journal
        lines = b"".join(_encode_line(number, each) for number, each in enumerate(operations, self._num_lines))
        if self._journal.write(lines) != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._num_lines += len(operations)

    def new_dir(self) -> Path:
        """Create an empty folder for files of the next operations."""
        (self.folder / FILES).mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.folder / FILES))

    def hash_files(self, folder: Path) -> list[Operation]:
        """Return an operation for each file of a folder from `new_dir`."""
        hashes = dir_sha256(folder, exclude=())
        return [{"op": "file", "folder": folder.name, "name": name, "sha256": sha} for name, sha in hashes.items()]

    def verify_file(self, operation: Operation) -> Path:
        """Return the path of an operation's file; raise an `InputError` if it is missing or has changed."""
        path = Path(self.folder, FILES, operation["folder"], operation["name"])
        if not path.is_file() or file_sha256(path) != operation["sha256"]:
            raise InputError(f"{path} has changed since it was recorded, or is missing")
        return path

    def mark_sent(self, num_sent: int) -> None:
        """Save how many operations the tracking store has, and the ids that it assigned."""
        self.num_sent = num_sent
        new = self.folder / f"{SENT}.new"
        new.write_text(json.dumps([num_sent, self.ids]), encoding="utf-8")
        new.replace(self.folder / SENT)

    def remove(self) -> None:
        """Delete the record."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Unlock the record for other processes."""
        if self._journal:
            self._journal.close()


def records_dir() -> Path:
    """The folder of all records."""
    return state_dir() / "records"


def pending_runs() -> list[RunSpool]:
    """All records, the oldest first."""
    runs = [RunSpool.read(path) for path in records_dir().glob("[!.]*")]
    existing = [run for run in runs if run.folder.exists()]  # not uploaded in the meantime
    return sorted(existing, key=lambda run: run.start_time)


def _lock(folder: Path) -> BinaryIO:
    """Open and lock a journal; the lock ends when it is closed or the process is gone."""
    journal = (folder / JOURNAL).open("ab", buffering=0)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        journal.close()
        raise
    return journal


def _encode_line(number: int, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return _checksum(number, text) + b" " + text + b"\n"


def _read_lines(path: Path) -> list[Any]:
    """Parse the complete lines of a file; a last line without its newline was not written to its end."""
    *lines, _ = path.read_bytes().split(b"\n")
    if not lines:
        raise InputError(f"{path} has no complete line")
    values = []
    for number, line in enumerate(lines):
        checksum, _, text = line.partition(b" ")
        if checksum != _checksum(number, text):
            raise InputError(f"line {number + 1} of {path} has changed since it was written")
        values.append(json.loads(text))
    return values


def _checksum(number: int, text: bytes) -> bytes:
    return hashlib.blake2b(b"%d " % number + text, digest_size=8).hexdigest().encode()
