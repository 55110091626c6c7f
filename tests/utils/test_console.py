"""Progress bars, and messages beside them, on a terminal of 80 columns."""

import io
import re
from contextlib import redirect_stderr

import pytest

from twinsqueeze.utils import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """What each line shows at the end: what was printed behind its last carriage return."""
        return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in self.getvalue().split("\n")]


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return Terminal()


def test_the_training_bar_keeps_its_values_at_80_columns(terminal):
    with redirect_stderr(terminal), console.progress("training", "epoch") as advance:
        advance(199, 200, {"loss": "0.3735", "dev Spearman": "0.7436"})
        advance(200, 200, {"loss": "0.1067", "dev Spearman": "0.7387"})
    drawn = re.split(r"[\r\n]", terminal.getvalue())
    assert max(map(len, drawn)) <= 80
    assert terminal.rows()[-2].endswith("| 200/200, 00:00 left, loss 0.1067, dev Spearman 0.7387")


def test_lines_stand_above_a_bar(terminal):
    with redirect_stderr(terminal), console.progress("encoding", "sentence") as advance:
        advance(1, 4, {})
        console.info("a line")
        console.warn("another")
        advance(4, 4, {})
    *lines, bar, end = terminal.rows()
    assert lines == ["a line", "WARNING: another"]
    assert bar.startswith("encoding: 100%|")
    assert end == ""
