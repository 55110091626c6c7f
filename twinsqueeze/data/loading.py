"""Loads datasets of every kind, which are recognized by their files and columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from twinsqueeze.data.beir import is_beir_folder, load_beir
from twinsqueeze.data.dataset import SPLITS, Dataset, RowSplit, check_splits
from twinsqueeze.data.npy_rows import NpyTable
from twinsqueeze.data.pair_columns import COLUMNS, are_scored_pairs
from twinsqueeze.data.positive_pairs import PAIR_COLUMNS, find_pair_columns, load_positive_pairs
from twinsqueeze.data.rows_alone import load_rows
from twinsqueeze.data.sentence_pairs import NAMED_DATASETS, SPLIT_ALIASES, fetch_from_hub, load_pairs
from twinsqueeze.data.table_files import FORMATS, TableFile, find_files, find_splits, split_name
from twinsqueeze.data.table_rows import open_table
from twinsqueeze.errors import InputError, truncate_repr
from twinsqueeze.utils.console import SILENT, Reporter
from twinsqueeze.utils.files import expand_user, is_dir, is_file
from twinsqueeze.utils.text import escape_control_chars

RENAMED_COLUMNS = (*COLUMNS, *PAIR_COLUMNS, "text", "vector")


def load_dataset(
    dataset: str,
    *,
    splits: Sequence[str] = SPLITS,
    score_max: float | None = None,
    columns: Mapping[str, str] = MappingProxyType({}),
    reporter: Reporter = SILENT,
) -> Dataset:
    """Loads scored pairs, queries with the passages that answer them, texts, or vectors.

    Args:
        dataset: What `load_pairs` takes, or a file, folder or Hub id of other data; files are .npy, .parquet, .csv,
            .tsv, .jsonl or .txt. Columns sentence1, sentence2 and score are scored pairs; anchor and positive (or query
            and passage, question and answer), perhaps with a negative, are queries with passages, as texts or as
            vectors; a column of texts or of vectors is rows alone. A folder with corpus.jsonl, queries.jsonl and qrels/
            has the form of BEIR. Where there are no files for dev or test, a tenth of train's rows or queries is, by a
            hash of their content.
        splits: Splits to return.
        score_max: Highest score, as for `load_pairs`.
        columns: The dataset's own names of columns, such as {"anchor": "question"}.
        reporter: Where progress, and how ambiguous files are read, is shown.

    Raises:
        InputError: If the dataset is not found, or a row is invalid.
    """
    splits = check_splits(splits)
    if unknown := set(columns) - set(RENAMED_COLUMNS):
        raise InputError(f"columns can rename {', '.join(RENAMED_COLUMNS)}, not {sorted(unknown)[0]!r}")
    loaded, path = None, expand_user(dataset)
    name, source = dataset, f"https://huggingface.co/datasets/{dataset}"
    if dataset not in NAMED_DATASETS:
        if is_dir(path) or is_file(path):
            path = path.resolve()
            name, source = escape_control_chars(path.name), escape_control_chars(str(path))
            loaded = load_beir(path) if is_beir_folder(path) else _load_table(path, columns, reporter)
        else:
            loaded = _load_from_hub(dataset, columns, reporter)
    if loaded is None:
        return load_pairs(dataset, splits=splits, score_max=score_max, columns=columns)
    return Dataset(name, source, {split: loaded[split] for split in splits}, columns=dict(columns))


def _load_from_hub(dataset: str, columns: Mapping[str, str], reporter: Reporter) -> dict[str, RowSplit] | None:
    """Loads all splits of a Hub dataset other than scored pairs, as from a folder of its splits; None for those."""
    if split_name(Path(dataset))[1]:  # a name with the suffix of a table
        raise InputError(f"dataset {truncate_repr(dataset)} not found: name an existing file or folder")
    splits = fetch_from_hub(dataset)
    if any(are_scored_pairs(split.column_names, columns) for split in splits.values()):
        return None
    with TemporaryDirectory() as parent:
        folder = Path(parent, dataset)
        folder.mkdir(parents=True)
        for name, split in splits.items():
            split.to_parquet(folder / f"{name}.parquet")
        try:
            return _load_table(folder, columns, reporter)
        except InputError as error:
            raise InputError(str(error).replace(f"{parent}/", "")) from error


def _load_table(path: Path, columns: Mapping[str, str], reporter: Reporter) -> dict[str, RowSplit] | None:
    """Loads all splits of pairs without scores, of texts, or of vectors; None for scored pairs."""
    files = _find_split_files(path)
    if files is None:
        return None
    names = _column_names(files["train"][0])
    if are_scored_pairs(names, columns):
        if not is_dir(path):
            shown = truncate_repr(str(path))
            raise InputError(f"{shown} has scored pairs: put it into a folder as train.csv, with dev.csv and test.csv")
        return None
    if pair_columns := find_pair_columns(names, columns):
        return load_positive_pairs(path.name, files, pair_columns)
    return load_rows(path.name, files, columns.get("vector", columns.get("text")), reporter)


def _find_split_files(path: Path) -> dict[str, Sequence[TableFile]] | None:
    """Returns the files of train, and of dev and test where they are; None if a folder has dev or test alone."""
    if is_file(path):
        return {"train": find_files(str(path))}
    found: dict[str, Sequence[TableFile]] = {}
    for split in SPLITS:
        tables = find_splits(path, SPLIT_ALIASES[split], FORMATS)
        if len(tables) > 1:
            names = " and ".join(sorted(tables)[:2])
            raise InputError(
                f"dataset {truncate_repr(str(path))} has two files for the split {split}, {names}: keep one"
            )
        if tables:
            found[split] = next(iter(tables.values()))
    if found:
        return found if "train" in found else None
    return {"train": find_files(str(path))}


def _column_names(file: TableFile) -> Sequence[str]:
    """Returns the names of a table's columns; none of an array or of a table without a header."""
    with open_table(file) as table:
        return () if isinstance(table, NpyTable) else table.names
