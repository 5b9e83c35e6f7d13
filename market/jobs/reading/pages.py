"""What precedes a job's newest tokens: read and rendered once for all who replay it at a time, and
given out by turns."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from market.jobs.live_session import TokenEntry
from market.jobs.reading.stored_tokens import TOKENS_PER_PAGE
from market.keyed_locks import KeyedLocks

KEPT_BYTES = 2**23
"""Of all jobs' pages together."""

KEPT_SECONDS = 5.0
"""Seconds for which a page is kept: long enough for those who replay a job together, and no longer,
since it is to be forgotten with what it was read from."""

PAGES_AT_ONCE = 4
"""Pages of a process that are read or given out at once, before all else has its turn."""

ReadPage = Callable[[str, int], Awaitable[Sequence[TokenEntry]]]
"""The tokens of a job's page, by its number: as many as there are."""

Render = Callable[[str, TokenEntry], bytes]
"""A job's token as its readers get it."""


@dataclass(frozen=True, slots=True)
class Page:
    """Rendered tokens. ``ends``: where each ends in ``data``."""

    data: bytes
    ends: tuple[int, ...]

    def after(self, tokens: int) -> bytes:
        """All but the first so many tokens."""
        return self.data[self.ends[tokens - 1] :] if tokens else self.data


EMPTY = Page(b"", ())


class Pages:
    """One a process. The readers of one owner take turns, so that however many he has, another's
    page waits for one of his at most.

    Args:
        read: Where they come from.
        render: Makes of a token the bytes that readers share.
    """

    def __init__(self, read: ReadPage, render: Render) -> None:
        self._read_page = read
        self._render = render
        self._kept: OrderedDict[tuple[str, int], tuple[Page, float]] = OrderedDict()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._owners = KeyedLocks()
        self._at_once = asyncio.Semaphore(PAGES_AT_ONCE)

    async def after(self, request_id: str, position: int, owner: str) -> tuple[bytes, int]:
        """Some tokens after so many, rendered, and their number; none if there are none.

        Args:
            owner: Whose readers take turns.
        """
        number, skipped = divmod(position, TOKENS_PER_PAGE)
        async with self._owners.of(owner), self._at_once:
            page, _ = self._kept.get((request_id, number), (EMPTY, 0.0))
            if len(page.ends) <= skipped:  # not kept, or more has come since
                page = await self._read(request_id, number)
            await asyncio.sleep(0)
        if len(page.ends) <= skipped:
            return b"", 0
        return page.after(skipped), len(page.ends) - skipped

    def forget(self, request_id: str) -> None:
        """Keep no page of a job."""
        for key in [key for key in self._kept if key[0] == request_id]:
            self._drop(key)

    async def _read(self, request_id: str, number: int) -> Page:
        entries = await self._read_page(request_id, number)
        tokens = [self._render(request_id, entry) for entry in entries]
        page = Page(b"".join(tokens), tuple(accumulate(map(len, tokens))))
        self._keep((request_id, number), page)
        return page

    def _keep(self, key: tuple[str, int], page: Page) -> None:
        loop = asyncio.get_running_loop()
        self._drop(key)
        self._kept[key] = page, loop.time() + KEPT_SECONDS
        self._bytes += len(page.data)
        while self._bytes > KEPT_BYTES:
            self._drop(next(iter(self._kept)))
        if self._timer is None:
            self._timer = loop.call_later(KEPT_SECONDS, self._forget_old)

    def _drop(self, key: tuple[str, int]) -> None:
        if key in self._kept:
            page, _ = self._kept.pop(key)
            self._bytes -= len(page.data)

    def _forget_old(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for key, (_, until) in list(self._kept.items()):  # the oldest first
            if until > loop.time():
                self._timer = loop.call_at(until, self._forget_old)
                break
            self._drop(key)
