"""Spans' checkpoints on disk, locked, within a limit of bytes.

Each is made once and used by several processes. It has two locks, which the system releases when a
process ends, however it ends: *making*, exclusive, while one process checks, fetches or removes it;
*using*, shared, for as long as a node runs.
"""

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from mesh.errors import DiskFull
from node_runner.weights.range_assembly import WEIGHTS, hash_of

log = structlog.get_logger()

GB = 10**9
MAKING = ".making-"
LOCKS = ".locks"
RECORD_FILE = "span.json"


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """What the cache keeps beside a checkpoint, as JSON. ``asked``: which request it was made for.
    ``checked``: what its tensors were compared with, `manifest`, or `sizes` where nobody published
    hashes. ``size`` (bytes), ``mtime_ns`` and ``sha256``: of its weights' file."""

    asked: str
    checked: str
    size: int
    mtime_ns: int
    sha256: str


class CheckpointCache:
    """A folder of spans' checkpoints, with a limit of bytes.

    Args:
        folder: Made if it is not there. What others keep in it is neither counted nor removed.
        limit: Bytes that all together may take; half of the disk if not given.
        verify: Read every checkpoint whole and compare its hash before it is used.
    """

    def __init__(self, folder: Path, *, limit: int | None = None, verify: bool = False) -> None:
        folder = Path(os.path.expanduser(folder))
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._limit = limit if limit is not None else shutil.disk_usage(folder).total // 2
        self._verify = verify

    def obtain(self, key: str, size: int, make: Callable[[Path], CheckpointRecord]) -> Path:
        """The folder of a checkpoint, which stays until :func:`release` or the process's end.

        Args:
            key: Names the checkpoint, contents and all.
            size: Bytes that it will take.
            make: Fills a folder, in which an earlier attempt may have left something, and says what
                it made. Called only where there is no good one.

        Raises:
            DiskFull: it does not fit, on the disk or within the limit.
        """
        entry = self._folder / key
        with self._making(key):
            if not self._is_good(entry):
                partial = self._folder / f"{MAKING}{key}"
                self._evict(key, size, partial)
                partial.mkdir(exist_ok=True)
                record = make(partial)
                (partial / RECORD_FILE).write_text(json.dumps(asdict(record)))
                _sync(partial)  # after a power cut it is whole, or not there
                shutil.rmtree(entry, ignore_errors=True)
                partial.rename(entry)
            _hold(entry, self._lock_file(key, "using"))
        return entry

    def latest(self, asked: str) -> Path | None:
        """The checkpoint used last of those that were made for a request, if any is good."""
        for _, entry in sorted(self._entries(), reverse=True):
            record = _record(entry)
            if record is None or record.asked != asked:
                continue
            with self._making(entry.name):
                if self._is_good(entry):
                    _hold(entry, self._lock_file(entry.name, "using"))
                    return entry
        return None

    def _is_good(self, entry: Path) -> bool:
        """Whether a checkpoint is as it was made: by size and time; by hash where the time is
        another, or the cache verifies."""
        record, file = _record(entry), entry / WEIGHTS
        if record is None or not file.is_file():
            return False
        stat = file.stat()
        as_made = (stat.st_size, stat.st_mtime_ns) == (record.size, record.mtime_ns)
        if as_made and not self._verify:
            return True
        if stat.st_size == record.size and hash_of(file) == record.sha256:
            return True
        log.warning("weights_damaged", checkpoint=entry.name)
        return False

    def _evict(self, key: str, size: int, partial: Path) -> None:
        """Remove what was not used for longest, until ``size`` bytes fit.

        Raises:
            DiskFull: they do not.
        """
        with _locked(self._folder / LOCKS / "room"):
            others = [entry for _, entry in sorted(self._entries()) if _key(entry) != key]
            sizes = {entry: _bytes_below(entry) for entry in others}
            to_come = size - _on_disk(partial)
            while True:
                free = shutil.disk_usage(self._folder).free
                if sum(sizes.values()) + size <= self._limit and to_come <= free:
                    return
                removed = next((entry for entry in sizes if self._remove(entry)), None)
                if removed is None:
                    break
                log.info("weights_removed", checkpoint=removed.name, bytes=sizes.pop(removed))
        if to_come > free:
            raise DiskFull(
                f"The span needs {to_come / GB:.1f} GB more; the disk of {self._folder} has "
                f"{free / GB:.1f} GB left. Make room, serve fewer layers, or take another --cache."
            )
        raise DiskFull(
            f"The span needs {size / GB:.1f} GB; the cache may hold {self._limit / GB:.1f} GB, of "
            f"which {sum(sizes.values()) / GB:.1f} GB are in use. Raise --cache-gb."
        )

    def _remove(self, entry: Path) -> bool:
        """Whether a checkpoint is gone: removed, unless a process makes or uses it."""
        with contextlib.ExitStack() as stack:
            try:
                for what in ("making", "using"):
                    lock = self._lock_file(_key(entry), what)
                    stack.enter_context(_locked(lock, wait=False))
            except BlockingIOError:
                return False
            shutil.rmtree(entry, ignore_errors=True)
            return not entry.exists()

    def _entries(self) -> Iterator[tuple[int, Path]]:
        """Time of last use, in nanoseconds, and folder of each checkpoint, half-made ones too. What
        has no lock here is not the cache's."""
        for entry in self._folder.iterdir():
            key = _key(entry)
            if entry.is_dir() and self._lock_file(key, "making").exists():
                used = self._lock_file(key, "using")
                with contextlib.suppress(FileNotFoundError):
                    yield (used if used.exists() else entry).stat().st_mtime_ns, entry

    @contextlib.contextmanager
    def _making(self, key: str) -> Iterator[None]:
        path = self._lock_file(key, "making")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(path, wait=False))
            except BlockingIOError:
                log.info(
                    "weights_lock_waiting", checkpoint=key, reason="another process fetches them"
                )
                stack.enter_context(_locked(path))
            yield

    def _lock_file(self, key: str, what: str) -> Path:
        return self._folder / LOCKS / f"{key}.{what}"


_held: dict[Path, list[int]] = {}
_held_lock = threading.Lock()


def release(entry: Path) -> None:
    """Stop using a checkpoint that :meth:`CheckpointCache.obtain` gave: from now on it may be
    removed."""
    with _held_lock:
        descriptors = _held.get(entry, [])
        if descriptors:
            os.close(descriptors.pop())


def _hold(entry: Path, lock: Path) -> None:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.utime(lock)
    with _held_lock:
        _held.setdefault(entry, []).append(descriptor)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """
    Raises:
        BlockingIOError: another process has the lock, and ``wait`` is false.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _record(entry: Path) -> CheckpointRecord | None:
    try:
        return CheckpointRecord(**json.loads((entry / RECORD_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _key(entry: Path) -> str:
    return entry.name.removeprefix(MAKING)


def _bytes_below(folder: Path) -> int:
    """Bytes of the files below a folder, each as large as it will be when it is whole."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _on_disk(partial: Path) -> int:
    file = partial / WEIGHTS
    return min(file.stat().st_size, 512 * file.stat().st_blocks) if file.exists() else 0
