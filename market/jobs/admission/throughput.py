"""How fast all nodes of a model compute together: positions, counted in slots of time, in Redis.

A slot expires by itself, so that a worker that fails leaves nothing wrong behind. All are lost with
Redis, and then built anew within seconds.
"""

import time

from redis.asyncio import Redis

from mesh import redis_keys

SLOT_SECONDS = 10
"""Seconds of one slot: long enough that a long prompt, which is counted when it has been computed,
does not make one slot much fuller than the next."""

SLOTS = 18
"""Slots that are kept: three minutes."""

HALF_LIFE = 30.0
"""Seconds after which what was once possible counts half: short enough that nodes which are busy
all the time are known by what they compute now."""


async def count(redis: Redis, model_id: str, positions: int) -> None:
    """Count positions, of prompts and answers, that were computed now."""
    key = redis_keys.throughput(model_id, int(time.time() // SLOT_SECONDS))
    async with redis.pipeline(transaction=False) as pipe:
        pipe.incrby(key, positions)
        pipe.expire(key, SLOTS * SLOT_SECONDS)
        await pipe.execute()


async def throughput(redis: Redis, model_id: str) -> float | None:
    """Positions a second that a model's nodes can compute: the most that they have, where what is
    :data:`HALF_LIFE` seconds old counts half; none if they have computed nothing lately.

    The most, and not the mean, since mostly there is less to compute than there could be.
    """
    newest = int(time.time() // SLOT_SECONDS)
    slots = range(newest, newest - SLOTS, -1)
    found = await redis.mget([redis_keys.throughput(model_id, slot) for slot in slots])
    rates = [
        int(positions) / SLOT_SECONDS * 0.5 ** (age * SLOT_SECONDS / HALF_LIFE)
        for age, positions in enumerate(found)
        if positions is not None
    ]
    return max(rates, default=None)
