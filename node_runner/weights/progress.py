"""Progress of a download: a bar on a terminal, elsewhere a line in the log now and then."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

log = structlog.get_logger()

INTERVAL = 10.0
"""Seconds between two lines in the log."""


class _Total:
    """A sum that several threads add to."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self.value += size


_fetched = _Total()


def fetched_bytes() -> int:
    """Bytes of weights that this process has fetched since it began."""
    return _fetched.value


@contextmanager
def show_progress(label: str, total: int, already: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with every number of bytes that came.

    Args:
        label: What is fetched.
        total: Bytes in all.
        already: Bytes of them that were there before.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _counted(_LogLines(label, total, already).add)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, completed=already)
        yield _counted(lambda size: bar.advance(task, size))


def _counted(show: Callable[[int], None]) -> Callable[[int], None]:
    def add(size: int) -> None:
        _fetched.add(size)
        show(size)

    return add


class _LogLines:
    """Logs progress now and then. May be called by several threads."""

    def __init__(self, label: str, total: int, already: int) -> None:
        self._label = label
        self._total = total
        self._done = already
        self._began = self._logged_at = time.monotonic()
        self._fetched = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._fetched += size
            now = time.monotonic()
            if now - self._logged_at < INTERVAL:
                return
            self._logged_at = now
            rate = self._fetched / (now - self._began)
            log.info(
                "weights_download_progress",
                checkpoint=self._label,
                bytes=self._done,
                of_bytes=self._total,
                mb_per_s=round(rate / 1e6, 1),
                seconds_left=round((self._total - self._done) / rate),
            )
