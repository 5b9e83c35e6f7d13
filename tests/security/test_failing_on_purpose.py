"""A provider's nodes say of themselves that they fail on every input, to end generations of others
without being found at fault."""

from functools import partial

import pytest
from redis.asyncio import Redis

from market.nodes import kv_reservations
from market.resources import Resources
from mesh import redis_keys
from mesh.wire.refusal_codes import GENERATION_FAILED, INVALID_REQUEST
from tests.support.gateway.api import LAYERS
from tests.support.jobs import until
from tests.support.market.scripted_generation import cools_down, generation, join

CODES = [GENERATION_FAILED, INVALID_REQUEST, "not_finite"]
USERS = ["0x" + f"{number:02x}" * 20 for number in range(1, 6)]


async def join_provider(redis: Redis, count: int) -> None:
    """The quickest nodes behind the edge, all of one wallet."""
    for number in range(count):
        await join(redis, f"bad {number}", (2, LAYERS), wallet="one wallet", ms=1 + number)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("edges", [1, 2])
async def test_after_one_node_of_a_wallet_all_its_nodes_are_avoided(
    resources: Resources, redis: Redis, code: str, edges: int
) -> None:
    for number in range(edges):
        await join(redis, f"edge {number}", (0, 2), ms=1 + number)
    await join_provider(redis, 3)
    await join(redis, "honest", (2, LAYERS), ms=9)
    async with generation(resources) as made:
        assert await made.next_route() == ["edge 0", "bad 0"]
        await made.refuse("bad 0", code)
        assert await made.next_route() == [f"edge {edges - 1}", "honest"]
        await made.finish()


async def test_nodes_of_one_wallet_do_not_end_a_generation_by_what_they_sent(
    resources: Resources, redis: Redis
) -> None:
    """Honest nodes fail on it, or accuse who has sent it; either way it is not the prompt."""
    resources.settings.discovery.trusted_wallets = ["wallet of edge"]
    await join(redis, "edge", (0, 2))
    for number in range(2):
        await join(redis, f"bad {number}", (2, 4), wallet="one wallet", ms=1 + number)
        await join(redis, f"victim {number}", (4, LAYERS), ms=1 + number)
    await join(redis, "spare", (2, 4), ms=9)
    async with generation(resources) as made:
        assert await made.next_route() == ["edge", "bad 0", "victim 0"]
        await made.accuse("victim 0", "bad 0", "not_finite")
        assert await made.next_route() == ["edge", "spare", "victim 1"]
        await made.finish()


async def test_nodes_of_one_wallet_do_not_end_a_generation_by_accusing(
    resources: Resources, redis: Redis
) -> None:
    resources.settings.discovery.trusted_wallets = ["wallet of edge"]
    await join(redis, "edge", (0, 2))
    for number in range(2):
        await join(redis, f"victim {number}", (2, 4), ms=1 + number)
        await join(redis, f"bad {number}", (4, 5), wallet="one wallet", ms=1 + number)
    await join(redis, "last", (5, LAYERS))
    await join(redis, "spare", (4, 5), ms=9)
    async with generation(resources) as made:
        assert await made.next_route() == ["edge", "victim 0", "bad 0", "last"]
        await made.accuse("bad 0", "victim 0", "not_finite")
        assert await made.next_route() == ["edge", "victim 1", "spare", "last"]
        await made.finish()


async def test_where_one_wallet_alone_has_the_layers_two_of_its_nodes_are_tried(
    resources: Resources, redis: Redis
) -> None:
    resources.settings.discovery.trusted_wallets = ["wallet of edge"]
    await join(redis, "edge", (0, 2))
    await join_provider(redis, 3)
    async with generation(resources) as made:
        for number in range(2):
            assert await made.next_route() == ["edge", f"bad {number}"]
            await made.refuse(f"bad {number}", GENERATION_FAILED)
        ended = await made.ended()
    assert (ended.status, ended.error_code) == ("failed", "generation_failed")


async def fail_for(resources: Resources, user: str) -> None:
    """The nodes behind the edge fail on a user's prompt, and the generation with them."""
    async with generation(resources, user=user) as made:
        for number in range(2):
            assert await made.next_route() == ["edge", f"bad {number}"]
            await made.refuse(f"bad {number}", GENERATION_FAILED)
        assert (await made.ended()).error_code == "generation_failed"


async def nobody_failed_on(redis: Redis, node_id: str) -> bool:
    return not await redis.exists(redis_keys.failed_users(node_id))


async def refusals_of(redis: Redis, node_id: str) -> int:
    return int(await redis.get(redis_keys.refusals(node_id)) or 0)


async def test_a_node_that_fails_for_several_users_is_paused_ever_longer(
    resources: Resources, redis: Redis
) -> None:
    resources.settings.discovery.trusted_wallets = ["wallet of edge"]
    await join(redis, "edge", (0, 2))
    await join_provider(redis, 2)
    bad = ["bad 0", "bad 1"]
    for number, user in enumerate(USERS):
        await fail_for(resources, user)
        counts = [await refusals_of(redis, node_id) for node_id in bad]
        assert counts == [max(0, number - 1)] * 2
        if number >= 2:
            assert await kv_reservations.free_kv_of(redis, bad) == dict.fromkeys(bad, 0)
        await redis.delete(*map(redis_keys.refusal_pause, bad))
    assert await cools_down(redis, "edge", *bad) == [False] * 3
    assert not await redis.exists(redis_keys.failed_users("edge"))


async def test_what_a_node_serves_between_shows_that_it_works(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "edge", (0, 2))
    await join_provider(redis, 2)
    for user in USERS:
        await fail_for(resources, user)
        async with generation(resources, user=user) as made:
            assert await made.next_route() == ["edge", "bad 0"]
            await made.finish()
        await until(partial(nobody_failed_on, redis, "bad 0"))
        await redis.delete(redis_keys.refusal_pause("bad 1"))
    assert not await redis.exists(redis_keys.refusals("bad 0"))
    assert await redis.exists(redis_keys.refusals("bad 1"))


async def test_one_user_pauses_no_node_by_his_prompts(resources: Resources, redis: Redis) -> None:
    await join(redis, "edge", (0, 2))
    await join_provider(redis, 2)
    for _ in range(5):
        await fail_for(resources, USERS[0])
    assert not await redis.exists(redis_keys.refusals("bad 0"), redis_keys.refusals("bad 1"))
