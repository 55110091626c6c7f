import os

import pytest

from tests.helpers.forks import FORKS
from twinsqueeze.utils.disk_cache import DiskCache, default_cache_dir


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache")


def test_put_and_get(cache):
    assert cache.get("key") is None
    cache.put("key", b"payload")
    assert cache.get("key") == b"payload"
    assert cache.warnings == []
    assert [path.name for path in cache.folder.iterdir()] == ["key"]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:200] + b"?" + content[201:], lambda content: content[:-1], lambda content: b""],
    ids=["changed", "truncated", "empty"],
)
def test_a_damaged_file_is_ignored_with_a_warning(cache, damage):
    cache.put("key", b"payload" * 100)
    (cache.folder / "key").write_bytes(damage((cache.folder / "key").read_bytes()))
    assert cache.get("key") is None
    assert "damaged" in cache.warnings[0]
    cache.put("key", b"again")
    assert cache.get("key") == b"again"


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "cache")
    cache.put("key", b"payload")
    assert cache.get("key") is None
    assert "can't be" in cache.warnings[0]


def test_a_full_disk_leaves_no_partial_file(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache.put("key", b"payload")
    assert list(cache.folder.iterdir()) == []
    assert "No space left" in cache.warnings[0]


def write_often(folder, number):
    for _ in range(50):
        DiskCache(folder).put("key", bytes([number]) * 100_000)


def test_concurrent_writers_never_mix_payloads(tmp_path):
    writers = [FORKS.Process(target=write_often, args=(tmp_path, number)) for number in (1, 2, 3)]
    for writer in writers:
        writer.start()
    cache, read = DiskCache(tmp_path), set()
    while any(writer.is_alive() for writer in writers):
        read.add(cache.get("key"))
    for writer in writers:
        writer.join()
    assert read - {None}
    assert read <= {None, *(bytes([number]) * 100_000 for number in (1, 2, 3))}
    assert cache.warnings == []


def test_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TWINSQUEEZE_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("TWINSQUEEZE_CACHE")
    assert default_cache_dir().name == "twinsqueeze"
