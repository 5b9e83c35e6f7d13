"""Nodes that load weights: they count as loading for as long as bytes come, however slowly."""

from collections.abc import Collection

from redis.asyncio import Redis

from mesh import redis_keys

_PROGRESS = """
local before = tonumber(redis.call('GET', KEYS[1]) or '-1')
if tonumber(ARGV[1]) > before then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
"""
"""Keys: loading. Arguments: bytes that the process has fetched, milliseconds to live."""


async def record_progress(redis: Redis, node_id: str, fetched_bytes: int, *, stall: float) -> None:
    """Record what a node's process has fetched since it began.

    Args:
        fetched_bytes: If not more than before, the node makes no progress.
        stall: Seconds without progress after which the node does not count as loading.
    """
    key = redis_keys.loading(node_id)
    await redis.eval(_PROGRESS, 1, key, str(fetched_bytes), str(round(1000 * stall)))  # type: ignore[misc]


async def moving(redis: Redis, node_ids: Collection[str]) -> set[str]:
    """Those of the nodes that load, and make progress."""
    async with redis.pipeline(transaction=False) as pipe:
        for node_id in node_ids:
            pipe.exists(redis_keys.loading(node_id))
        found = await pipe.execute()
    return {node_id for node_id, exists in zip(node_ids, found, strict=True) if exists}
