"""Answers that serve all who read the same within seconds: a thousand at once make one query."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from market.errors import Unavailable

T = TypeVar("T")

Key = tuple[str, *tuple[Hashable, ...]]
"""What is asked: the kind of read, which the code names, and of what, which strangers choose."""

MAX_ENTRIES = 256
"""Answers of a kind in a process: some megabytes."""

MAX_READING = 64
"""Reads of a kind under way in a process. Above it, callers are told to come back."""

MAX_READING_OF_CALLER = 16
"""Of them, those that one caller began."""

RETRY = 2


@dataclass(slots=True)
class _Entry:
    """``until``: the loop's time from which on it is read anew; none while it is read."""

    task: asyncio.Task[Any]
    until: float | None = None


@dataclass(slots=True)
class _Kind:
    """One kind's answers, and who began its reads under way. What strangers ask of one kind keeps
    no other from being read, and takes no other's answers out."""

    entries: OrderedDict[Key, _Entry] = field(default_factory=OrderedDict)
    reading: dict[asyncio.Task[Any], str] = field(default_factory=dict)

    def check(self, caller: str) -> None:
        if len(self.reading) >= MAX_READING:
            raise Unavailable("Too much is being read here now.", retry_after=RETRY)
        if sum(other == caller for other in self.reading.values()) >= MAX_READING_OF_CALLER:
            raise Unavailable("Too much is being read for your address now.", retry_after=RETRY)


class ReadCache:
    """The newest answers by what was asked, in this process."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._kinds: dict[str, _Kind] = {}

    async def get(
        self,
        key: Key,
        read: Callable[[], Coroutine[Any, Any, T]],
        *,
        caller: str,
        seconds: float | None = None,
    ) -> T:
        """What ``read`` gives, or gave a moment ago to whoever asked the same. Not to be changed.

        Args:
            key: What is asked.
            caller: The address of who asks.
            seconds: For how long the answer serves, instead of the cache's own time; 0: for those
                alone who ask while it is read.

        Raises:
            Unavailable: too much of this kind is being read now, by all or by this caller.
            Exception: whatever ``read`` raises, to all who wait for it; and it is not kept.
        """
        kind = self._kinds.setdefault(key[0], _Kind())
        entry = kind.entries.get(key)
        if entry is None or (entry.until is not None and entry.until <= _now()):
            kind.check(caller)
            entry = _start(kind, key, read, caller, self._seconds if seconds is None else seconds)
        # Shielded: of those who wait, one that goes away does not end the others' read.
        found: T = await asyncio.shield(entry.task)
        return found

    async def close(self) -> None:
        """End what is being read."""
        reading = [task for kind in self._kinds.values() for task in kind.reading]
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


def _start(
    kind: _Kind,
    key: Key,
    read: Callable[[], Coroutine[Any, Any, Any]],
    caller: str,
    seconds: float,
) -> _Entry:
    entry = _Entry(asyncio.create_task(read()))
    kind.entries[key] = entry
    kind.entries.move_to_end(key)
    if len(kind.entries) > MAX_ENTRIES:
        kind.entries.popitem(last=False)
    kind.reading[entry.task] = caller

    def ended(task: asyncio.Task[Any]) -> None:
        del kind.reading[task]
        entry.until = _now() + seconds
        # Looked at, since nobody else may wait for it any more.
        failed = task.cancelled() or task.exception() is not None
        if failed and kind.entries.get(key) is entry:
            del kind.entries[key]

    entry.task.add_done_callback(ended)
    return entry


def _now() -> float:
    return asyncio.get_running_loop().time()
