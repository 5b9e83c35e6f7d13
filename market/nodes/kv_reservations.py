"""KV cache reserved on nodes before they are asked to open a generation."""

from collections.abc import Sequence

from redis.asyncio import Redis

from mesh import redis_keys


async def free_kv_of(redis: Redis, node_ids: Sequence[str]) -> dict[str, int]:
    """Free positions in each node's KV cache, without the nodes whose process does not run; 0 for
    nodes that have just refused what they offered (:mod:`market.nodes.refusals`).

    Unlike a heartbeat, a keep-alive tells within a second that a process has ended.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in node_ids:
            pipe.get(redis_keys.keepalive(node_id))
        for node_id in node_ids:
            pipe.exists(redis_keys.refusal_pause(node_id))
        answers = await pipe.execute()
    offered, paused = answers[: len(node_ids)], answers[len(node_ids) :]
    return {
        node_id: 0 if pause else int(free)
        for node_id, free, pause in zip(node_ids, offered, paused, strict=True)
        if free is not None
    }


_RESERVE = """
local free = tonumber(redis.call('GET', KEYS[1]) or '-1')
if free < tonumber(ARGV[1]) then return 0 end
redis.call('DECRBY', KEYS[1], ARGV[1])
return 1
"""


async def reserve_kv(redis: Redis, node_ids: Sequence[str], positions: int) -> bool:
    """Reserve ``positions`` in the KV cache of each node, so that no other generation counts on
    them; false if a node has too few.

    A reservation lasts until the node's next keep-alive, which mostly accounts for what the node
    was asked to open; a generation that fits no more is refused by the node. So reservations are
    never given back: neither by a supervisor that fails, nor by one that got only some nodes.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in node_ids:
            pipe.eval(_RESERVE, 1, redis_keys.keepalive(node_id), str(positions))
        return all(await pipe.execute())
