"""A user's prompt raises an error in every node that computes it, to take down one after the
other."""

import pytest
from redis.asyncio import Redis

from market.nodes import kv_reservations
from market.resources import Resources
from mesh import redis_keys
from mesh.wire.refusal_codes import GENERATION_FAILED, INVALID_REQUEST
from tests.support.gateway.api import LAYERS
from tests.support.market.scripted_generation import cools_down, generation, join

CODES = [GENERATION_FAILED, INVALID_REQUEST]


@pytest.mark.parametrize("code", CODES)
async def test_what_fails_twice_at_one_point_is_not_tried_a_third_time(
    resources: Resources, redis: Redis, code: str
) -> None:
    for number in range(4):
        await join(redis, f"node_{number}", ms=1 + number)
    for _ in range(4):
        async with generation(resources) as made:
            for number in range(2):
                assert await made.next_route() == [f"node_{number}"]
                await made.refuse(f"node_{number}", code)
            ended = await made.ended()
        assert (ended.status, ended.error_code, ended.epoch) == ("failed", "generation_failed", 2)
    nodes = [f"node_{number}" for number in range(4)]
    assert await cools_down(redis, *nodes) == [False] * 4
    assert not await redis.exists(*map(redis_keys.refusals, nodes))


async def test_neither_are_values_that_are_not_finite(resources: Resources, redis: Redis) -> None:
    await join(redis, "edge", (0, 2))
    await join(redis, "sender", (2, 4))
    await join(redis, "receiver", (4, LAYERS))
    await join(redis, "another", (2, 4), ms=50)
    await join(redis, "yet another", (4, LAYERS), ms=50)
    async with generation(resources) as made:
        assert await made.next_route() == ["edge", "sender", "receiver"]
        await made.accuse("receiver", "sender", "not_finite")
        assert await made.next_route() == ["edge", "another", "yet another"]
        await made.accuse("yet another", "another", "not_finite")
        ended = await made.ended()
    assert (ended.status, ended.error_code) == ("failed", "generation_failed")
    assert await cools_down(redis, "sender", "receiver", "another", "yet another") == [False] * 4


async def test_an_error_at_another_token_is_another_error(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "one")
    await join(redis, "two", ms=20)
    await join(redis, "three", ms=50)
    async with generation(resources) as made:
        assert await made.next_route() == ["one"]
        await made.refuse("one", GENERATION_FAILED)
        assert await made.next_route() == ["two"]
        await made.write(0, 5)
        await made.refuse("two", GENERATION_FAILED)
        assert await made.next_route() == ["three"]
        await made.finish(first=5)
    assert await cools_down(redis, "one", "two", "three") == [False] * 3


async def test_a_node_alone_is_tried_twice(resources: Resources, redis: Redis) -> None:
    await join(redis, "alone")
    async with generation(resources) as made:
        for _ in range(2):
            assert await made.next_route() == ["alone"]
            await made.refuse("alone", GENERATION_FAILED)
        assert (await made.ended()).error_code == "generation_failed"
    assert await cools_down(redis, "alone") == [False]


async def test_what_a_broken_node_offers_counts_ever_less(
    resources: Resources, redis: Redis
) -> None:
    """Others compute what it fails on, so it is not the prompt."""
    await join(redis, "broken")
    await join(redis, "works", ms=50)
    for number in range(3):
        async with generation(resources) as made:
            assert await made.next_route() == ["broken"]
            await made.refuse("broken", GENERATION_FAILED)
            assert await made.next_route() == ["works"]
            assert int(await redis.get(redis_keys.refusals("broken")) or 0) == number
            await made.finish()
        assert int(await redis.get(redis_keys.refusals("broken")) or 0) == number + 1
        assert await kv_reservations.free_kv_of(redis, ["broken"]) == {"broken": 0}
        await redis.delete(redis_keys.refusal_pause("broken"))
    assert not await redis.exists(redis_keys.refusals("works"))
