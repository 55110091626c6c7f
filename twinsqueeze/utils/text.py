"""Text that others chose, shown where some characters would be taken for more than themselves."""

import re


def escape_control_chars(text: str) -> str:
    """The text on one line, with control characters and those that change the direction of writing as escapes.

    A terminal obeys the first, and the second show a name as another.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escape_markdown(text: str) -> str:
    """The text as it stands, where Markdown is read: no markup, no HTML, no picture that is fetched from elsewhere."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", escape_control_chars(text))


def escape_mathtext(text: str) -> str:
    """The text as it stands, where Matplotlib takes what is between dollars for mathematics."""
    return escape_control_chars(text).replace("$", r"\$")


def redact_credentials(text: str) -> str:
    """The text without the users' names, passwords and tokens that may stand in its addresses."""
    # A database's password may have slashes in it, what stands before the @ of another address may not.
    text = re.sub(r"((?:postgres|mysql|mssql|sqlite|oracle)[\w+]*://)[^@\s]*@", r"\1", text)
    text = re.sub(r"//[^/\s]*@", "//", text)
    return re.sub(r"(?i)([?&](?:\w*(?:password|passwd|pwd|token|secret|key)\w*)=)[^&\s]+", r"\1...", text)


def describe_error(error: BaseException) -> str:
    """An error's message on one line of at most 500 characters, without credentials; its type if it has no message."""
    return " ".join(redact_credentials(str(error)).split())[:500] or type(error).__name__
