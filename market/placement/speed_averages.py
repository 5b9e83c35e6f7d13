"""Exponentially weighted averages of the nodes' measured speeds, in Redis, so that one slow minute
causes no rebalance.

They are lost with Redis, and then built anew from the next heartbeats.
"""

import math
from collections.abc import Mapping

from redis.asyncio import Redis

from mesh import redis_keys


def ewma(average: float, value: float, *, seconds: float, half_life: float) -> float:
    """The average after a new value, ``seconds`` after the average was last updated. What is
    ``half_life`` seconds old counts half as much."""
    return value + (average - value) * math.pow(0.5, max(seconds, 0.0) / half_life)


async def update_averages(
    redis: Redis, model_id: str, values: Mapping[str, float], *, now: float, half_life: float
) -> dict[str, float]:
    """Update the averages with values that were measured at ``now`` (Unix time).

    A node without a value keeps its average for ten half-lives, since it may have changed its span
    and not served yet.

    Returns:
        All averages, by node id.
    """
    key = redis_keys.node_speeds(model_id)
    known = {
        name.decode(): (float(average), float(at))
        for name, text in (await redis.hgetall(key)).items()  # type: ignore[misc]
        for average, at in [text.split()]
    }
    kept = {name: known[name] for name in known if now - known[name][1] < 10 * half_life}
    for name, value in values.items():
        average, at = known.get(name, (value, now))
        kept[name] = (ewma(average, value, seconds=now - at, half_life=half_life), now)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        if kept:
            pipe.hset(key, mapping={name: f"{value} {at}" for name, (value, at) in kept.items()})
            pipe.expire(key, round(10 * half_life))
        await pipe.execute()
    return {name: average for name, (average, _) in kept.items()}


async def averages(redis: Redis, model_id: str) -> dict[str, float]:
    """The averages by node id, as they were last updated."""
    found = await redis.hgetall(redis_keys.node_speeds(model_id))  # type: ignore[misc]
    return {name.decode(): float(text.split()[0]) for name, text in found.items()}
