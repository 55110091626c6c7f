"""Scored sentence pairs from the Hub, from files, or the bundled demo."""

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from twinsqueeze.data.hub import fetch_dataset
from twinsqueeze.errors import InputError, one_line
from twinsqueeze.errors import truncate_repr as _short
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.files import expand_user, is_dir, is_file
from twinsqueeze.utils.text import escape_control_chars

SPLITS = ("train", "dev", "test")
STSB = "sentence-transformers/stsb"
DEMO_FOLDER = Path(__file__).with_name("demo")
DEMO_NOTICE = "these are the demo pairs, made by a script of this project: a demo and no benchmark"
COLUMNS = ("sentence1", "sentence2", "score")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
# What a split may be called where it comes from.
ALIASES = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
SCALE = 5.0


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs of a split.

    Attributes:
        sentence1: The P first sentences.
        sentence2: The P second sentences.
        scores: (P,) float64, how similar people found them, 0 to 5.
    """

    sentence1: tuple[str, ...]
    sentence2: tuple[str, ...]
    scores: FloatArray

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the rows in order, scores rounded to 4 decimals."""
        digest = hashlib.sha256()
        for first, second, score in zip(self.sentence1, self.sentence2, self.scores, strict=True):
            digest.update(json.dumps([first, second, f"{score:.4f}"]).encode() + b"\n")
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class PairDataset:
    """Pairs by split.

    Attributes:
        name: What users see: stsb, demo, a Hub id, or a folder's name.
        source: Where it came from, an address or a path.
        splits: Those that were asked for, in the order train, dev, test.
        notice: What users must be told of the data, loudly; None if there is nothing.
    """

    name: str
    source: str
    splits: Mapping[str, ScoredPairs]
    notice: str | None = None

    @property
    def digest(self) -> str:
        """16 hex digits over train and dev, which fix what a training gives; test has its own."""
        text = "".join(self.splits[name].digest for name in SPLITS[:2] if name in self.splits)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_pairs(dataset: str, *, splits: Sequence[str] = SPLITS, score_max: float | None = None) -> PairDataset:
    """Reads and checks scored sentence pairs.

    Args:
        dataset: stsb, demo, a Hub id, the path of a folder with train, dev and test as .csv, .tsv, .jsonl or .parquet,
            or auto: stsb if it was downloaded before or the Hub answers within 5 seconds, else demo.
        splits: Those to read; files of others are not opened.
        score_max: Where the data's scale ends, which begins at 0. None for 5, or 1 for STS-B on the Hub.

    Raises:
        InputError: If the data can't be had or can't be used; it names the split and the row.
    """
    if unknown := set(splits) - set(SPLITS):
        raise InputError(f"split must be one of {', '.join(SPLITS)}, not {sorted(unknown)[0]!r}")
    if score_max is not None and not (math.isfinite(score_max) and score_max > 0 and math.isfinite(SCALE / score_max)):
        raise InputError(f"score_max must be a finite number above 0, not {score_max!r}")
    wanted = [name for name in SPLITS if name in splits]
    if dataset == "auto":
        try:
            return load_pairs("stsb", splits=splits, score_max=score_max)
        except InputError as error:
            notice = f"STS-B is not here, so {DEMO_NOTICE} ({error})"
            return _folder("demo", DEMO_FOLDER, wanted, None, notice)
    if dataset == "demo":
        return _folder("demo", DEMO_FOLDER, wanted, score_max, DEMO_NOTICE)
    folder = expand_user(dataset)
    if dataset != "stsb" and is_dir(folder):
        return _folder(escape_control_chars(folder.resolve().name), folder, wanted, score_max, None)
    if is_file(folder) or dataset.startswith((".", "/", "~")) or dataset.count("/") > 1 or not dataset.isprintable():
        raise InputError(
            f"dataset {_short(dataset)} is no folder that is here: give stsb, demo, a Hub id, or a folder with train, "
            "dev and test"
        )
    return _from_hub(dataset, wanted, score_max)


def _from_hub(dataset: str, wanted: Sequence[str], score_max: float | None) -> PairDataset:
    identifier = STSB if dataset == "stsb" else dataset
    if identifier == STSB and score_max is None:
        score_max = 1.0
    name = "stsb" if identifier == STSB else identifier
    found = fetch_dataset(identifier)
    rows = {}
    for split in wanted:
        names = [alias for alias in ALIASES[split] if alias in found]
        if not names:
            raise InputError(f"dataset {name!r} lacks the split {split}; it has {', '.join(found) or 'none'}")
        rows[split] = _columns(found[names[0]], f"{split} of dataset {name!r}")
    source = f"https://huggingface.co/datasets/{identifier}"
    return PairDataset(name, source, _validate(rows, name, score_max))


def _folder(name: str, folder: Path, wanted: Sequence[str], score_max: float | None, notice: str | None) -> PairDataset:
    rows = {}
    for split in wanted:
        candidates = [folder / f"{alias}{suffix}" for alias in ALIASES[split] for suffix in SUFFIXES]
        files = [path for path in candidates if is_file(path)]
        if not files:
            raise InputError(
                f"dataset {_short(str(folder))} lacks the split {split}: it needs a file "
                f"{', '.join(split + suffix for suffix in SUFFIXES[:-1])} or {split}{SUFFIXES[-1]}"
            )
        if len(files) > 1:
            raise InputError(
                f"dataset {_short(str(folder))} has two files for the split {split}, {files[0].name} and "
                f"{files[1].name}: keep one"
            )
        rows[split] = _read(files[0])
    return PairDataset(name, escape_control_chars(str(folder.resolve())), _validate(rows, name, score_max), notice)


