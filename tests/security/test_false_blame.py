"""A node accuses its honest neighbours of bad steps, again and again, to take them from everybody
else."""

import pytest
from redis.asyncio import Redis

from market.resources import Resources
from mesh import redis_keys, wire
from mesh.wire import PLATFORM
from tests.support.gateway.api import LAYERS
from tests.support.market.scripted_generation import Generation, cools_down, generation, join

VICTIM, LIAR = "victim", "liar"
ROUTE = ["edge", VICTIM, LIAR]

ACCUSATIONS = ["wire_error", "not_finite", "flood", "capacity", "made_up"]


async def join_route(redis: Redis, *, liar: str = LIAR, wallet: str = "") -> None:
    """An edge, the victim behind it, the liar behind that; and a slower node for all layers."""
    await join(redis, "edge", (0, 2))
    await join(redis, VICTIM, (2, 4))
    await join(redis, liar, (4, LAYERS), wallet=wallet)
    await join(redis, "spare", ms=50)


async def accused_once(resources: Resources, redis: Redis, liar: str, code: str) -> None:
    """A generation whose route the liar ends with an accusation, and that another completes."""
    async with generation(resources) as made:
        assert await made.next_route() == ["edge", VICTIM, liar]
        await made.accuse(liar, VICTIM, code)
        assert await made.next_route() == ["spare"]  # without either of them
        await made.finish()


@pytest.mark.parametrize("code", ACCUSATIONS)
async def test_one_accusation_takes_a_node_from_no_other_generation(
    resources: Resources, redis: Redis, code: str
) -> None:
    await join_route(redis)
    await accused_once(resources, redis, LIAR, code)
    assert await cools_down(redis, VICTIM, LIAR) == [False, False]


async def test_one_wallet_with_many_nodes_is_one_accuser(
    resources: Resources, redis: Redis
) -> None:
    for number in range(5):
        liar = f"liar {number}"
        await join_route(redis, liar=liar, wallet="one wallet")
        await accused_once(resources, redis, liar, "wire_error")
        assert await cools_down(redis, VICTIM) == [False]
        await redis.delete(redis_keys.node(liar))


async def test_several_wallets_are_believed(resources: Resources, redis: Redis) -> None:
    for number in range(3):
        assert await cools_down(redis, VICTIM) == [False]
        accuser = f"accuser {number}"
        await join_route(redis, liar=accuser)
        await accused_once(resources, redis, accuser, "wire_error")
        await redis.delete(redis_keys.node(accuser))
    assert await cools_down(redis, VICTIM) == [True]
    assert await cools_down(redis, *(f"accuser {number}" for number in range(3))) == [False] * 3


async def test_values_that_are_not_finite_cool_nobody_down_however_many_accuse(
    resources: Resources, redis: Redis
) -> None:
    """Any node before the two may have caused them."""
    for number in range(4):
        accuser = f"accuser {number}"
        await join_route(redis, liar=accuser)
        await accused_once(resources, redis, accuser, "not_finite")
        await redis.delete(redis_keys.node(accuser))
        assert await cools_down(redis, VICTIM, accuser) == [False, False]
    assert not await redis.exists(redis_keys.disputes(VICTIM))


async def test_who_accuses_several_wallets_is_taken_off_the_routes(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "edge", (0, 2))
    await join(redis, LIAR, (4, LAYERS))
    await join(redis, "spare", ms=50)
    for number in range(3):
        assert await cools_down(redis, LIAR) == [False]
        honest = f"honest {number}"
        await join(redis, honest, (2, 4))
        async with generation(resources) as made:
            assert await made.next_route() == ["edge", honest, LIAR]
            await made.accuse(LIAR, honest, "wire_error")
            assert await made.next_route() == ["spare"]
            await made.finish()
        assert await cools_down(redis, honest) == [False]
        await redis.delete(redis_keys.node(honest))
    assert await cools_down(redis, LIAR) == [True]


async def test_edges_that_the_operator_trusts_are_taken_by_no_number_of_accusers(
    resources: Resources, redis: Redis
) -> None:
    resources.settings.discovery.trusted_wallets = ["wallet of edge"]
    for number in range(4):
        liar = f"liar {number}"
        await join(redis, "edge", (0, 2))
        await join(redis, liar, (2, LAYERS))
        await join(redis, "spare", ms=50)
        async with generation(resources) as made:
            assert await made.next_route() == ["edge", liar]
            await made.accuse(liar, "edge", "wire_error")
            assert await made.next_route() == ["spare"]
            await made.finish()
        await redis.delete(redis_keys.node(liar))
    assert await cools_down(redis, "edge") == [False]


async def test_the_only_edge_goes_on_without_its_accuser(
    resources: Resources, redis: Redis
) -> None:
    """Else one accusation would end the generation, since no route is without the edge."""
    await join(redis, "edge", (0, 2))
    await join(redis, LIAR, (2, LAYERS))
    await join(redis, "other", (2, LAYERS), ms=50)
    async with generation(resources) as made:
        assert await made.next_route() == ["edge", LIAR]
        await made.accuse(LIAR, "edge", "wire_error")
        assert await made.next_route() == ["edge", "other"]
        await made.finish()


