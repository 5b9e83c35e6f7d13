"""Turns at work that takes a processor for a while: few in a process at once, and one a wallet, so
that nobody waits for all that another wallet has asked for."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from market.keyed_locks import KeyedLocks

T = TypeVar("T")


class WalletTurns:
    """Turns of one process. A wallet waits for its own turn before it waits among the wallets."""

    def __init__(self, at_once: int) -> None:
        self._process = asyncio.Semaphore(at_once)
        self._wallets = KeyedLocks()

    async def run(self, wallet: str, work: Callable[[], T]) -> T:
        """Do the work in a thread, in the wallet's turn. The turn lasts as long as the work, also
        if nobody waits for that any more."""
        async with self._wallets.of(wallet), self._process:
            working = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                return await asyncio.shield(working)
            finally:
                await asyncio.gather(working, return_exceptions=True)
