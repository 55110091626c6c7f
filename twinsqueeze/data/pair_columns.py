"""Which columns of a table of pairs are the sentences and the scores."""

import csv
import re
import shlex
from collections.abc import Mapping, Sequence
from io import StringIO

from twinsqueeze.errors import InputError
from twinsqueeze.utils.text import escape_control_chars

COLUMNS = ("sentence1", "sentence2", "score")
# Names of other datasets, without case and punctuation; two names that end in 1 and 2 or in a and b are pairs too.
SIMILAR_PAIRS = (("anchor", "positive"), ("premise", "hypothesis"), ("query", "passage"), ("query", "document"))
WORDS_OF_SCORES = ("score", "sim", "relat", "relevan", "rating", "gold", "label", "duplicate")


def choose_columns(names: Sequence[str], source: str, columns: Mapping[str, str]) -> list[str]:
    """Return the names that a table has for the three columns."""
    chosen = [columns.get(column, column) for column in COLUMNS]
    if not names:
        raise InputError(f"{source} is empty: it must have the columns {', '.join(chosen)}")
    for column in chosen:
        if column not in names:
            found = escape_control_chars(", ".join(map(str, names[:10])))[:200]
            raise InputError(f"{source} lacks the column {column}; its columns are {found}{_suggest_columns(names)}")
    return chosen


def are_scored_pairs(names: Sequence[str], columns: Mapping[str, str]) -> bool:
    """Return whether a table has scored pairs, by its columns: ours, renamed ones, or those of similar datasets."""
    pair, score = _similar_columns(names)
    return bool(set(columns) & set(COLUMNS)) or COLUMNS[0] in names or bool(pair and score)


def _similar_columns(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the two columns that are like those of other datasets' pairs, and the one like their scores, if any."""
    similar = {re.sub(r"[\W_]", "", name).casefold(): name for name in reversed(names)}
    numbered = [(name, name[:-1] + after) for before, after in ("12", "ab") for name in similar if name[-1:] == before]
    pair = next((pair for pair in (*numbered, *SIMILAR_PAIRS) if set(pair) <= set(similar)), ())
    others = [name for name in reversed(similar) if name not in pair]
    scores = [similar[name] for word in WORDS_OF_SCORES for name in others if word in name]
    return [similar[name] for name in pair], scores[:1]


def _suggest_columns(names: Sequence[str]) -> str:
    """Return a hint that maps the columns of other datasets to ours; nothing if none is like them."""
    if len(names) == 1 and (separator := next((mark for mark in ";\t|," if mark in names[0]), None)):
        return f": separate cells as its suffix says, not by {separator!r}"
    pair, score = _similar_columns(names)
    renamed = zip(COLUMNS, [*pair, *score], strict=False) if pair else ()
    cells = [f"{ours}={theirs}" for ours, theirs in renamed if ours != theirs]
    option, missing = StringIO(), "" if score else " A column of scores is needed too"
    csv.writer(option, lineterminator="").writerow(cells)
    return f": did you mean --columns {shlex.quote(option.getvalue())}?{missing}" if cells else ""
