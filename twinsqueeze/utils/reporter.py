"""Where the library reports progress and messages, so that it never prints by itself."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from twinsqueeze.utils.console import Advance


class Reporter(Protocol):
    """Where progress and messages go: the module `utils.console`, or `SILENT`."""

    def progress(self, title: str, unit: str, /) -> AbstractContextManager[Advance]:
        """Returns the context of a progress bar."""

    def info(self, text: str, /) -> None:
        """Reports a message."""

    def warn(self, text: str, /) -> None:
        """Reports a warning."""


class _Silent:
    """A reporter that discards everything."""

    def progress(self, title: str, unit: str, /) -> AbstractContextManager[Advance]:
        del title, unit
        return nullcontext(lambda *_: None)

    def info(self, text: str, /) -> None:
        """Discards a message."""

    warn = info


SILENT: Reporter = _Silent()
