"""A lock of one process for each key that somebody waits for, such as a wallet."""

import asyncio
from weakref import WeakValueDictionary


class KeyedLocks:
    """A key's lock lives as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: str) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())
