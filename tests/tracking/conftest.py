"""What the tests of tracking share: records in a folder of the test's own, and short pauses between attempts."""

from pathlib import Path

import pytest

from twinsqueeze.tracking.spool import uploader


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    """The folder of the records of runs; failed requests are retried at once."""
    monkeypatch.setenv("TWINSQUEEZE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(uploader, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(uploader, "LONGEST_PAUSE", 0.02)
    return tmp_path / "state"
