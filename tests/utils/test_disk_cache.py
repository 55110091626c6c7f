import os
from unittest.mock import Mock

import pytest

from tests.helpers.forks import FORKS
from twinsqueeze.utils.disk_cache import DiskCache, default_cache_dir


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache")


def test_a_damaged_file_is_ignored_with_a_warning(cache):
    assert cache.get("key") is None
    for damage in (lambda whole: whole[:200] + b"?" + whole[201:], lambda whole: whole[:-1], lambda _: b""):
        cache.put("key", b"payload" * 100)
        assert cache.get("key") == b"payload" * 100
        assert cache.warnings == []
        (file,) = cache.folder.iterdir()
        file.write_bytes(damage(file.read_bytes()))
        assert cache.get("key") is None
        assert "damaged" in cache.warnings.pop()


def test_a_folder_that_cannot_be_written_is_a_warning(cache):
    cache.folder.write_text("in the way")
    cache.put("key", b"payload")
    assert cache.get("key") is None
    assert ["can't be written" in cache.warnings[0], "can't be read" in cache.warnings[1]] == [True, True]


def test_a_full_disk_leaves_no_partial_file(cache, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    cache.put("key", b"payload")
    assert list(cache.folder.iterdir()) == []
    assert "No space left" in cache.warnings[0]


def write_often(folder, payload):
    for _ in range(50):
        DiskCache(folder).put("key", payload)


def test_concurrent_writers_never_mix_payloads(cache):
    payloads = [bytes([number]) * 100_000 for number in (1, 2, 3)]
    writers = [FORKS.Process(target=write_often, args=(cache.folder, payload)) for payload in payloads]
    for writer in writers:
        writer.start()
    read = set()
    while any(writer.is_alive() for writer in writers):
        read.add(cache.get("key"))
    assert read - {None}
    assert read <= {None, *payloads}
    assert cache.warnings == []


def test_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TWINSQUEEZE_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("TWINSQUEEZE_CACHE")
    assert default_cache_dir().name == "twinsqueeze"
