"""How many connections nodes may have at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from market.errors import RateLimited, Unavailable

MAX_PER_NODE = 4
"""WebSockets of one node at a time, of which all but one are half open; and requests. By long polls
an honest node has three under way: one waits for work, one pushes, one carries keep-alives."""

RETRY_AFTER_SECONDS = 1


class ConnectionSlots:
    """Slots of this process. Each connection holds what it sends and is sent, and a connection to
    Redis beside.

    Args:
        limit: Connections of all nodes together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def acquire(self, node_id: str, kind: str) -> Iterator[None]:
        """Hold a slot for as long as a node's connection of that kind lasts.

        Raises:
            RateLimited: the node has as many as it may have.
            Unavailable: all nodes together have as many as this process can serve.
        """
        slot = (node_id, kind)
        if self._in_use[slot] >= MAX_PER_NODE:
            raise RateLimited(f"At most {MAX_PER_NODE} at once.", retry_after=RETRY_AFTER_SECONDS)
        if self._in_use.total() >= self._limit:
            raise Unavailable("No room for more nodes here.", retry_after=RETRY_AFTER_SECONDS)
        self._in_use[slot] += 1
        try:
            yield
        finally:
            self._in_use[slot] -= 1
            if not self._in_use[slot]:
                del self._in_use[slot]
