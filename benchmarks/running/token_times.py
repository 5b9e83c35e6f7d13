"""Arrival times of a generation's tokens, and the events that its supervisor logged."""

import asyncio
import datetime as dt
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from redis.asyncio import Redis

from market.jobs import live_session
from market.jobs.live_session import EndEntry
from mesh.token_stream import START
from stack.development_stack import DevelopmentStack

TOKEN_TIMEOUT = 60.0
"""Seconds without a token after which a generation counts as lost."""


@dataclass(frozen=True, slots=True)
class Followed:
    """Token ids, and when a reader of the stream in Redis had each (Unix time, seconds)."""

    token_ids: list[int]
    times: list[float]

    @property
    def longest_gap(self) -> float:
        """Seconds between two tokens, at most."""
        return max(later - earlier for earlier, later in pairwise(self.times))


async def follow(
    redis: Redis, request_id: str, after: int | None = None, act: Callable[[], None] | None = None
) -> Followed:
    """Read a generation to its end; call ``act`` once, when ``after`` tokens have arrived.

    Raises:
        RuntimeError: it failed, or no token came within :data:`TOKEN_TIMEOUT`.
    """
    followed = Followed([], [])
    entry = START
    while True:
        entries = await asyncio.wait_for(
            live_session.read(redis, request_id, entry, wait=TOKEN_TIMEOUT), 2 * TOKEN_TIMEOUT
        )
        now = time.time()
        if not entries:
            raise RuntimeError(f"No token of {request_id} for {TOKEN_TIMEOUT:.0f} s.")
        for found in entries:
            entry = found.entry_id
            if isinstance(found, EndEntry):
                if found.outcome.get("error"):
                    raise RuntimeError(f"{request_id} failed: {found.outcome}")
                return followed
            followed.token_ids.append(found.token_id)
            followed.times.append(now)
        if act is not None and after is not None and len(followed.times) >= after:
            act()
            act = None


def supervised(stack: DevelopmentStack, event: str, request_id: str) -> list[dict[str, Any]]:
    """What workers logged of one generation, in order; ``at`` is the Unix time of each."""
    found = []
    for name, child in stack.processes.children.items():
        if name.startswith("worker-"):
            for line in child.log.read_text().splitlines():
                if event in line and request_id in line:
                    record = json.loads(line)
                    record["at"] = dt.datetime.fromisoformat(record["timestamp"]).timestamp()
                    found.append(record)
    return found
