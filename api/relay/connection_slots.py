"""How many connections nodes may have at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from market.errors import RateLimited, Unavailable

MOST_OF_NODE = 4
"""WebSockets of one node at a time, of which all but one are half open; and requests. By long polls
an honest node has three under way: one waits for work, one pushes, one tells that it lives."""

RETRY_AFTER = 1


class ConnectionSlots:
    """Counted by process: each connection holds what it sends and is sent, and one to Redis
    beside."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def taken(self, node_id: str, kind: str) -> Iterator[None]:
        """For as long as a connection of that kind lasts.

        Raises:
            RateLimited: the node has as many as it may have.
            Unavailable: all nodes together have as many as this process can serve.
        """
        seat = (node_id, kind)
        if self._taken[seat] >= MOST_OF_NODE:
            raise RateLimited(f"At most {MOST_OF_NODE} at once.", retry_after=RETRY_AFTER)
        if self._taken.total() >= self._most:
            raise Unavailable("No room for more nodes here.", retry_after=RETRY_AFTER)
        self._taken[seat] += 1
        try:
            yield
        finally:
            self._taken[seat] -= 1
            if not self._taken[seat]:
                del self._taken[seat]
