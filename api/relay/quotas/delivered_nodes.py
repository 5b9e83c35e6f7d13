"""Which nodes something was delivered to lately: those on routes, and nobody else."""

import time
from collections import OrderedDict

from api.relay.pipelined_connection import PipelinedConnection
from mesh import redis_keys

REMEMBERED_SECONDS = 60.0
"""For which a node that was delivered to counts without asking Redis."""

MAX_REMEMBERED = 10_000


class DeliveredNodes:
    """A node's inbox exists in Redis only if somebody has written to it lately, which supervisors
    and the neighbours of a route can do. So it tells strangers from nodes that serve."""

    def __init__(self, connection: PipelinedConnection) -> None:
        self._connection = connection
        self._seen: OrderedDict[str, float] = OrderedDict()

    def add(self, node_id: str) -> None:
        """Something was delivered to a node now."""
        self._seen[node_id] = time.monotonic()
        self._seen.move_to_end(node_id)
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)

    def known(self, node_id: str) -> bool:
        """Whether a node was delivered to, as far as this process remembers."""
        return time.monotonic() - self._seen.get(node_id, -REMEMBERED_SECONDS) < REMEMBERED_SECONDS

    async def look_up(self, node_id: str) -> bool:
        """Whether a node was delivered to, by Redis if this process does not know.

        Raises:
            RedisError: Redis does not answer.
        """
        if self.known(node_id):
            return True
        [found] = await self._connection.call([("EXISTS", redis_keys.inbox(node_id))])
        if isinstance(found, Exception):
            raise found
        if found:
            self.add(node_id)
        return bool(found)
