"""How much a node may send: nobody is refused, but who sends too much waits, or is not heeded."""

import asyncio
import time

BURST_SECONDS = 2.0
"""Seconds' worth that may come at once: a long prompt's chunks do."""

STEPS_PER_MESSAGE = 16
"""Steps that count as one message more: at two thousand messages a second, as many as a GPU sends
that serves 256 generations, a hundred times a second."""

MAX_NODES = 10_000


class NodeThrottle:
    """A leaky bucket for each node, of messages and bytes together. Each process has its own; a
    node is connected to one at a time.

    The caller of :meth:`acquire` reads nothing from the node meanwhile, so that the node's own
    sending stops: that is the back pressure.
    """

    def __init__(self, messages_per_second: float, bytes_per_second: float) -> None:
        self._per_message = 1 / messages_per_second
        self._per_byte = 1 / bytes_per_second
        self._free_at: dict[str, float] = {}

    async def acquire(self, node_id: str, messages: float, size: int) -> None:
        """Count messages of ``size`` bytes together; returns when the node may send more."""
        now = time.monotonic()
        if len(self._free_at) > MAX_NODES:
            self._free_at = {node: at for node, at in self._free_at.items() if at > now}
        cost = messages * self._per_message + size * self._per_byte
        free_at = max(now, self._free_at.get(node_id, now)) + cost
        self._free_at[node_id] = free_at
        if free_at > now + BURST_SECONDS:
            await asyncio.sleep(free_at - now - BURST_SECONDS)

    async def acquire_steps(self, node_id: str, steps: int) -> None:
        """Count the steps of a message, of which there may be many in few bytes. Many steps let
        other nodes have their turn in any case."""
        await self.acquire(node_id, steps / STEPS_PER_MESSAGE, 0)
        if steps >= STEPS_PER_MESSAGE:
            await asyncio.sleep(0)


class NodeRate:
    """A leaky bucket for each node, of what is left undone if there is too much of it."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._seconds = 1 / per_second
        self._burst_seconds = burst / per_second
        self._free_at: dict[str, float] = {}

    def take(self, node_id: str) -> bool:
        """Count one; false, and not counted, if there were too many."""
        now = time.monotonic()
        if len(self._free_at) > MAX_NODES:
            self._free_at = {node: at for node, at in self._free_at.items() if at > now}
        free_at = max(now, self._free_at.get(node_id, now)) + self._seconds
        if free_at > now + self._burst_seconds:
            return False
        self._free_at[node_id] = free_at
        return True
