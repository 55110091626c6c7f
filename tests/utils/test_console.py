import io
import re
from contextlib import redirect_stderr

from twinsqueeze.utils import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_keeps_its_values_at_80_columns_and_lines_stand_above_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    with redirect_stderr(Terminal()) as terminal, console.progress("training", "epoch") as advance:
        advance(199, 200, {"loss": "0.3735", "dev Spearman": "0.7436"})
        console.info("a line")
        console.warn("another")
        advance(200, 200, {"loss": "0.1067", "dev Spearman": "0.7387"})
    assert max(map(len, re.split(r"[\r\n]", terminal.getvalue()))) <= 80
    # What each line shows at the end is what was printed behind its last carriage return.
    *lines, bar, end = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in terminal.getvalue().split("\n"))
    assert lines == ["a line", "WARNING: another"]
    assert bar.startswith("training: 100%|")
    assert bar.endswith("| 200/200, 00:00 left, loss 0.1067, dev Spearman 0.7387")
    assert end == ""
