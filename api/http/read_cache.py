"""Answers that serve all who read the same within seconds: a thousand at once make one query."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from market.errors import Unavailable

T = TypeVar("T")

MAX_ENTRIES = 1024
"""Answers of a process: a few megabytes."""

MAX_READING = 64
"""Reads under way in a process. Above it, callers are told to come back."""

RETRY = 2


@dataclass(slots=True)
class _Entry:
    """``until``: the loop's time from which on it is read anew; none while it is read."""

    task: asyncio.Task[Any]
    until: float | None = None


class ReadCache:
    """The newest answers by what was asked, in this process."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._reading: set[asyncio.Task[Any]] = set()

    async def get(
        self,
        key: Hashable,
        read: Callable[[], Coroutine[Any, Any, T]],
        *,
        seconds: float | None = None,
    ) -> T:
        """What ``read`` gives, or gave a moment ago to whoever asked the same. Not to be changed.

        Args:
            key: What is asked.
            seconds: For how long the answer serves, instead of the cache's own time; 0: for those
                alone who ask while it is read.

        Raises:
            Unavailable: too much is being read now.
            Exception: whatever ``read`` raises, to all who wait for it; and it is not kept.
        """
        entry = self._entries.get(key)
        if entry is None or (entry.until is not None and entry.until <= _now()):
            if len(self._reading) >= MAX_READING:
                raise Unavailable("Too much is being read here now.", retry_after=RETRY)
            entry = self._start(key, read, self._seconds if seconds is None else seconds)
        # Shielded: of those who wait, one that goes away does not end the others' read.
        found: T = await asyncio.shield(entry.task)
        return found

    def _start(
        self, key: Hashable, read: Callable[[], Coroutine[Any, Any, Any]], seconds: float
    ) -> _Entry:
        entry = _Entry(asyncio.create_task(read()))
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)
        self._reading.add(entry.task)

        def ended(task: asyncio.Task[Any]) -> None:
            self._reading.discard(task)
            entry.until = _now() + seconds
            # Looked at, since nobody else may wait for it any more.
            failed = task.cancelled() or task.exception() is not None
            if failed and self._entries.get(key) is entry:
                del self._entries[key]

        entry.task.add_done_callback(ended)
        return entry

    async def close(self) -> None:
        """End what is being read."""
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)


def _now() -> float:
    return asyncio.get_running_loop().time()
