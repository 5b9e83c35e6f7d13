"""The cache of spans: a limit, room on the disk, and nothing removed that somebody uses."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from mesh.errors import DiskFull
from node_runner.weights.checkpoint_cache import (
    RECORD_FILE,
    CheckpointCache,
    CheckpointRecord,
    release,
)
from node_runner.weights.range_assembly import WEIGHTS

SIZE = 1000
RECORD_ROOM = 400
"""Bytes that a checkpoint's record takes beside it, at most."""

Usage = namedtuple("Usage", "total used free")


def make(folder: Path) -> CheckpointRecord:
    file = folder / WEIGHTS
    file.write_bytes(bytes(SIZE))
    stat = file.stat()
    return CheckpointRecord("asked", "sizes", SIZE, stat.st_mtime_ns, "0" * 64)


def obtain(cache: CheckpointCache, *keys: str, used: bool = False) -> list[Path]:
    """One after the other; each is let go of unless it is used."""
    entries = []
    for key in keys:
        entries.append(cache.obtain(key, SIZE, make))
        if not used:
            release(entries[-1])
    return entries


def there(folder: Path) -> set[str]:
    return {entry.name for entry in folder.glob("[!.]*")}


def age(folder: Path, key: str, seconds: int) -> None:
    """As if it had been used last so long ago."""
    os.utime(folder / ".locks" / f"{key}.using", (1e9 - seconds, 1e9 - seconds))


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path, limit=3 * (SIZE + RECORD_ROOM))
    obtain(cache, "one", "two", "three")
    for number, key in enumerate(("two", "three", "one")):
        age(tmp_path, key, 100 - number)
    obtain(cache, "four")
    assert there(tmp_path) == {"one", "three", "four"}


def test_using_it_makes_it_young(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path, limit=2 * (SIZE + RECORD_ROOM))
    obtain(cache, "one", "two")
    age(tmp_path, "one", 200)
    age(tmp_path, "two", 100)
    obtain(cache, "one", "three")
    assert there(tmp_path) == {"one", "three"}


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path, limit=2 * (SIZE + RECORD_ROOM))
    (one,) = obtain(cache, "one", used=True)
    obtain(cache, "two")
    age(tmp_path, "one", 200)
    obtain(cache, "three")
    assert there(tmp_path) == {"one", "three"}
    with pytest.raises(DiskFull, match=r"in use. Raise --cache-gb"):
        cache.obtain("large", SIZE + 2 * RECORD_ROOM, make)
    release(one)
    obtain(cache, "four", "five")
    assert "one" not in there(tmp_path)


def test_what_is_half_made_is_not_taken_for_whole_and_goes_too(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(folder: Path) -> CheckpointRecord:
        make(folder)
        raise Killed

    cache = CheckpointCache(tmp_path, limit=2 * (SIZE + RECORD_ROOM))
    with pytest.raises(Killed):
        cache.obtain("half", SIZE, die)
    assert there(tmp_path) == set()
    assert cache.latest("asked") is None
    obtain(cache, "one", "two")
    assert there(tmp_path) == {"one", "two"}
    assert not list(tmp_path.glob(".making-*"))


def test_what_others_keep_in_the_folder_is_not_touched(tmp_path: Path) -> None:
    for name in ("photos", ".making-of"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.jpg").write_bytes(bytes(50 * SIZE))
        os.utime(tmp_path / name, (0, 0))
    cache = CheckpointCache(tmp_path, limit=2 * (SIZE + RECORD_ROOM))
    obtain(cache, "one", "two", "three")
    assert {"photos", "two", "three"} <= there(tmp_path)
    with pytest.raises(DiskFull):
        cache.obtain("large", 3 * SIZE, make)
    for name in ("photos", ".making-of"):
        assert (tmp_path / name / "one.jpg").stat().st_size == 50 * SIZE


def test_a_full_disk_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CheckpointCache(tmp_path, limit=10**15)
    free = Usage(10**12, 10**12 - 3 * 10**9, 3 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DiskFull, match=r"needs 14.2 GB more; the disk of .* has 3.0 GB left"):
        cache.obtain("large", 14_200_000_000, make)
    assert there(tmp_path) == set()


def test_what_counts_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.readlink(f"/proc/self/fd/{file}")))
    obtain(CheckpointCache(tmp_path), "one")
    made = tmp_path / ".making-one"
    assert synced == {str(made), str(made / WEIGHTS), str(made / RECORD_FILE)}


def test_the_latest_for_the_same_is_found(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path)
    obtain(cache, "one", "two")
    age(tmp_path, "two", 100)
    age(tmp_path, "one", 50)
    assert cache.latest("asked") == tmp_path / "one"
    assert cache.latest("something else") is None
