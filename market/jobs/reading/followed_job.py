"""A job that readers of this process follow: its newest tokens, once for all of them."""

import asyncio
from collections import deque

from market.errors import Unavailable
from market.jobs.live_session import JobOutcome

KEPT_BYTES = 2**15
"""Bytes of tokens that a job keeps in memory, as readers get them: some 350 tokens. A reader that
is further behind reads from Redis."""


class FollowedJob:
    """
    Attributes:
        request_id: The job.
        readers: How many follow it here.
        oldest: Number of tokens before the first that is kept.
        newest: Number of tokens that have been read from its stream.
        followed: Whether what comes in its stream is read.
        heard_at: When something of it last came (event loop's clock).
        outcome: How it ended; none before that.
        error: Why its readers cannot be told any more of it now.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.readers = 0
        self.oldest = self.newest = 0
        self.followed = False
        self.heard_at = 0.0
        self.outcome: JobOutcome | None = None
        self.error: Unavailable | None = None
        self.over = asyncio.Event()
        """Set with the outcome or the error."""
        self.found: asyncio.Task[None] | None = None
        """Looks where its stream is, before the first reader reads."""
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def end(self, outcome: JobOutcome) -> None:
        self.outcome, self.followed = outcome, False
        self.over.set()

    def fail(self, error: Unavailable) -> None:
        self.error, self.followed = error, False
        self.over.set()

    def append(self, token: bytes) -> None:
        """Take the next token of the stream, as readers get it."""
        self.newest += 1
        self._kept.append(token)
        self._kept_bytes += len(token)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popleft())
            self.oldest += 1

    def after(self, position: int) -> bytes:
        """All that is kept after so many tokens: from ``oldest`` to less than ``newest``."""
        missing = self.newest - position
        if missing == 1:
            return self._kept[-1]
        return b"".join(self._kept[index] for index in range(-missing, 0))

    async def change(self) -> None:
        """Wait for a token, the end or an error."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def take_waiting(self) -> set[asyncio.Future[None]]:
        """Those who wait for a change; whoever takes them wakes them."""
        waiting, self._waiting = self._waiting, set()
        return waiting
