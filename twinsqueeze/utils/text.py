"""Escaping of text that users chose, and removal of credentials."""

import re

from twinsqueeze.errors import describe_connection_error


def escape_control_chars(text: str) -> str:
    """Return the text on one line, with escapes for control characters and those that change the writing direction."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escape_lines(text: str) -> str:
    """Return the text as `escape_control_chars` does, line by line."""
    return "\n".join(map(escape_control_chars, text.split("\n")))


def escape_markdown(text: str) -> str:
    """Return the text such that Markdown shows it literally: no markup, no HTML, no remote images."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", escape_control_chars(text))


def escape_mathtext(text: str) -> str:
    """Return the text such that Matplotlib shows it literally, without $math$."""
    return escape_control_chars(text).replace("$", r"\$")


def redact_credentials(text: str) -> str:
    """Return the text without user names, passwords and tokens in its URLs."""
    # A database password may contain slashes; in other URLs nothing before the @ does.
    text = re.sub(r"((?:postgres|mysql|mssql|sqlite|oracle)[\w+]*://)[^@\s]*@", r"\1", text)
    text = re.sub(r"//[^/\s]*@", "//", text)
    return re.sub(r"(?i)([?&](?:\w*(?:password|passwd|pwd|token|secret|key)\w*)=)[^&\s]+", r"\1...", text)


def describe_error(error: BaseException) -> str:
    """Return an error's message without credentials, on one line of at most 500 characters; its type if it is empty."""
    text = describe_connection_error(error) or str(error)
    return " ".join(redact_credentials(text).split())[:500] or type(error).__name__


def format_value(value: object) -> str:
    """Return the shortest text of a value, as users of `mlflow run -P` type it: 0 for 0.0, true for True.

    MLflow groups runs by the text of their parameters.
    """
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
