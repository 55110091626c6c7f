"""Vectors that are written as text, such as "[0.019, 0.045]": what pandas, NumPy, DuckDB and JSON write into a cell."""

import json
import re
from collections.abc import Sequence

import numpy as np

from twinsqueeze.errors import truncate_repr
from twinsqueeze.types import AnyArray

NUMBER = r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)"
GAP = r"\.\.\.|…|null|none|<?na>?"  # NumPy shortens long arrays by dots
IS_NUMBER = re.compile(rf"\s*{NUMBER}\s*", re.IGNORECASE)
IS_NUMBER_OR_GAP = re.compile(f"{NUMBER}|{GAP}", re.IGNORECASE)
# Such as array([[, followed by 0.1, np.float32(0.1) or Decimal('0.1'). Lengths are limited, or matching takes quadratic
# time.
OPENING = r"(?:[\w.]{1,20}\()?[\[({\s]{0,20}"
ELEMENT = rf"(?:[\w.]{{1,20}}\()?['\"]?(?:{NUMBER}|{GAP})['\"]?\)?"
START = re.compile(rf"{OPENING}{ELEMENT}(?:[\s,;\])}}]|$)", re.IGNORECASE)
DECORATION = re.compile(r"\b[\w.]{1,20}\(|\b\w{1,20}=[^\s,)]+|[\[\](){},;'\"]")
SURROGATE = re.compile("[\ud800-\udfff]")
MIN_NUMBERS = 8  # without a bracket: "10 000" and "1,2" are no vectors


def looks_like_vector(text: str) -> bool:
    """Return whether a text has nothing but numbers: at least 2 in square brackets, or at least 8."""
    start = START.match(text.lstrip())
    if not start:
        return False
    tokens = split_numbers(text)
    if not all(map(IS_NUMBER_OR_GAP.fullmatch, tokens)):
        return False
    return len(tokens) >= (2 if "[" in start[0] else MIN_NUMBERS)


def split_numbers(text: str) -> list[str]:
    """Return the words of a text, without brackets, commas and semicolons."""
    return DECORATION.sub(" ", text).split()


def text_fault(text: str) -> str | None:
    """Return why a text can't be encoded as a sentence, and what to do; None if it can."""
    if looks_like_vector(text):
        return f"is {truncate_repr(text)}, not a text: remove the row, or keep vectors in a column of their own"
    if SURROGATE.search(text):
        return f"has half of a surrogate pair, which tokenizers refuse: {truncate_repr(text)}"
    return None


def parse_vector(text: str) -> AnyArray | None:
    """Return the float32 numbers of a text; None if it has gaps, is cut off, is nested or has decimal commas."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        tokens = split_numbers(text)
        is_whole = text.count("[") == text.count("]") <= 1 and not (";" in text and "," in text)
        if not is_whole or not tokens or not all(map(IS_NUMBER.fullmatch, tokens)):
            return None
        values = [float(token) for token in tokens]
    try:
        return to_vector(values) if values else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def to_vector(numbers: Sequence[float] | Sequence[str]) -> AnyArray:
    """Return numbers, or texts of one number each, as float32; those beyond float32 become infinite."""
    with np.errstate(over="ignore"):
        return np.array(numbers, np.float32)
