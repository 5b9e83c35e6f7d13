"""Work that one process at a time may do, as long as it has the right to and makes progress."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

CANCEL_TIMEOUT = 5.0
"""Seconds that work gets to end after it has been cancelled; then nobody waits for it any more."""

log = structlog.get_logger()

T = TypeVar("T")


class Stalled(Exception):
    """The work has made no progress for too long: somebody else should have it."""


class Progress:
    """When a loop last passed through.

    Args:
        within: Seconds after which work that has not passed through counts as stalled.
    """

    def __init__(self, within: float) -> None:
        self._within = within
        self._marked_at = time.monotonic()

    def mark(self) -> None:
        self._marked_at = time.monotonic()

    def check(self) -> None:
        """
        Raises:
            Stalled: nobody has marked progress in time.
        """
        silent = time.monotonic() - self._marked_at
        if silent > self._within:
            raise Stalled(f"No progress for {silent:.1f} s.")


async def run_while(work: Coroutine[Any, Any, T], kept: Coroutine[Any, Any, Any]) -> T:
    """Run the work as long as ``kept`` runs, which renews the right to do it; cancel the work with
    the error of ``kept``."""
    working, keeping = asyncio.ensure_future(work), asyncio.ensure_future(kept)
    try:
        await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await keeping
        return await working
    finally:
        working.cancel()
        keeping.cancel()
        ended, running = await asyncio.wait({working, keeping}, timeout=CANCEL_TIMEOUT)
        for task in ended:
            if not task.cancelled():
                task.exception()  # it is known, or of no interest any more
        if running:
            log.error("work_not_cancelled", count=len(running))
