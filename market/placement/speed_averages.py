"""Means over time of what nodes measure, kept in Redis: one slow minute moves nobody.

Lost with Redis, and then built anew from the next heartbeats.
"""

import math
from collections.abc import Mapping

from redis.asyncio import Redis

from mesh import redis_keys


def ewma(mean: float, value: float, *, seconds: float, half_life: float) -> float:
    """The mean after ``value`` was seen, ``seconds`` after the mean was taken: what is older than
    ``half_life`` seconds counts half as much."""
    return value + (mean - value) * math.pow(0.5, max(seconds, 0.0) / half_life)


async def update_averages(
    redis: Redis, model_id: str, values: Mapping[str, float], *, now: float, half_life: float
) -> dict[str, float]:
    """The means by node, with the values that were measured now. A node that is not among them
    keeps its mean for ten half-lives, since it may have changed its span and not served yet."""
    key = redis_keys.node_speeds(model_id)
    known = {
        name.decode(): (float(mean), float(at))
        for name, text in (await redis.hgetall(key)).items()  # type: ignore[misc]
        for mean, at in [text.split()]
    }
    means = {name: known[name] for name in known if now - known[name][1] < 10 * half_life}
    for name, value in values.items():
        mean, at = known.get(name, (value, now))
        means[name] = (ewma(mean, value, seconds=now - at, half_life=half_life), now)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        if means:
            pipe.hset(key, mapping={name: f"{mean} {at}" for name, (mean, at) in means.items()})
            pipe.expire(key, round(10 * half_life))
        await pipe.execute()
    return {name: mean for name, (mean, _) in means.items()}


async def averages(redis: Redis, model_id: str) -> dict[str, float]:
    """As they were last."""
    found = await redis.hgetall(redis_keys.node_speeds(model_id))  # type: ignore[misc]
    return {name.decode(): float(text.split()[0]) for name, text in found.items()}
