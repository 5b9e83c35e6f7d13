"""Cooldowns: which nodes get no new generation for a while, and on whose word.

What the platform has seen itself, and what a node says of itself, count at once. What one says of
another is a dispute, which counts only when a node is in dispute with several different wallets.
"""

from redis.asyncio import Redis

from market.settings.discovery import DiscoverySettings
from mesh import redis_keys


async def cool_down(redis: Redis, node_id: str, *, seconds: float) -> None:
    """Give a node no new generation for so many seconds: the platform has seen it fail, or it has
    said so of itself."""
    await redis.set(redis_keys.cooldown(node_id), 1, px=max(1, round(seconds * 1000)))


_RECORD = """
local now = redis.call('TIME')
local seconds = tonumber(now[1]) + tonumber(now[2]) / 1e6
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', seconds - tonumber(ARGV[2]))
redis.call('ZADD', KEYS[1], seconds, ARGV[1])
redis.call('EXPIRE', KEYS[1], math.ceil(tonumber(ARGV[2])))
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[3]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], 1, 'PX', ARGV[4])
return 1
"""
"""1: the node cools down, and its disputes are forgotten. Keys: disputes, cooldown. Arguments: the
opponent, seconds for which a dispute counts, opponents for a cooldown, milliseconds of it."""


async def record_dispute(
    redis: Redis, discovery: DiscoverySettings, node_id: str, opponent: str
) -> bool:
    """Count that a node is in dispute with a wallet, whoever of the two accuses; true if the node
    cools down for it.

    Opponents are counted, not disputes, and by wallet, since a wallet may have any number of nodes.
    So nobody takes a node from all others alone, and who accuses many is taken off the routes just
    as who is accused by many.

    Args:
        redis: Where disputes are kept.
        discovery: How many opponents there have to be, within what time, and what follows.
        node_id: The node.
        opponent: The wallet of the node that it is in dispute with.
    """
    cooled: int = await redis.eval(  # type: ignore[misc]
        _RECORD,
        2,
        redis_keys.disputes(node_id),
        redis_keys.cooldown(node_id),
        opponent.lower(),
        str(discovery.dispute_window),
        str(discovery.disputes),
        str(max(1, round(1000 * discovery.cooldown))),
    )
    return bool(cooled)
