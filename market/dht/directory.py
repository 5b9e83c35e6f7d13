"""What the DHT says, kept in Redis for those who have no DHT peer. Nobody is on a route by it."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from redis.asyncio import Redis

from mesh import redis_keys
from mesh.dht.records import Announcement


async def write(redis: Redis, model_id: str, announcements: Sequence[Announcement]) -> None:
    """Replace a model's page: who is not among these is not on it any more."""
    page = redis_keys.dht_directory(model_id)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.delete(page)
        if announcements:
            lines = {each.node_id: json.dumps(asdict(each)) for each in announcements}
            pipe.hset(page, mapping=lines)
            pipe.expireat(page, int(max(each.expires for each in announcements)) + 1)
        await pipe.execute()


async def read(redis: Redis, model_id: str) -> list[Announcement]:
    """A model's page, without what has expired, by node id."""
    lines = await redis.hgetall(redis_keys.dht_directory(model_id))  # type: ignore[misc]
    found = [Announcement(**json.loads(line)) for line in lines.values()]
    now = time.time()
    return sorted((each for each in found if each.expires > now), key=lambda each: each.node_id)


async def note_peers(redis: Redis, addresses: Sequence[str], *, ttl: float) -> None:
    """Tell the platform by which addresses a DHT peer of ours is reached, for the next seconds."""
    now = time.time()
    noted = await redis.hgetall(redis_keys.DHT_PEERS)  # type: ignore[misc]
    gone = [address for address, until in noted.items() if float(until) <= now]
    async with redis.pipeline(transaction=True) as pipe:
        if gone:
            pipe.hdel(redis_keys.DHT_PEERS, *gone)
        pipe.hset(redis_keys.DHT_PEERS, mapping=dict.fromkeys(addresses, now + ttl))
        pipe.pexpire(redis_keys.DHT_PEERS, round(1000 * ttl))
        await pipe.execute()


async def peers(redis: Redis) -> list[str]:
    """Addresses of the DHT peers that were noted and still count."""
    noted = await redis.hgetall(redis_keys.DHT_PEERS)  # type: ignore[misc]
    now = time.time()
    return sorted(address.decode() for address, until in noted.items() if float(until) > now)
