"""Turns at work that takes a processor for a while: few in a process at once, and one a wallet, so
that nobody waits for all that another wallet has asked for; and a bound on how many wait."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class BoundedWaiting:
    """How many are at work or wait for it, in one process: so many of a wallet, and so many in all.

    Counts of one event loop: from :meth:`has_room` to :meth:`one_more` nothing may be awaited.
    """

    def __init__(self, of_wallet: int, in_all: int) -> None:
        self._of_wallet = of_wallet
        self._in_all = in_all
        self._wallets: Counter[str] = Counter()

    def has_room(self, wallet: str) -> bool:
        """Whether the wallet may have one more."""
        return self._wallets[wallet] < self._of_wallet and self._wallets.total() < self._in_all

    @contextmanager
    def one_more(self, wallet: str) -> Iterator[None]:
        """Count one more of the wallet."""
        self._wallets[wallet] += 1
        try:
            yield
        finally:
            self._wallets[wallet] -= 1
            if not self._wallets[wallet]:
                del self._wallets[wallet]