def _read(path: Path) -> dict[str, list[Any]]:
    """The three columns of a file, scores as they stand there."""
    shown = _short(str(path))
    try:
        if path.suffix != ".parquet":
            path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{shown} can't be read: {error.strerror}") from None

    import datasets  # noqa: PLC0415 - takes a second, and not before the Hub has been asked

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it says of a broken file, we say in a line
    try:
        # A cache of its own: the library would take a file that has changed since for the one that it knows.
        with tempfile.TemporaryDirectory() as cache:
            here: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
            # The library takes a name for a pattern: data* would read data1 and data2, a::b another protocol.
            linked = Path(cache, f"pairs{path.suffix}")
            linked.symlink_to(path.resolve())
            if path.suffix == ".parquet":
                table = datasets.Dataset.from_parquet(str(linked), **here)
            elif path.suffix == ".jsonl":
                table = datasets.Dataset.from_json(str(linked), **here)
            else:
                table = _read_csv(linked, shown, here)
            return _columns(table, shown)
    except InputError:
        raise
    except Exception as error:  # the library wraps whatever its parsers raise
        cause = error.__cause__ or error
        raise InputError(f"{shown} can't be read as {path.suffix.removeprefix('.')}: {one_line(cause)}") from error


def _read_csv(path: Path, shown: str, here: dict[str, Any]) -> Any:
    import datasets  # noqa: PLC0415 - as above
    import pandas as pd  # noqa: PLC0415 - as above

    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        head = pd.read_csv(path, sep=separator, nrows=1)
    except pd.errors.EmptyDataError:
        raise InputError(f"{shown} is empty: its first line must name {', '.join(COLUMNS)}") from None
    if head.empty:  # which datasets takes for an error
        return datasets.Dataset.from_dict({str(column): [] for column in head.columns})
    # All as text, and nothing taken for a missing value: "None" and "NA" are sentences like any other.
    features = datasets.Features({str(column): datasets.Value("string") for column in head.columns})
    return datasets.Dataset.from_csv(
        str(path), sep=separator, features=features, keep_default_na=False, na_filter=False, **here
    )


def _columns(table: Any, where: str) -> dict[str, list[Any]]:
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        there = escape_control_chars(", ".join(map(str, table.column_names[:10])))[:200] or "none"
        raise InputError(f"{where} lacks the column {missing[0]}; its columns are {there}")
    return {column: list(table[column]) for column in COLUMNS}


def _validate(rows: Mapping[str, dict[str, list[Any]]], name: str, score_max: float | None) -> dict[str, ScoredPairs]:
    scores = {split: _scores(columns, f"{split} of dataset {name!r}") for split, columns in rows.items()}
    fitting = scores.get("train", next(iter(scores.values())))
    if score_max is None and fitting.max() <= 1:
        raise InputError(
            f"the scores of dataset {name!r} end at {fitting.max():g}, where a scale from 0 to 5 is expected: give "
            "score_max=1 if theirs ends at 1"
        )
    end = SCALE if score_max is None else score_max
    pairs = {}
    for split, columns in rows.items():
        where = f"{split} of dataset {name!r}"
        outside = np.flatnonzero((scores[split] < 0) | (scores[split] > end))
        if outside.size:
            row = int(outside[0])
            raise InputError(
                f"{where}, row {row + 1}: score {scores[split][row]:g} is outside the scale from 0 to {end:g}; give "
                "score_max if the scale ends elsewhere"
            )
        if np.ptp(scores[split]) == 0:
            raise InputError(f"{where}: all scores are {scores[split][0]:g}, so no correlation with them is defined")
        first, second = (_sentences(columns, column, where) for column in COLUMNS[:2])
        pairs[split] = ScoredPairs(first, second, scores[split] * (SCALE / end))
    return pairs


def _scores(columns: dict[str, list[Any]], where: str) -> FloatArray:
    values = columns["score"]
    if len(values) < 2:
        count = "one row" if values else "no rows"
        raise InputError(f"{where} has {count}, and a correlation needs two at least")
    numbers = []
    for row, value in enumerate(values, start=1):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{where}, row {row}: score {_short(value)} is no finite number")
        numbers.append(number)
    return np.array(numbers)


def _sentences(columns: dict[str, list[Any]], column: str, where: str) -> tuple[str, ...]:
    for row, text in enumerate(columns[column], start=1):
        if not isinstance(text, str):
            raise InputError(f"{where}, row {row}: {column} is {_short(text)}, no text")
        if not text.strip():
            raise InputError(f"{where}, row {row}: {column} is empty")
    return tuple(columns[column])


def scores_to_labels(scores: FloatArray, kind: str) -> FloatArray:
    """What the twins' cosine is trained towards.

    Args:
        scores: Human similarity, 0 to 5, any shape.
        kind: "tanh": (tanh(4 * (s/5 - 0.5)) + 1) / 2, which pulls middling scores apart; its ends are 0.018 and 0.982.
            "linear": s/5.

    Returns:
        Labels of the shape and dtype of `scores`, 0 to 1.
    """
    unit = scores / 5.0
    if kind == "linear":
        return unit
    if kind == "tanh":
        squashed: FloatArray = (np.tanh(4.0 * (unit - 0.5)) + 1.0) / 2.0
        return squashed
    raise ValueError(f"unknown labels {kind!r}")
