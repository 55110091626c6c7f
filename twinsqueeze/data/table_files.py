"""Finds the files of a table, and opens them: suffixes, folders, shards, gzip and text encodings."""

import codecs
import gzip
import io
import os
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.utils.files import expand_user, is_dir, is_file
from twinsqueeze.utils.text import escape_control_chars

STANDARD_INPUT = "-"
FORMATS = ("npy", "parquet", "csv", "jsonl", "txt", "tsv")
OTHER_SUFFIXES = {"json": "jsonl", "ndjson": "jsonl", "pq": "parquet"}
GZIP_MAGIC, NPY_MAGIC = b"\x1f\x8b", b"\x93NUMPY"
# UTF-32 comes first, since its mark begins with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]{16})?", re.IGNORECASE)
HUB_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
MAX_FILES = 20_000  # a limit, so that passing "/" or a home directory by mistake fails soon


@dataclass(frozen=True)
class TableFile:
    """A file of rows; without a path, standard input. `name` is shown in messages."""

    path: Path | None
    name: str
    format: str  # one of FORMATS; "auto" on standard input, where the content decides


@dataclass
class OpenedFile:
    """The bytes of a file. `raw` is the file itself, `stream` what gzip makes of it."""

    file: TableFile
    raw: Any
    stream: Any

    @property
    def format(self) -> str:
        """The file's format; that of standard input is npy or txt if it was not given."""
        if self.file.format != "auto":
            return self.file.format
        return "npy" if self.stream.peek(6).startswith(NPY_MAGIC) else "txt"

    def text(self, newline: str) -> io.TextIOWrapper:
        """Return the text; an `InputError` if it is UTF-16 or UTF-32 without a byte order mark."""
        start = self.stream.peek(64)[:64]
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8-sig")
        if encoding == "utf-8-sig" and (guess := _encoding_without_mark(start)):
            raise InputError(f"{self.file.name} seems to be {guess} without a byte order mark: save it as UTF-8")
        return io.TextIOWrapper(self.stream, encoding=encoding, newline=newline)

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self.file.path:
            self.raw.close()


def split_name(path: Path) -> tuple[str, str | None]:
    """Return a file's name without suffixes, and the format that they stand for, such as csv for .CSV.gz."""
    name = path.name[:-3] if path.suffix.lower() == ".gz" else path.name
    stem, _, suffix = name.rpartition(".")
    format_ = OTHER_SUFFIXES.get(suffix.lower(), suffix.lower())
    return (stem, format_) if stem and format_ in FORMATS else (name, None)


def find_files(source: str, format_: str = "auto") -> list[TableFile]:
    """Return the file of that name, the files of a folder in order, or standard input ("-")."""
    if format_ not in ("auto", *FORMATS):
        raise InputError(f"format must be one of auto, {', '.join(FORMATS)}, not {format_!r}")
    if source == STANDARD_INPUT:
        return [TableFile(None, "standard input", format_)]
    path = expand_user(source)
    if is_dir(path):
        return _files_of_folder(path, source, format_)
    if not is_file(path):
        raise InputError(f"input {source!r} is not there: name a file or a folder of files")
    found = split_name(path)[1] if format_ == "auto" else format_
    if found is None:
        raise InputError(f"input {source!r} ends in none of .{', .'.join(FORMATS)}: name its format")
    return [TableFile(path, escape_control_chars(source), found)]


def find_splits(folder: Path, names: Collection[str], formats: Collection[str]) -> dict[str, list[TableFile]]:
    """Return the files of a split by how they are called, such as train.csv or train-*-of-2.parquet.

    They are in the folder or its folder "data". A folder named after the split, as Spark writes it, counts as a file.
    """
    found: dict[str, list[TableFile]] = defaultdict(list)
    for place in filter(is_dir, (folder, folder / "data")):
        for path in sorted(place.iterdir()):
            stem, format_ = split_name(path)
            shard = SHARD.fullmatch(stem)
            if (shard["name"] if shard else stem).casefold() not in names:
                continue
            if is_dir(path):
                if files := [file for file in _list_files(path) if file.format in formats]:
                    found[str(path.relative_to(folder))] = _of_one_format(files, str(path))
            elif format_ in formats:
                key = f"{shard['name']}-*-of-{shard['count']}.{format_}" if shard else path.name
                found[str(place.relative_to(folder) / key)].append(
                    TableFile(path, escape_control_chars(str(path)), str(format_))
                )
    for key, files in found.items():
        _check_shards(key, files)
    return found


