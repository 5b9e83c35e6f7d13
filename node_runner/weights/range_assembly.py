"""Writes ranges, which come in any order, into one file; resumes after a kill.

A range is complete once its bytes are on the disk and its number is in the journal beside the file.
What a killed process had not noted is fetched again: at most a few requests' worth.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

from mesh.errors import DiskFull, WeightsCorrupt
from node_runner.weights.download_plan import Chunk, DownloadPlan
from node_runner.weights.progress import show_progress
from node_runner.weights.source import BUFFER, Source

CONNECTIONS = 6
"""Requests at once: one connection seldom fills a line."""

JOURNAL = "journal"
WEIGHTS = "model.safetensors"


def assemble(source: Source, plan: DownloadPlan, folder: Path, *, label: str) -> None:
    """Fetch what is missing of ``folder``'s `model.safetensors`.

    Args:
        source: Where from; closed if it fails.
        plan: Of the file.
        folder: One that nobody else writes to; what an earlier attempt left there is used.
        label: For progress: what is fetched.

    Raises:
        WeightsError: it cannot be had; what came stays for the next attempt.
        DiskFull: the disk became full.
    """
    journal = _Journal(folder / JOURNAL, plan)
    missing = [number for number in range(len(plan.chunks)) if number not in journal.done]
    total = sum(chunk.end - chunk.start for chunk in plan.chunks)
    left = sum(plan.chunks[number].end - plan.chunks[number].start for number in missing)
    try:
        with (
            journal,
            _opened(folder / WEIGHTS, plan) as file,
            show_progress(label, total, total - left) as add,
        ):
            _fetch(source, plan, missing, file, journal, add)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"The disk of {folder} became full. What came is kept.") from None
        raise


def verify(file: Path, plan: DownloadPlan) -> str:
    """Compare the hash of each tensor whose hash is known, reading the whole file once.

    Returns:
        The file's own SHA-256.

    Raises:
        WeightsCorrupt: a tensor is not what the manifest says.
    """
    whole = hashlib.sha256()
    with file.open("rb") as opened:
        position = 0
        for start, end, expected, name in plan.hashes:
            for piece in _pieces(opened, start - position):
                whole.update(piece)
            tensor = hashlib.sha256()
            for piece in _pieces(opened, end - start):
                tensor.update(piece)
                whole.update(piece)
            if tensor.hexdigest() != expected:
                raise WeightsCorrupt(
                    f"Tensor {name} is not what was published: it was damaged or changed at its "
                    "source. It is not used."
                )
            position = end
        for piece in _pieces(opened, plan.size - position):
            whole.update(piece)
    return whole.hexdigest()


def hash_of(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _fetch(
    source: Source,
    plan: DownloadPlan,
    missing: list[int],
    file: IO[bytes],
    journal: "_Journal",
    add: Callable[[int], None],
) -> None:
    stop = threading.Event()
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in missing:
        waiting.put(number)
    results: SimpleQueue[int | Exception] = SimpleQueue()

    def fetch() -> None:
        try:
            while not stop.is_set():
                number = waiting.get_nowait()
                _write(source, plan, plan.chunks[number], file.fileno(), add, stop)
                results.put(number)
        except Empty:
            pass
        except Exception as error:  # for the thread that waits for results
            results.put(error)

    # Daemons: a node that has drained while it loads another span ends without them.
    threads = [
        threading.Thread(target=fetch, name=f"weights-{number}", daemon=True)
        for number in range(min(CONNECTIONS, len(missing)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in missing:
            result = results.get()
            if isinstance(result, Exception):
                raise result
            os.fsync(file.fileno())
            journal.note(result)
    except BaseException:
        stop.set()
        source.close()  # threads may wait for it, and its owner has no more use for it
        raise
    finally:
        for thread in threads:
            thread.join()


def _write(
    source: Source,
    plan: DownloadPlan,
    chunk: Chunk,
    descriptor: int,
    add: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Fetch one range into its parts of the file; ends early when all have to stop."""
    parts = iter(chunk.parts)
    offset, remaining = 0, 0  # in the span's file, of the part that is being written
    version = plan.versions[chunk.file]
    for piece in source.stream(chunk.file, version, chunk.start, chunk.end):
        left = memoryview(piece)
        while left:
            if not remaining:
                part = next(parts)
                offset, remaining = part.at, part.size
            written = os.pwrite(descriptor, left[:remaining], offset)
            left = left[written:]
            offset += written
            remaining -= written
        add(len(piece))
        if stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """Another range failed; nobody waits for this one."""


def _opened(path: Path, plan: DownloadPlan) -> IO[bytes]:
    """The file in its full length, the header written."""
    file = path.open("r+b" if path.exists() else "w+b", buffering=0)
    file.truncate(plan.size)
    os.pwrite(file.fileno(), plan.header, 0)
    return file


class _Journal:
    """Numbers of the ranges that are there, a line each, below a line that names the plan.

    It is not synced: of what a power cut left of it, the lines before the first that is torn count.
    """

    def __init__(self, path: Path, plan: DownloadPlan) -> None:
        digest = _digest(plan)
        lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
        self.done: set[int] = set()
        if lines and lines[0] == digest and path.with_name(WEIGHTS).exists():
            self.done = set(map(int, takewhile(str.isdecimal, lines[1:])))
        kept = [digest, *map(str, sorted(self.done))]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def note(self, number: int) -> None:
        self._file.write(f"{number}\n")
        self._file.flush()


def _digest(plan: DownloadPlan) -> str:
    content = repr((plan.header, plan.chunks, sorted(plan.versions.items())))
    return hashlib.sha256(content.encode()).hexdigest()


def _pieces(opened: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        piece = opened.read(min(size, BUFFER))
        if not piece:
            raise WeightsCorrupt(f"{opened.name} is shorter than it was made.")
        size -= len(piece)
        yield piece