@pytest.mark.parametrize("code", ["not_finite", "wire_error"])
async def test_accusations_that_the_generation_never_gets_past_count_against_nobody(
    resources: Resources, redis: Redis, code: str
) -> None:
    """It may be the prompt that spoils hidden states: a user would choose who is accused."""
    resources.settings.generation.ping = 0.2  # so long a cancelled generation waits for positions
    for number in range(4):
        await join_route(redis, liar=f"receiver {number}")
        async with generation(resources) as made:
            _, victim, receiver = await made.next_route()
            await made.accuse(receiver, victim, code)
            assert await made.next_route() == ["spare"]
            await made.say(PLATFORM, wire.Cancel(made.id, made.epoch))
            await made.ended()
        await redis.delete(redis_keys.node(f"receiver {number}"))
    assert not await redis.exists(redis_keys.disputes(VICTIM))
    assert await cools_down(redis, VICTIM) == [False]


@pytest.mark.parametrize("code", ["not_finite", "generation_failed", "forgotten", "no_replay"])
async def test_nobody_makes_a_node_accuse_itself_in_front_of_everybody(
    resources: Resources, redis: Redis, code: str
) -> None:
    """Finite hidden states may be large enough to make the next node's infinite, and a step for an
    early position makes it forget the later ones."""
    await join(redis, "edge", (0, 2))
    await join(redis, LIAR, (2, 4))
    await join(redis, VICTIM, (4, LAYERS))
    await join(redis, "spare", ms=50)
    for _ in range(4):
        async with generation(resources) as made:
            route = await made.next_route()
            while route != ["spare"]:
                assert route == ["edge", LIAR, VICTIM]
                await made.refuse(VICTIM, code)
                route = await made.next_route()
            await made.finish()
        assert await cools_down(redis, VICTIM, LIAR) == [False, False]
        assert not await redis.exists(redis_keys.disputes(VICTIM))
        await redis.delete(redis_keys.refusal_pause(VICTIM))


async def test_what_the_relay_saw_counts_at_once(resources: Resources, redis: Redis) -> None:
    await join_route(redis)
    async with generation(resources) as made:
        await made.next_route()
        await made.accuse(PLATFORM, LIAR, "wrong_width")
        assert await made.next_route() == ["spare"]
        assert await cools_down(redis, LIAR, VICTIM) == [True, False]


async def settled(made: Generation) -> None:
    """Whatever was said before has been read: the accusation that the relay makes last is acted
    on."""
    await made.accuse(PLATFORM, LIAR, "wrong_width")
    assert await made.next_route() == ["spare"]


@pytest.mark.parametrize(
    ("sender", "accused"),
    [
        (LIAR, "edge"),  # not its predecessor
        (LIAR, "spare"),  # not on the route
        ("spare", VICTIM),  # says so, and is not on the route
        ("", "spare"),
    ],
)
async def test_nobody_speaks_of_nodes_that_it_does_not_meet(
    resources: Resources, redis: Redis, sender: str, accused: str
) -> None:
    await join_route(redis)
    async with generation(resources) as made:
        assert await made.next_route() == ROUTE
        await made.accuse(sender, accused, "wire_error")
        await settled(made)
        assert await cools_down(redis, "edge", VICTIM, "spare") == [False] * 3


@pytest.mark.parametrize("code", ["kv_full", "moved", "forgotten", "no_replay", "gap"])
async def test_nobody_refuses_for_another(resources: Resources, redis: Redis, code: str) -> None:
    await join_route(redis)
    async with generation(resources) as made:
        assert await made.next_route() == ROUTE
        await made.accuse(LIAR, VICTIM, code)
        await settled(made)
        assert await cools_down(redis, VICTIM) == [False]


async def test_nobody_but_the_edge_ends_a_generation_and_nobody_but_its_user_cancels_it(
    resources: Resources, redis: Redis
) -> None:
    await join_route(redis)
    async with generation(resources) as made:
        assert await made.next_route() == ROUTE
        await made.say(LIAR, wire.Ended(made.id, 1, "stop", 0))
        await made.say(LIAR, wire.Cancel(made.id, 1))
        await settled(made)
        assert (await made.row()).status == "active"


async def test_an_edge_that_counts_tokens_which_nobody_has_is_left_after_the_second_time(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "edge")
    await join(redis, "spare", ms=50)
    async with generation(resources) as made:
        assert await made.next_route() == ["edge"]
        await made.say("edge", wire.Ended(made.id, made.epoch, "stop", 50))
        assert await made.next_route() == ["edge"]  # Redis may have lost tokens
        await made.say("edge", wire.Ended(made.id, made.epoch, "stop", 50))
        assert await made.next_route() == ["spare"]
        assert await cools_down(redis, "edge", "spare") == [True, False]
