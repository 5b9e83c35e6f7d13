"""Bytes on their way in or out: one budget a process; a deadline and a least rate for each.

A body that is half here, or an answer that is half taken, costs memory for as long as a stranger
likes. So each is a transfer: it has to come to its end in time, and all together fit a budget. Over
the budget, whoever has the most bytes here gives way: a stranger who fills it stops himself.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from types import TracebackType
from typing import Self, TypeVar

from api.server.errors import TransfersFull, TransferTooSlow
from market.settings.limits import LimitSettings

T = TypeVar("T")

RETRY_AFTER_SECONDS = 1


class TransferBudget:
    """The bytes of all transfers of the process, by owner: an address, or a provider's wallet."""

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        self._transfers: dict[str, set[Transfer]] = {}
        self._held: Counter[str] = Counter()
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes of all transfers under way."""
        return self._used

    def open(self, owner: str, *, grace: float | None = None) -> "Transfer":
        """A transfer that begins now; use it as a context, or close it.

        Args:
            owner: Who would have to give way.
            grace: Seconds that do not count for the least rate, and in which the other side has to
                move; as the settings say if not given.
        """
        return Transfer(self, owner, self.limits.transfer_grace if grace is None else grace)

    def _add(self, transfer: "Transfer", size: int) -> None:
        """Count bytes of a transfer.

        Raises:
            TransfersFull: there is no room, and its owner has the most.
        """
        self._transfers.setdefault(transfer.owner, set()).add(transfer)
        self._held[transfer.owner] += size
        transfer.size += size
        self._used += size
        while self._used > self.limits.max_transfer_bytes:
            giving_way = self._heaviest(transfer)
            giving_way.end()
            if giving_way is transfer:
                raise _full()

    def _heaviest(self, newest: "Transfer") -> "Transfer":
        """The largest transfer of the owner who has the most bytes here, if it can be ended; the
        newest, if he is its owner."""
        owner = max(self._held, key=self._held.__getitem__)
        waiting = [transfer for transfer in self._transfers[owner] if transfer.waiting]
        if owner == newest.owner or not waiting:
            return newest
        return max(waiting, key=lambda transfer: transfer.size)

    def _release(self, transfer: "Transfer") -> None:
        mine = self._transfers.get(transfer.owner, set())
        if transfer in mine:
            mine.remove(transfer)
            self._held[transfer.owner] -= transfer.size
            self._used -= transfer.size
        if not mine:
            self._transfers.pop(transfer.owner, None)
            self._held.pop(transfer.owner, None)


class Transfer:
    """One body, frame or answer, of which ``size`` bytes are here."""

    def __init__(self, budget: TransferBudget, owner: str, grace: float) -> None:
        self.owner = owner
        self.size = 0
        self._budget = budget
        self._grace = grace
        self._began = self._moved = asyncio.get_running_loop().time()
        self._ended = False
        self._timeout: asyncio.Timeout | None = None

    @property
    def waiting(self) -> bool:
        """Whether the other side is being waited for."""
        return self._timeout is not None

    def begin(self, size: int) -> None:
        """Begin now, with so many bytes, rather than when it was opened.

        Raises:
            TransfersFull: they have no room.
        """
        self._began = self._moved = asyncio.get_running_loop().time()
        self.add(size)

    def add(self, size: int) -> None:
        """Count bytes that are here from now on.

        Raises:
            TransfersFull: they have no room.
        """
        if size and not self._ended:
            self._budget._add(self, size)

    async def wait(self, other_side: Awaitable[T]) -> T:
        """Wait for the other side: to send more, or to take more.

        Raises:
            TransferTooSlow: the transfer's time is up.
            TransfersFull: it had to give way.
        """
        try:
            async with asyncio.timeout_at(self._deadline()) as self._timeout:
                answer = await other_side
            self._moved = asyncio.get_running_loop().time()
            return answer
        except TimeoutError:
            if self._ended:
                raise _full() from None
            raise TransferTooSlow(
                "Too slow: send and read without pauses, or in smaller pieces.",
            ) from None
        finally:
            self._timeout = None

    def end(self) -> None:
        """Give way to others: its bytes do not count any more, and who waits for it stops."""
        self._ended = True
        self.close()
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """The transfer is over: its bytes are gone."""
        self._budget._release(self)
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _deadline(self) -> float:
        """When it has to be over, or the other side has to have moved: loop time."""
        limits = self._budget.limits
        earned = self._grace + self.size / limits.transfer_rate
        return min(self._began + min(earned, limits.transfer_seconds), self._moved + self._grace)


def _full() -> TransfersFull:
    return TransfersFull("Too many bytes are on their way here.", retry_after=RETRY_AFTER_SECONDS)
