"""Free KV positions, and taking some."""

from collections.abc import Sequence

from redis.asyncio import Redis

from mesh import redis_keys


async def free_kv_of(redis: Redis, node_ids: Sequence[str]) -> dict[str, int]:
    """Positions that each node has KV room for; nodes whose process does not run are missing.
    Unlike a heartbeat, a pulse tells of a death within a second."""
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in node_ids:
            pipe.get(redis_keys.keepalive(node_id))
        answers = await pipe.execute()
    return {
        node_id: int(room)
        for node_id, room in zip(node_ids, answers, strict=True)
        if room is not None
    }


_RESERVE = """
local room = tonumber(redis.call('GET', KEYS[1]) or '-1')
if room < tonumber(ARGV[1]) then return 0 end
redis.call('DECRBY', KEYS[1], ARGV[1])
return 1
"""


async def reserve_kv(redis: Redis, node_ids: Sequence[str], positions: int) -> bool:
    """Take KV room on each node, so that nobody else counts on it; false if one has none left.

    Holds until the node's next pulse, which mostly knows by then what it was asked to open; what
    slips through, the node refuses. So nobody has anything to give back: not a supervisor that
    dies, nor one that got room on some nodes only.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in node_ids:
            pipe.eval(_RESERVE, 1, redis_keys.keepalive(node_id), str(positions))
        return all(await pipe.execute())
