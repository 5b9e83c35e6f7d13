"""A node offers free KV, or a span, and refuses every generation that takes it at its word."""

import pytest
from redis.asyncio import Redis

from market.nodes import kv_reservations, refusals
from market.resources import Resources
from mesh import redis_keys
from tests.support.market.scripted_generation import cools_down, generation, join
from workers.supervisor.route_finder import RouteFinder


@pytest.mark.parametrize("code", ["kv_full", "moved"])
async def test_a_generation_that_is_refused_for_ever_ends_after_bounded_rounds(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr("workers.supervisor.faults.recovery.KV_FULL_SECONDS", 0.01)
    monkeypatch.setattr("workers.supervisor.faults.recovery.MOVED_SECONDS", 0.01)
    monkeypatch.setattr(refusals, "FIRST_PAUSE", 0.01)
    resources.settings.generation.max_rounds = 5
    await join(redis, "node")
    async with generation(resources) as made:
        for _ in range(5):
            await made.next_route()
            await made.refuse("node", code)
        ended = await made.ended()
    assert (ended.status, ended.error_code, ended.epoch) == ("failed", "stalled", 5)


@pytest.mark.parametrize(
    ("code", "expected"), [("kv_full", [0.5, 1, 2, 4]), ("moved", [5, 10, 20, 30])]
)
async def test_each_refusal_makes_the_generation_ask_later(
    resources: Resources,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    expected: list[float],
) -> None:
    seconds: list[float] = []
    monkeypatch.setattr(RouteFinder, "avoid", lambda _, __, avoided: seconds.append(avoided))
    monkeypatch.setattr(refusals, "FIRST_PAUSE", 0.01)
    await join(redis, "node")
    async with generation(resources) as made:
        for _ in range(4):
            await made.next_route()
            await made.refuse("node", code)
        await made.next_route()
    assert seconds == expected


async def test_what_a_node_offers_counts_as_none_for_ever_longer(
    resources: Resources, redis: Redis
) -> None:
    discovery = resources.settings.discovery
    await join(redis, "node", free_kv=1000)
    for number, longest in enumerate([0.5, 1, 2, 4, 8, 16, 30, 30], start=1):
        assert await refusals.record(redis, discovery, "node") == number
        pause = await redis.pttl(redis_keys.refusal_pause("node")) / 1000
        assert longest - 0.5 < pause <= longest
        assert await kv_reservations.free_kv_of(redis, ["node"]) == {"node": 0}
        assert await refusals.record(redis, discovery, "node") == 0  # asked before the pause
        await redis.delete(redis_keys.refusal_pause("node"))
    assert await kv_reservations.free_kv_of(redis, ["node"]) == {"node": 1000}


async def test_a_node_that_serves_a_generation_to_its_end_begins_anew(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "node")
    async with generation(resources) as made:
        await made.next_route()
        await made.refuse("node", "kv_full")
        await made.next_route()
        assert int(await redis.get(redis_keys.refusals("node"))) == 1
        await made.finish()
    assert not await redis.exists(redis_keys.refusals("node"))


async def test_kv_that_is_full_after_it_was_reserved_is_the_nodes_fault(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "node")
    await join(redis, "spare", ms=50)
    async with generation(resources) as made:
        assert await made.next_route() == ["node"]
        await made.write(0, 2)
        await made.refuse("node", "kv_full")
        assert await made.next_route() == ["spare"]
    assert await cools_down(redis, "node", "spare") == [True, False]


async def test_a_full_node_is_taken_from_nobody_for_one_refusal(
    resources: Resources, redis: Redis
) -> None:
    """Two supervisors may have counted on the same free KV."""
    await join(redis, "node")
    async with generation(resources) as made:
        await made.next_route()
        await made.refuse("node", "kv_full")
        await made.next_route()
    assert await cools_down(redis, "node") == [False]
