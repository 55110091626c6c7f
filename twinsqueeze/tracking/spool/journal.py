"""Runs' records on disk: what makes up a run, an operation a line, until all of it is where it belongs.

A record is a folder of `records` in the state folder. `journal.jsonl` begins with what the record is of and grows by a
line an operation, `sent.jsonl` by a line when one has been sent, and `files` has what the operations name. Every line
has a checksum over itself and its number. While a process lives, it holds the locks of the records that it writes.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from twinsqueeze.errors import InputError
from twinsqueeze.utils.files import describe_change, dir_sha256, state_dir

Operation = Mapping[str, Any]
FORMAT = 1


JOURNAL, SENT, LOCK, FILES = "journal.jsonl", "sent.jsonl", "lock", "files"


# Records appear under their names once they are whole and locked; before they begin with this.
UNFINISHED = "."


class InUseError(Exception):
    """The process that writes a record is alive."""


def records_folder() -> Path:
    """Where the records are."""
    return state_dir() / "records"


def _line(number: int, operation: Operation) -> bytes:
    text = json.dumps(operation, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return _checksum(number, text) + b" " + text + b"\n"


def _checksum(number: int, text: bytes) -> bytes:
    return hashlib.blake2b(b"%d " % number + text, digest_size=8).hexdigest().encode()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A file's operations; a last line that was not written to its end is left out.

    Raises:
        InputError: If a line is not what was written.
    """
    *lines, _ = path.read_bytes().split(b"\n")
    operations = []
    for number, line in enumerate(lines):
        checksum, _, text = line.partition(b" ")
        if checksum != _checksum(number, text):
            raise InputError(f"line {number + 1} of {path} has changed since it was written")
        operations.append(json.loads(text))
    return operations


class _Lines:
    """A file that grows by lines."""

    def __init__(self, path: Path, number: int = 0) -> None:
        self.number = number
        self._file: BinaryIO = path.open("ab", buffering=0)

    def append(self, operation: Operation, *, durable: bool) -> None:
        line = _line(self.number, operation)
        if self._file.write(line) != len(line):  # the disk filled up within it
            raise OSError(28, "No space left on device")
        if durable:
            os.fsync(self._file.fileno())
        self.number += 1

    def close(self) -> None:
        self._file.close()


