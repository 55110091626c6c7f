"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line: what was given, why it can't be used, and the way out. Commands print it as it is and exit
    with 2; every other exception is a fault of ours and keeps its traceback.
    """


def one_line(error: object, limit: int = 300) -> str:
    """An error's text on one line of at most `limit` characters; its type's name where it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
