"""Counts of why nodes were not on routes, in Redis, by the hour."""

import time
from collections.abc import Mapping

from redis.asyncio import Redis

from market.routing.eligibility import SkipReason
from mesh import redis_keys

HOUR = 3600

RETENTION = 2 * HOUR
"""Seconds for which an hour's counts are kept after the last one was added."""

MAX_NODES_PER_SECOND = 200
"""Nodes whose reasons one process counts in a second, at most. Choices of a route beyond that are
not counted: a sample tells a provider as much."""


class SkipCounter:
    """Counts for one process, no more than :data:`MAX_NODES_PER_SECOND` nodes."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._free_at = 0.0

    @property
    def due(self) -> bool:
        """Whether the next choice of a route may be counted."""
        return time.monotonic() >= self._free_at

    async def count(self, reasons: Mapping[str, SkipReason]) -> None:
        """Count the reasons of one choice of a route, by node id."""
        self._free_at = time.monotonic() + len(reasons) / MAX_NODES_PER_SECOND
        hour = int(time.time() // HOUR)
        async with self._redis.pipeline(transaction=False) as pipe:
            for node_id, reason in reasons.items():
                key = redis_keys.skip_counts(node_id, hour)
                pipe.hincrby(key, reason.value, 1)
                pipe.expire(key, RETENTION)
            await pipe.execute()


async def skips_of(redis: Redis, node_id: str) -> dict[str, int]:
    """How often a node was not on a route, by reason, in this hour and the one before."""
    hour = int(time.time() // HOUR)
    async with redis.pipeline(transaction=False) as pipe:
        for each in (hour - 1, hour):
            pipe.hgetall(redis_keys.skip_counts(node_id, each))
        found = await pipe.execute()
    counts: dict[str, int] = {}
    for by_reason in found:
        for reason, count in by_reason.items():
            counts[reason.decode()] = counts.get(reason.decode(), 0) + int(count)
    return counts
