"""What the DHT says of nodes, kept in Redis for processes that have no DHT peer. Routes do not use
it."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from redis.asyncio import Redis

from mesh import redis_keys
from mesh.dht.records import Announcement


async def write_announcements(
    redis: Redis, model_id: str, announcements: Sequence[Announcement]
) -> None:
    """Replace a model's announcements: a node that is not among these is not listed any more."""
    key = redis_keys.dht_directory(model_id)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        if announcements:
            records = {each.node_id: json.dumps(asdict(each)) for each in announcements}
            pipe.hset(key, mapping=records)
            pipe.expireat(key, int(max(each.expires for each in announcements)) + 1)
        await pipe.execute()


async def read_announcements(redis: Redis, model_id: str) -> list[Announcement]:
    """A model's announcements that have not expired, by node id."""
    records = await redis.hgetall(redis_keys.dht_directory(model_id))  # type: ignore[misc]
    found = [Announcement(**json.loads(record)) for record in records.values()]
    now = time.time()
    return sorted((each for each in found if each.expires > now), key=lambda each: each.node_id)


async def record_peers(redis: Redis, addresses: Sequence[str], *, ttl: float) -> None:
    """Keep the addresses by which a DHT peer of ours is reached, for ``ttl`` seconds."""
    now = time.time()
    recorded = await redis.hgetall(redis_keys.DHT_PEERS)  # type: ignore[misc]
    gone = [address for address, until in recorded.items() if float(until) <= now]
    async with redis.pipeline(transaction=True) as pipe:
        if gone:
            pipe.hdel(redis_keys.DHT_PEERS, *gone)
        pipe.hset(redis_keys.DHT_PEERS, mapping=dict.fromkeys(addresses, now + ttl))
        pipe.pexpire(redis_keys.DHT_PEERS, round(1000 * ttl))
        await pipe.execute()


async def running_peers(redis: Redis) -> list[str]:
    """Addresses of the DHT peers that were recorded and have not expired."""
    recorded = await redis.hgetall(redis_keys.DHT_PEERS)  # type: ignore[misc]
    now = time.time()
    return sorted(address.decode() for address, until in recorded.items() if float(until) > now)
