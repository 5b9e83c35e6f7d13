"""How many files may be on their way to nodes at once: to a wallet, and from this process."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from market.errors import RateLimited, Unavailable
from market.settings.limits import LimitSettings

RETRY_AFTER_SECONDS = 5


class DownloadSlots:
    """Slots of this process. A download holds an open file, a piece of it, and its connection.

    An owner gets no more slots than are still free: one takes half of all at most.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._by_owner: Counter[str] = Counter()
        self.in_use = 0

    @contextmanager
    def hold(self, owner: str) -> Iterator[None]:
        """Hold a slot until the file is sent, or its reader has gone away.

        Raises:
            RateLimited: the owner has as many as he may have.
            Unavailable: this process has as many as it can serve.
        """
        mine, limits = self._by_owner[owner], self._limits
        if mine >= limits.downloads_per_wallet:
            raise RateLimited(
                f"At most {limits.downloads_per_wallet} downloads at a time.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        if mine >= limits.downloads_per_process - self.in_use:
            raise Unavailable(
                "Too many files are being fetched now.", retry_after=RETRY_AFTER_SECONDS
            )
        self.in_use += 1
        self._by_owner[owner] += 1
        try:
            yield
        finally:
            self.in_use -= 1
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]
