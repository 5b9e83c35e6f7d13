"""A node answers every ping with more positions, and delivers none of them; and an honest node that
is inside one long forward pass is not taken for such a one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from market.resources import Resources
from mesh.wire import Pong
from tests.support.gateway.api import LAYERS
from tests.support.jobs import until
from tests.support.market.scripted_generation import Generation, cools_down, generation, join

PROMPT = 50


@pytest.fixture(autouse=True)
def impatient(resources: Resources) -> None:
    settings = resources.settings.generation
    settings.stall = settings.ping = 0.3
    settings.forward = 2.0
    settings.prefill_rate = 1000.0


@asynccontextmanager
async def answering(
    made: Generation, answers: dict[str, Callable[[int], int]]
) -> AsyncIterator[None]:
    """Nodes that answer each ping: with how many positions, by how often they were asked."""

    async def answer() -> None:
        asked = dict.fromkeys(answers, 0)
        while True:
            for node_id, positions in answers.items():
                for epoch in await made.pings(node_id):
                    asked[node_id] += 1
                    pong = Pong(made.id, epoch, node_id, positions(asked[node_id]))
                    await made.say(node_id, pong)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(answer())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def join_route(redis: Redis) -> None:
    await join(redis, "edge", (0, 2))
    await join(redis, "middle", (2, 4))
    await join(redis, "last", (4, LAYERS))
    await join(redis, "spare", ms=50)


def always(positions: int) -> Callable[[int], int]:
    return lambda _: positions


LIES = {
    "more than there is": lambda asked: PROMPT + 10 * asked,
    "all at once": always(PROMPT),
    "a little each time": lambda asked: asked,
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_node_that_only_says_that_it_advances_is_left(
    resources: Resources, redis: Redis, lie: str
) -> None:
    """The first stall is tolerated, since a message may have been lost. A prompt whose prefill
    takes 50 ms is given as long as a forward pass may take, whatever the node says."""
    await join_route(redis)
    async with generation(resources, prompt_tokens=PROMPT) as made:
        assert await made.next_route() == ["edge", "middle", "last"]
        nodes = {"edge": always(PROMPT), "middle": LIES[lie], "last": always(0)}
        async with answering(made, nodes):
            assert await made.next_route() == ["edge", "middle", "last"]
            assert await made.next_route() == ["spare"]
        await made.finish()
    assert await cools_down(redis, "edge", "middle", "last", "spare") == [False] * 4


async def test_a_result_that_does_not_come_back_is_between_the_last_node_and_the_edge(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "edge", (0, 2))
    await join(redis, "last", (2, LAYERS))
    await join(redis, "other", (2, LAYERS), ms=50)
    async with generation(resources, prompt_tokens=PROMPT) as made:
        assert await made.next_route() == ["edge", "last"]
        async with answering(made, {"edge": always(PROMPT), "last": always(PROMPT)}):
            assert await made.next_route() == ["edge", "last"]
            assert await made.next_route() == ["edge", "other"]  # there is no other edge


async def test_an_answer_counts_only_from_the_node_itself(
    resources: Resources, redis: Redis
) -> None:
    await join_route(redis)
    async with generation(resources, prompt_tokens=PROMPT) as made:
        assert await made.next_route() == ["edge", "middle", "last"]

        async def is_asked() -> bool:
            return bool(await made.pings("middle"))

        await until(is_asked)
        for positions in range(1, 5):
            await made.say("last", Pong(made.id, 1, "middle", positions))
        answers = {"edge": always(PROMPT), "last": always(0)}
        async with answering(made, answers):
            assert await made.next_route() == ["spare"]  # it has not answered, for all that
    assert await cools_down(redis, "middle", "last") == [True, False]


async def test_a_node_inside_a_long_forward_pass_is_not_blamed_while_its_keepalive_is_there(
    resources: Resources, redis: Redis
) -> None:
    resources.settings.generation.forward = 60.0
    await join_route(redis)
    async with generation(resources, prompt_tokens=PROMPT) as made:
        assert await made.next_route() == ["edge", "middle", "last"]
        busy = asyncio.Event()
        async with answering(made, {"edge": always(PROMPT), "last": always(0)}):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(busy.wait(), timeout=4)  # ten times as long as a ping may
        await made.finish()
        assert (await made.row()).epoch == 1
    assert await cools_down(redis, "edge", "middle", "last") == [False] * 3


async def test_a_keepalive_alone_holds_a_generation_no_longer_than_a_forward_pass(
    resources: Resources, redis: Redis
) -> None:
    await join_route(redis)
    async with generation(resources, prompt_tokens=PROMPT) as made:
        assert await made.next_route() == ["edge", "middle", "last"]
        async with answering(made, {"edge": always(PROMPT), "last": always(0)}):
            assert await made.next_route() == ["spare"]
        await made.finish()
    assert await cools_down(redis, "edge", "middle", "last") == [False, True, False]


async def test_refusals_are_heard_while_pings_are_out(resources: Resources, redis: Redis) -> None:
    resources.settings.generation.ping = 60.0
    await join_route(redis)
    async with generation(resources, prompt_tokens=PROMPT) as made:
        await made.next_route()

        async def is_asked() -> bool:
            return bool(await made.pings("middle"))

        await until(is_asked)
        await made.accuse("last", "middle", "wire_error")
        assert await made.next_route() == ["spare"]


async def test_a_node_that_is_never_ready_does_not_get_the_edge_blamed(
    resources: Resources, redis: Redis
) -> None:
    """A prompt with a known prefix begins when all nodes have said how much of it they have; after
    a stall it begins at once."""
    await join(redis, "edge", (0, 2))
    await join(redis, "silent", (2, LAYERS))
    async with generation(resources, prompt_tokens=PROMPT) as made:
        await made.next_route()
        async with answering(made, {"edge": always(0), "silent": always(0)}):
            await made.next_route()
        opened = await made.opened("edge")
        assert opened[0].prefix
        assert not opened[1].prefix
        await made.finish()
    assert await cools_down(redis, "edge") == [False]