def _check_shards(key: str, files: list[TableFile]) -> None:
    shards = [SHARD.fullmatch(split_name(file.path)[0]) for file in files if file.path]
    numbers = sorted(int(shard["number"]) for shard in shards if shard)
    if shards[0] and "-*-of-" in key and numbers != list(range(int(shards[0]["count"]))):
        shown = f"{len(numbers)} files, number {', '.join(map(str, numbers[:10]))}"
        raise InputError(f"{key} has {shown}: it needs one of each number from 0 to {int(shards[0]['count']) - 1}")


def _files_of_folder(folder: Path, source: str, format_: str) -> list[TableFile]:
    files = [file for file in _list_files(folder, format_) if file.path and file.path.stat().st_size]
    if not files:
        raise InputError(f"input {source!r} is a folder without files of rows (.{', .'.join(FORMATS)}): name a file")
    return _of_one_format(files, source)


def _list_files(folder: Path, format_: str = "auto") -> list[TableFile]:
    """List the files in order, part-2 before part-10, without those that Spark and others hide by a dot or a _."""
    paths: list[Path] = []
    try:
        for path, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(("_", "."))]
            paths += [Path(path, name) for name in names if not name.startswith(("_", "."))]
            if len(paths) > MAX_FILES:
                raise InputError(
                    f"folder {str(folder)!r} has more than {MAX_FILES:,} files: name a folder of rows alone"
                )
    except OSError as error:
        raise InputError(f"folder {str(folder)!r} can't be read: {error.strerror or one_line(error)}") from error
    files = []
    for file in sorted(paths, key=lambda path: _natural_key(path.relative_to(folder).parts)):
        found = split_name(file)[1] if format_ == "auto" else format_
        if found and not is_file(file):
            raise InputError(f"file {str(file)!r} can't be read: it is a link to nothing, or no file")
        if found and file.name not in HUB_METADATA:
            files.append(TableFile(file, escape_control_chars(str(file)), found))
    return files


def _raise(error: OSError) -> None:
    raise error


def _natural_key(parts: Iterable[str]) -> list[list[tuple[int, str]]]:
    return [[(int(run), "") if run.isdecimal() else (-1, run) for run in re.split(r"(\d+)", part)] for part in parts]


def _of_one_format(files: list[TableFile], source: str) -> list[TableFile]:
    """Check that all files have one format; .json files beside others are taken for metadata."""
    rows = [file for file in files if file.path and file.path.suffix.lower() != ".json"] or files
    for file in rows:
        if file.format != rows[0].format:
            names = f"{rows[0].name} and {file.name}"
            raise InputError(f"folder {source!r} has files of several formats, {names}: name one file or its format")
    return rows


def open_file(file: TableFile) -> OpenedFile:
    """Open a file or standard input, gzipped or not; an `InputError` if it can't be read or is empty."""
    shown = file.name if file.path is None else repr(file.name)
    try:
        raw: Any = file.path.open("rb") if file.path else sys.stdin.buffer
        is_gzip = raw.peek(2).startswith(GZIP_MAGIC)
        stream = gzip.GzipFile(fileobj=raw) if is_gzip else raw
        if not stream.peek(1):
            raise InputError(f"input {shown} is empty")
    except (OSError, EOFError) as error:
        raise InputError(f"input {shown} can't be read: {getattr(error, 'strerror', '') or one_line(error)}") from error
    return OpenedFile(file, raw, stream)


def _encoding_without_mark(start: bytes) -> str | None:
    """Return the encoding of Latin text whose every second, or three of four bytes are zero; None otherwise."""
    if len(start) < 4 or 0 not in start[:4]:
        return None
    zeros = [all(byte == 0 for byte in start[place::4]) for place in range(4)]
    names = {
        (False, True, False, True): "UTF-16",
        (True, False, True, False): "UTF-16",
        (False, True, True, True): "UTF-32",
        (True, True, True, False): "UTF-32",
    }
    return names.get((zeros[0], zeros[1], zeros[2], zeros[3]))
