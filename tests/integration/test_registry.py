"""What a heartbeat leaves in Redis is what the routes read."""

from redis.asyncio import Redis

from mesh import names, registry
from tests.integration.api_support import MODEL_ID, node


async def test_a_node_is_read_as_it_was_announced(redis: Redis) -> None:
    known = node(0, hop_ms=12.5, latitude=52.52, longitude=-13.4)
    unknown = node(1)
    for each in (known, unknown):
        await registry.announce(redis, each, ttl=60)
    assert await registry.active(redis, MODEL_ID) == [known, unknown]
    assert known.place == (52.52, -13.4)
    assert unknown.place is None


async def test_a_record_of_an_older_mesh_is_read_if_it_has_what_matters(redis: Redis) -> None:
    older, broken = node(0, hop_ms=3.0), node(1)
    for each in (older, broken):
        await registry.announce(redis, each, ttl=60)
    await redis.hdel(names.node("node_0"), "hop_ms", "latitude", "longitude")  # type: ignore[misc]
    await redis.hdel(names.node("node_1"), "end_layer")  # type: ignore[misc]
    assert await registry.active(redis, MODEL_ID) == [node(0)]
