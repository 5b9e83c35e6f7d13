"""How many readers may wait for jobs at once: of a job, of a wallet, of this process."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

from fastapi import Depends

from market.errors import RateLimited, Unavailable
from market.settings.limits import LimitSettings

RETRY_AFTER_SECONDS = 5


class ReaderSlots:
    """Slots of this process. Each reader holds a connection, and what its client has not read yet.

    A wallet gets no more slots than are still free, so that those who come first leave some: one
    wallet takes half of all at most, two together two thirds.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._by_wallet: Counter[str] = Counter()
        self._by_job: Counter[tuple[str, str]] = Counter()
        self.in_use = 0

    @contextmanager
    def hold(self, wallet: str, request_id: str = "") -> Iterator[None]:
        """Hold a slot for as long as a reader is there. ``request_id``: empty for a job that is
        only being asked for.

        Raises:
            RateLimited: the wallet, or its job, has as many readers as it may have.
            Unavailable: this process has as many as it can serve.
        """
        job = (wallet, request_id)
        limits = self._limits
        _check(self._by_job[job] if request_id else 0, limits.readers_per_job, "a job")
        _check(self._by_wallet[wallet], limits.readers_per_wallet, "a wallet")
        if self._by_wallet[wallet] >= limits.readers_per_process - self.in_use:
            raise Unavailable(
                "Too many readers are here now. Try again, or poll the job.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self.in_use += 1
        self._by_wallet[wallet] += 1
        self._by_job[job] += 1
        try:
            yield
        finally:
            self.in_use -= 1
            _release(self._by_wallet, wallet)
            _release(self._by_job, job)


def _check(readers: int, limit: int, of: str) -> None:
    if readers >= limit:
        raise RateLimited(
            f"At most {limit} readers of {of} at a time. Close one, or poll the job.",
            retry_after=RETRY_AFTER_SECONDS,
        )


def _release(slots: Counter[Any], key: object) -> None:
    slots[key] -= 1
    if not slots[key]:
        del slots[key]


async def _held() -> AsyncIterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


HeldForAnswer = Annotated[ExitStack, Depends(_held)]
"""What is entered into this stack is left once the whole answer has been sent, or its client has
gone away."""
