"""The one exception that is the user's to mend."""

import reprlib


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line: what was given, why it can't be used, and the way out. Commands print it as it is and exit
    with 2; every other exception is a fault of ours and keeps its traceback.
    """


def one_line(error: object, limit: int = 300) -> str:
    """An error's text on one line of at most `limit` characters; its type's name where it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def short(value: object, limit: int = 100) -> str:
    """A value as Python writes it, of at most `limit` characters; of a nested one only the outer parts."""
    shown = reprlib.Repr()
    # A file of a few lines can nest values that would fill the memory as text.
    shown.maxlevel, shown.maxstring, shown.maxother, shown.maxlong = 3, limit, limit, limit
    try:
        text = shown.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
