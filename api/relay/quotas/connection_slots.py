"""How many connections nodes may have at once."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from api.relay.quotas.delivered_nodes import DeliveredNodes
from market.errors import RateLimited, Unavailable
from market.settings.relay import RelaySettings

K = TypeVar("K")

MAX_PER_NODE = 4
"""WebSockets of one node at a time, of which all but one are half open; and requests. By long polls
an honest node has three under way: one waits for work, one pushes, one carries keep-alives."""

RETRY_AFTER_SECONDS = 1


@dataclass(slots=True, eq=False)
class ConnectionSlot:
    """The slot of one connection. ``serves``: whether its node is on routes."""

    serves: bool


class ConnectionSlots:
    """Slots of this process. Each connection holds what it sends and is sent, and a connection to
    Redis beside. A part of them is kept for nodes on routes, so that strangers who register by the
    thousand keep nobody out who serves."""

    def __init__(self, settings: RelaySettings, delivered: DeliveredNodes) -> None:
        self._limit = settings.max_connections
        self._others_limit = self._limit - int(self._limit * settings.kept_for_routes)
        self._wallet_limit = settings.max_connections_per_wallet
        self._delivered = delivered
        self._of_node: Counter[tuple[str, str]] = Counter()
        self._of_wallet: Counter[str] = Counter()
        self._in_use = 0
        self._others = 0
        """Slots of nodes that are not known to be on a route."""

    @asynccontextmanager
    async def acquire(self, node_id: str, wallet: str, kind: str) -> AsyncIterator[ConnectionSlot]:
        """Hold a slot for as long as a node's connection of that kind lasts.

        Raises:
            RateLimited: the node, or its wallet, has as many as it may have.
            Unavailable: all nodes together have as many as this process can serve, or as many as it
                leaves to those that are on no route.
            RedisError: Redis does not answer.
        """
        serves = self._delivered.known(node_id)
        if not serves and self._others >= self._others_limit:
            serves = await self._delivered.look_up(node_id)
        slot = ConnectionSlot(serves)
        self._check(node_id, wallet, kind, slot)
        self._count(node_id, wallet, kind, slot, 1)
        try:
            yield slot
        finally:
            self._count(node_id, wallet, kind, slot, -1)

    def served(self, slot: ConnectionSlot) -> None:
        """A slot's node turns out to be on a route: its slot is one of those kept for such."""
        if not slot.serves:
            slot.serves = True
            self._others -= 1

    def _check(self, node_id: str, wallet: str, kind: str, slot: ConnectionSlot) -> None:
        if self._of_node[node_id, kind] >= MAX_PER_NODE:
            raise RateLimited(f"At most {MAX_PER_NODE} at once.", retry_after=RETRY_AFTER_SECONDS)
        if self._of_wallet[wallet] >= self._wallet_limit:
            raise RateLimited(
                f"At most {self._wallet_limit} of a wallet at once.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        full = self._in_use >= self._limit
        if full or (not slot.serves and self._others >= self._others_limit):
            raise Unavailable("No room for more nodes here.", retry_after=RETRY_AFTER_SECONDS)

    def _count(
        self, node_id: str, wallet: str, kind: str, slot: ConnectionSlot, change: int
    ) -> None:
        self._in_use += change
        self._others += 0 if slot.serves else change
        _add(self._of_node, (node_id, kind), change)
        _add(self._of_wallet, wallet, change)


def _add(counter: Counter[K], key: K, change: int) -> None:
    """Count without keeping zeros, which would be as many as there were nodes ever."""
    counter[key] += change
    if not counter[key]:
        del counter[key]