@dataclass
class RunSpool:
    """A run's record that this process writes or sends.

    Attributes:
        folder: Where it is.
        about: What it is of: record (its id), name, uri (of the tracking store, without password), time.
        operations: What was in it when it was opened.
        sent: How many of them have been sent.
        known: What sending has found out: run_id and the models' ids by name.
    """

    folder: Path
    about: Mapping[str, Any]
    operations: list[dict[str, Any]] = field(default_factory=list)
    sent: int = 0
    known: dict[str, Any] = field(default_factory=dict)
    _lock: FileLock | None = None
    _journal: _Lines | None = None
    _acknowledged: _Lines | None = None
    _folders: int = 0

    @classmethod
    def create(cls, name: str, uri: str) -> "RunSpool":
        """A new one.

        Raises:
            InputError: If it can't be written.
        """
        number = uuid.uuid4().hex
        about = {"format": FORMAT, "record": number, "name": name, "uri": uri, "time": int(time.time() * 1000)}
        folder = records_folder() / number
        made = folder.with_name(UNFINISHED + number)
        try:
            made.mkdir(parents=True)
            lock = _lock(made)
            journal = _Lines(made / JOURNAL)
            journal.append(about, durable=True)
            made.rename(folder)
        except OSError as error:
            raise InputError(
                f"a run's record can't be written to {str(records_folder())!r} ({error.strerror or error}): make room "
                "there, or have TWINSQUEEZE_STATE name another folder"
            ) from error
        return cls(folder, about, _lock=lock, _journal=journal)

    @classmethod
    def open(cls, folder: Path) -> "RunSpool":
        """One whose process is gone.

        Raises:
            InUseError: If it is not.
            InputError: If what is there is not what was written.
        """
        lock = _lock(folder)
        try:
            about, operations = read_record(folder)
            sent, known = _read_sent(folder)
            sent = min(sent, len(operations))  # a disk that was full took no more, where the server did
            # What was sent is written anew: a line that was not written to its end must not have another behind it.
            (folder / SENT).unlink(missing_ok=True)
            record = cls(folder, about, operations, sent, known, lock)
            record.mark_sent(sent, known)
        except BaseException:
            lock.release()
            raise
        return record

    @classmethod
    def at(cls, folder: Path) -> "RunSpool":
        """Whatever is in a folder, to be deleted.

        Raises:
            InUseError: If its process is alive.
        """
        return cls(folder, {}, _lock=_lock(folder))

    def append(self, operation: Operation, *, durable: bool = False) -> None:
        """Writes an operation.

        Args:
            operation: `op` and what belongs to it, as JSON.
            durable: Whether to wait until the disk has it and all before it.
        """
        assert self._journal
        self._journal.append(operation, durable=durable)

    def new_folder(self) -> Path:
        """An empty folder for files that an operation will name."""
        self._folders += 1
        folder = self.folder / FILES / str(self._folders)
        folder.mkdir(parents=True)
        return folder

    def seal(self, folder: Path) -> dict[str, Any]:
        """What an operation says of a folder of files: its name and their digests. The disk has them then."""
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        return {"folder": folder.relative_to(self.folder).as_posix(), "sha256": dir_sha256(folder, ())}

    def sealed(self, operation: Operation) -> Path:
        """The folder of files of an operation.

        Raises:
            InputError: If they are not those that were sealed.
        """
        folder = self.folder / str(operation["folder"])
        if difference := describe_change(operation["sha256"], dir_sha256(folder, ())):
            raise InputError(f"the files in {folder} are not what was recorded: {difference}")
        return folder

    def mark_sent(self, sent: int, known: Mapping[str, Any]) -> None:
        """Notes how many operations have been sent, and what that has found out."""
        if self._acknowledged is None:
            self._acknowledged = _Lines(self.folder / SENT)
        self._acknowledged.append({"sent": sent, "known": dict(known)}, durable=False)

    def remove(self) -> None:
        """Deletes it: all has been sent, or nobody wants it."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Leaves it to whoever sends it later."""
        self._close()
        if self._lock:
            self._lock.release()

    def _close(self) -> None:
        for lines in (self._journal, self._acknowledged):
            if lines:
                lines.close()
        self._journal = self._acknowledged = None


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise InUseError from None
    return lock


def read_record(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a record is of, and its operations so far; nobody's lock is needed.

    Raises:
        InputError: If what is there is not what was written.
    """
    try:
        lines = read_lines(folder / JOURNAL)
    except FileNotFoundError:
        if folder.exists():
            raise InputError(f"{folder} has no {JOURNAL}") from None
        raise
    except OSError as error:
        raise InputError(f"{folder / JOURNAL} can't be read: {error.strerror}") from error
    if not lines:
        raise InputError(f"{folder / JOURNAL} has not one whole line")
    if lines[0].get("format") != FORMAT:
        raise InputError(f"{folder / JOURNAL} has format {lines[0].get('format')}, and this version reads {FORMAT}")
    return lines[0], lines[1:]


def _read_sent(folder: Path) -> tuple[int, dict[str, Any]]:
    """How many operations have been sent, and what is known from that; where that can't be read, all are sent again."""
    try:
        lines = read_lines(folder / SENT)
    except (OSError, InputError):
        lines = []
    return (lines[-1]["sent"], lines[-1]["known"]) if lines else (0, {})


def read_known(folder: Path) -> dict[str, Any]:
    """What sending a record has found out so far; nobody's lock is needed."""
    return _read_sent(folder)[1]


def is_complete(operations: Sequence[Operation]) -> bool:
    """Whether a record has all of its run."""
    return bool(operations) and operations[-1]["op"] == "end"


def in_use(folder: Path) -> bool:
    """Whether the process that writes a record is alive."""
    try:
        _lock(folder).release()
    except InUseError:
        return True
    return False


def record_folders() -> list[Path]:
    """The folders of all records."""
    try:
        return sorted(path for path in records_folder().iterdir() if path.is_dir() and path.name[0] != UNFINISHED)
    except FileNotFoundError:
        return []
