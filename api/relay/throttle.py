"""How much a node may send: nobody is refused, but who sends too much waits."""

import asyncio
import time

BURST = 2.0
"""Seconds' worth that may come at once: a long prompt's chunks do."""

MAX_NODES = 10_000


class NodeThrottle:
    """A leaky bucket for each node, of messages and bytes together.

    The one who calls :meth:`take` reads nothing from the node meanwhile, so that the node's own
    sending stops: that is the back pressure. Counted by process; a node is at one at a time.
    """

    def __init__(self, messages_per_second: float, bytes_per_second: float) -> None:
        self._per_message = 1 / messages_per_second
        self._per_byte = 1 / bytes_per_second
        self._due: dict[str, float] = {}

    async def take(self, node_id: str, messages: int, size: int) -> None:
        """Count what a node sent; returns when it may send more."""
        now = time.monotonic()
        if len(self._due) > MAX_NODES:
            self._due = {node: due for node, due in self._due.items() if due > now}
        cost = messages * self._per_message + size * self._per_byte
        due = max(now, self._due.get(node_id, now)) + cost
        self._due[node_id] = due
        if due > now + BURST:
            await asyncio.sleep(due - now - BURST)
