"""Nodes that refuse what they offered, or fail on it by their own word: for a while their free KV
counts as none.

Refusing is no fault yet: a keep-alive may be a moment old, and two supervisors may count on the
same free KV; and what a node fails on, others have sent. So one refusal costs a node half a second,
and each further one twice the time, until it has served a generation to its end.
"""

from collections.abc import Iterable

from redis.asyncio import Redis

from market.settings.discovery import DiscoverySettings
from mesh import redis_keys

FIRST_PAUSE = 0.5
"""Seconds for which a node's free KV counts as none after its first refusal."""

_RECORD = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local count = redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local pause = math.min(tonumber(ARGV[1]) * 2 ^ (count - 1), tonumber(ARGV[2]))
redis.call('SET', KEYS[2], 1, 'PX', math.ceil(pause))
return count
"""
"""0: the node's free KV counts as none already, so that what was asked of it before is not counted
again. Else the number of its refusals. Keys: refusals, refusal pause. Arguments: milliseconds of
the first pause, and of the longest; seconds for which refusals count."""


async def record(redis: Redis, discovery: DiscoverySettings, node_id: str) -> int:
    """Count a node's refusal, for which its free KV counts as none for a while; returns how many
    there were since it last served a generation, or 0 if this one is not counted."""
    count: int = await redis.eval(  # type: ignore[misc]
        _RECORD,
        2,
        redis_keys.refusals(node_id),
        redis_keys.refusal_pause(node_id),
        str(round(1000 * FIRST_PAUSE)),
        str(round(1000 * max(discovery.cooldown, FIRST_PAUSE))),
        str(max(1, round(discovery.dispute_window))),
    )
    return count


_RECORD_USER = """
local now = redis.call('TIME')
local seconds = tonumber(now[1]) + tonumber(now[2]) / 1e6
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', seconds - tonumber(ARGV[2]))
redis.call('ZADD', KEYS[1], seconds, ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[3]))
redis.call('EXPIRE', KEYS[1], math.ceil(tonumber(ARGV[2])))
return redis.call('ZCARD', KEYS[1])
"""
"""How many users, up to as many as matter. Key: users. Arguments: the user, seconds for which a
failure counts, users that matter."""


async def record_failure(
    redis: Redis, discovery: DiscoverySettings, node_id: str, user: str
) -> None:
    """Count that a node failed on the input of a user's generation, by its own word. From several
    users on, each failure counts as a refusal, until the node has served a generation to its end:
    one user alone chooses his prompts, and so what nodes fail on."""
    users: int = await redis.eval(  # type: ignore[misc]
        _RECORD_USER,
        1,
        redis_keys.failed_users(node_id),
        user.lower(),
        str(discovery.dispute_window),
        str(discovery.failed_users),
    )
    if users >= discovery.failed_users:
        await record(redis, discovery, node_id)


async def forget(redis: Redis, node_ids: Iterable[str]) -> None:
    """Nodes have served a generation to its end: their refusals and failures before that count no
    more."""
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in node_ids:
            pipe.delete(redis_keys.refusals(node_id), redis_keys.failed_users(node_id))
        await pipe.execute()
