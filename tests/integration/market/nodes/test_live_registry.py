"""What a heartbeat leaves in Redis is what the routes read."""

from decimal import Decimal

from redis.asyncio import Redis

from market.nodes import live_lookup, live_registry
from mesh import redis_keys
from tests.support.gateway.api import MODEL_ID, node


async def test_a_node_is_read_as_it_was_announced(redis: Redis) -> None:
    known = node(
        0,
        hop_ms=12.5,
        latitude=52.52,
        longitude=-13.4,
        located="geoip",
        registration=3,
        quantization="nf4",
        memory_bytes=2**40,
        load_bytes_per_second=1e9,
        batch_invariant=True,
        min_price=Decimal("0.000000000000000001"),
        max_sessions=8,
    )
    unknown = node(1)
    for each in (known, unknown):
        await live_registry.put(redis, each, ttl=60)
    assert await live_lookup.available_nodes(redis, MODEL_ID) == [known, unknown]
    assert known.coordinates == (52.52, -13.4)
    assert unknown.coordinates is None


async def test_a_record_of_an_older_mesh_is_read_if_it_has_what_matters(redis: Redis) -> None:
    older, broken = node(0, hop_ms=3.0), node(1)
    for each in (older, broken):
        await live_registry.put(redis, each, ttl=60)
    await redis.hdel(redis_keys.node("node_0"), "hop_ms", "latitude", "longitude")  # type: ignore[misc]
    await redis.hdel(redis_keys.node("node_1"), "end_layer")  # type: ignore[misc]
    assert await live_lookup.available_nodes(redis, MODEL_ID) == [node(0)]


HEARTBEAT = {"is_healthy": True, "latency_ms": 7.5}


async def test_a_heartbeat_keeps_what_was_announced_and_counts_the_time(redis: Redis) -> None:
    await live_registry.put(redis, node(0, registration=2, last_seen=100.0), ttl=60)
    result = await live_registry.record_heartbeat(redis, "node_0", 2, HEARTBEAT, now=130.5, ttl=60)
    assert result == live_registry.HeartbeatResult(
        "kept", 30.5, node(0).wallet_address, MODEL_ID, True
    )
    [found] = await live_lookup.available_nodes(redis, MODEL_ID)
    assert found == node(0, registration=2, last_seen=130.5, latency_ms=7.5)
    await live_registry.mark_uptime_saved(redis, "node_0", 30.0)
    assert await live_registry.unsaved_uptime(redis, "node_0") == 0.5


async def test_a_clock_that_goes_back_takes_no_uptime_away(redis: Redis) -> None:
    await live_registry.put(redis, node(0, last_seen=100.0), ttl=60)
    assert (
        await live_registry.record_heartbeat(redis, "node_0", 0, HEARTBEAT, now=90.0, ttl=60)
    ).uptime == 0


async def test_nothing_is_done_in_the_name_of_an_earlier_registration(redis: Redis) -> None:
    """A record is not overwritten, kept alive or removed by it; a later one replaces it."""
    late = node(0, registration=2)
    assert await live_registry.put(redis, late, ttl=60)
    assert not await live_registry.put(redis, node(0, registration=1, gpu_model="old"), ttl=60)
    assert (
        await live_registry.record_heartbeat(redis, "node_0", 1, HEARTBEAT, now=1.0, ttl=60)
    ).state == "superseded"
    await live_registry.evict(redis, "node_0", MODEL_ID, 1)
    assert await live_lookup.available_nodes(redis, MODEL_ID) == [late]
    assert (
        await live_registry.record_heartbeat(redis, "node_0", 3, HEARTBEAT, now=1.0, ttl=60)
    ).state == "unknown"
    assert await live_registry.put(redis, node(0, registration=3), ttl=60)
    assert await live_lookup.available_nodes(redis, MODEL_ID) == [node(0, registration=3)]
    await live_registry.evict(redis, "node_0", MODEL_ID)
    assert await live_lookup.available_nodes(redis, MODEL_ID) == []


async def test_a_heartbeat_does_not_bring_back_who_is_gone(redis: Redis) -> None:
    assert (
        await live_registry.record_heartbeat(redis, "node_0", 1, HEARTBEAT, now=1.0, ttl=60)
    ).state == "unknown"
    assert not await redis.exists(redis_keys.node("node_0"))


async def test_a_node_that_changed_its_model_serves_the_new_one_only(redis: Redis) -> None:
    await live_registry.put(redis, node(0, registration=1), ttl=60)
    moved = node(0, registration=2, model_id="far/other")
    await live_registry.put(redis, moved, ttl=60)
    assert await live_lookup.available_nodes(redis, MODEL_ID) == []
    assert await redis.smembers(redis_keys.model_nodes(MODEL_ID)) == set()  # type: ignore[misc]
    assert await live_lookup.available_nodes(redis, "far/other") == [moved]


async def test_a_thousand_nodes_are_not_a_thousand_round_trips(redis: Redis) -> None:
    """Redis reads commands in parts of 16 kB, of which a thousand nodes' are a few dozen."""
    for number in range(1000):
        await live_registry.put(redis, node(0, node_id=f"node_{number}"), ttl=60)
    before = (await redis.info("stats"))["total_reads_processed"]
    assert len(await live_lookup.available_nodes(redis, MODEL_ID)) == 1000
    assert (await redis.info("stats"))["total_reads_processed"] - before < 100


async def test_heartbeats_of_all_sizes_leave_redis_whole(redis: Redis) -> None:
    """Redis 6.2 dies of scripts whose commands rewrite their arguments, once arguments have been
    many."""
    started = (await redis.info("server"))["run_id"]
    for number in range(200):
        name = f"node_{number % 10}"
        await live_registry.put(redis, node(0, node_id=name), ttl=60)
        await live_registry.record_heartbeat(redis, name, 0, HEARTBEAT, now=float(number), ttl=60)
        await live_registry.mark_uptime_saved(redis, name, 0.5)
    assert (await redis.info("server"))["run_id"] == started
