"""Stores runs on disk until the tracking store has them.

Each run has a record, a folder in `records/` of the state folder:

    journal.jsonl  a header, then one operation per line; locked by the process that writes or uploads the record
    sent.jsonl     how many operations the tracking store has, and the ids that it assigned
    files/         the files that operations name

Each line begins with a checksum over its number and its text.
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
from twinsqueeze.utils.files import describe_file_change, file_sha256, state_dir

# `op`, such as "batch", and what `RunReplayer` needs to send it, all JSON.
Operation = Mapping[str, Any]
JOURNAL, SENT, FILES = "journal.jsonl", "sent.jsonl", "files"


class RecordLockedError(Exception):
    """Another process writes or uploads the record."""


@dataclass(eq=False)
class RunSpool:
    """The record of one run.

    Attributes:
        folder: The record's folder.
        name: Name of the run.
        uri: Address of its tracking store, without credentials.
        start_time: Milliseconds since 1970.
        operations: The operations that were in the journal when it was read.
        num_sent: Number of operations that the tracking store has.
        ids: `run_id`, `experiment_id` and `models` (ids by name), as far as the tracking store has assigned them.
        is_locked: Whether another process wrote or uploaded the record when it was read.
        damage: Why the record can't be read; None if it can.
    """

    folder: Path
    name: str = "a record"
    uri: str = ""
    start_time: int = 0
    operations: list[dict[str, Any]] = field(default_factory=list)
    num_sent: int = 0
    ids: dict[str, Any] = field(default_factory=dict)
    is_locked: bool = False
    damage: str | None = None
    _journal: BinaryIO | None = None
    _num_lines: int = 0

    @classmethod
    def create(cls, name: str, uri: str) -> "RunSpool":
        """Create and lock an empty record.

        Raises:
            InputError: If it can't be written.
        """
        folder = records_dir() / uuid.uuid4().hex
        hidden = folder.with_name(f".{folder.name}")  # until it is locked
        header: dict[str, Any] = {"name": name, "uri": uri, "start_time": int(time.time() * 1000)}
        try:
            hidden.mkdir(parents=True)
            spool = cls(folder, **header, _journal=_lock(hidden))
            spool.append(header, durable=True)
            hidden.rename(folder)
        except OSError as error:
            raise InputError(
                f"a run's record can't be written to {str(records_dir())!r} ({error.strerror or error}): make room "
                "there, or have TWINSQUEEZE_STATE name another folder"
            ) from error
        return spool

    @classmethod
    def open(cls, folder: Path) -> "RunSpool":
        """Lock and read a record.

        Raises:
            RecordLockedError: If another process has it.
        """
        journal = _lock(folder)
        spool = cls.read(folder)
        spool._journal = journal
        return spool

    @classmethod
    def read(cls, folder: Path) -> "RunSpool":
        """Read a record without locking it; see `damage` for whether that succeeded."""
        try:
            ((num_sent, ids),) = _read_lines(folder / SENT)
        except (OSError, ValueError):  # nothing was sent, or all is sent again
            num_sent, ids = 0, {}
        is_locked = False
        try:
            is_locked = _is_locked(folder)
            header, *operations = _read_lines(folder / JOURNAL)
        except (OSError, InputError) as error:
            return cls(folder, ids=ids, is_locked=is_locked, damage=str(error))
        # After a full disk the tracking store may have more operations than the journal.
        num_sent = min(num_sent, len(operations))
        return cls(folder, **header, operations=operations, num_sent=num_sent, ids=ids, is_locked=is_locked)

    def __str__(self) -> str:
        return f"{self.name} ({self.run_id or self.folder.name})"

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; empty if the tracking store does not have it."""
        return str(self.ids.get("run_id", ""))

    @property
    def experiment_id(self) -> str:
        """Id of the run's experiment; empty if unknown."""
        named = self.operations[0].get("experiment") if self.operations else None
        return str(self.ids.get("experiment_id") or named or "")

    @property
    def is_complete(self) -> bool:
        """Whether the operations include the end of the run."""
        return bool(self.operations) and self.operations[-1]["op"] == "end"

    def append(self, *operations: Operation, durable: bool = False) -> None:
        """Append operations to the journal; `durable` waits until they are on the disk."""
        assert self._journal
        lines = b"".join(encode_line(number, each) for number, each in enumerate(operations, self._num_lines))
        if self._journal.write(lines) != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(self._journal.fileno())
        self._num_lines += len(operations)

    def new_dir(self) -> Path:
        """Create an empty folder for files of the next operations."""
        (self.folder / FILES).mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.folder / FILES))

    def hash_files(self, folder: Path) -> list[dict[str, str]]:
        """Flush the files of a folder from `new_dir` to the disk, and return an operation for each."""
        operations = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            names = {"folder": folder.name, "name": path.relative_to(folder).as_posix()}
            operations.append({"op": "file", **names, "sha256": file_sha256(path)})
        return operations

    def verify_file(self, operation: Operation) -> Path:
        """Return the path of an operation's file.

        Raises:
            InputError: If the file is missing or has changed.
        """
        path = Path(self.folder, FILES, operation["folder"], operation["name"])
        if not path.is_file():
            raise InputError(f"{path} is missing")
        if change := describe_file_change(operation["name"], operation["sha256"], file_sha256(path)):
            raise InputError(f"a file in {path.parent} is not what was recorded: {change}")
        return path

    def mark_sent(self, num_sent: int) -> None:
        """Save how many operations the tracking store has, and the ids that it assigned."""
        self.num_sent = num_sent
        new = self.folder / f"{SENT}.new"
        new.write_bytes(encode_line(0, [num_sent, self.ids]))
        new.replace(self.folder / SENT)

    def remove(self) -> None:
        """Delete the record."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Unlock the record, so that another process can upload it."""
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
    journal = (folder / JOURNAL).open("ab", buffering=0)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        journal.close()
        raise RecordLockedError from None
    return journal


def _is_locked(folder: Path) -> bool:
    try:
        _lock(folder).close()
    except RecordLockedError:
        return True
    return False


def encode_line(number: int, value: Any) -> bytes:
    """Encode a JSON value as the line of that number."""
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
