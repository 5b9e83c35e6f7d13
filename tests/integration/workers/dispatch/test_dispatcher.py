"""Jobs that wait without a supervisor, and who wakes one for them."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, update

from market.jobs import messaging
from market.jobs.tables import Job
from market.nodes import live_registry
from market.resources import Resources
from mesh import redis_keys, wire
from tests.support.gateway.api import LAYERS, node
from tests.support.jobs import (
    POSITIONS,
    add_whole_node,
    opened_requests,
    reload,
    submit,
    until,
    write_tokens,
)
from tests.support.working import dispatching
from workers.crons.job_sweeper import sweep
from workers.dispatch.dispatcher import Dispatcher
from workers.supervisor import epochs
from workers.supervisor.task import supervise
from workers.supervisor.waiting_state import WaitingState

OTHER = "0x" + "77" * 20


async def run(resources: Resources, job: Job) -> None:
    await supervise({"resources": resources}, job.request_id)


async def messages(redis: Redis, node_id: str = "node_0") -> list[wire.Message]:
    entries = await redis.xrange(redis_keys.inbox(node_id))
    return [wire.decode(fields) for _, fields in entries]


async def waits(resources: Resources, job: Job) -> bool:
    row = await reload(resources, job)
    return (
        row.waiting_since is not None
        and row.lease_expires_at is not None
        and row.lease_expires_at <= dt.datetime.now(dt.UTC)
    )


@asynccontextmanager
async def supervised(resources: Resources, job: Job) -> AsyncIterator[None]:
    """The job under supervision, and whoever wakes it again."""
    first = asyncio.create_task(run(resources, job))
    try:
        async with dispatching(resources):
            yield
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def is_open(redis: Redis, job: Job, epochs: int = 1) -> bool:
    return (await opened_requests(redis)).count(job.request_id) == epochs


async def queued(resources: Resources) -> list[str]:
    return [task.args[0] for task in await resources.queue.queued_jobs()]


async def test_without_a_route_a_job_waits_and_keeps_no_lease(resources: Resources) -> None:
    job = await submit(resources)
    await run(resources, job)
    assert await waits(resources, job)
    assert (await reload(resources, job)).status == "active"


async def test_the_sweeper_leaves_a_job_that_waits_to_the_dispatcher(resources: Resources) -> None:
    job = await submit(resources)
    await run(resources, job)
    await sweep({"resources": resources})
    await Dispatcher(resources).dispatch()
    assert await queued(resources) == []


async def test_a_route_wakes_as_many_as_it_has_room_for(resources: Resources, redis: Redis) -> None:
    jobs = [await submit(resources) for _ in range(5)]
    for job in jobs:
        await run(resources, job)
    await add_whole_node(redis, free_kv=3 * POSITIONS)
    for _ in range(2):  # another worker's dispatcher finds the same
        await Dispatcher(resources).dispatch()
    assert sorted(await queued(resources)) == sorted(job.request_id for job in jobs[:3])


async def test_a_small_job_passes_one_that_does_not_fit(resources: Resources, redis: Redis) -> None:
    large, small = await submit(resources, max_tokens=1000), await submit(resources)
    for job in (large, small):
        await run(resources, job)
    await add_whole_node(redis, free_kv=POSITIONS)
    await Dispatcher(resources).dispatch()
    assert await queued(resources) == [small.request_id]


async def test_few_searches_tell_of_many_jobs_that_there_is_no_route(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = 0

    def count(*_: object) -> None:
        nonlocal searches
        searches += 1

    for _ in range(10):
        await run(resources, await submit(resources))
    await add_whole_node(redis, free_kv=POSITIONS - 1)
    monkeypatch.setattr("workers.dispatch.free_routes.cheapest_route", count)
    await Dispatcher(resources).dispatch()
    assert searches == 1


async def test_a_lost_wake_up_is_repeated(resources: Resources, redis: Redis) -> None:
    """Redis is restarted empty between the waking and the supervisor."""
    job = await submit(resources)
    await run(resources, job)
    await add_whole_node(redis, free_kv=POSITIONS)
    await Dispatcher(resources).dispatch()
    await redis.flushall()
    assert await queued(resources) == []
    await add_whole_node(redis, free_kv=POSITIONS)
    await Dispatcher(resources).dispatch()
    assert await queued(resources) == [job.request_id]


async def test_a_supervisor_that_dies_while_it_searches_leaves_the_job_waiting(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    await run(resources, job)
    async with resources.sessions.begin() as db:  # woken, and killed before it found a route
        await db.execute(
            update(Job)
            .where(Job.id == job.id)
            .values(
                lease_counter=Job.lease_counter + 1,
                lease_expires_at=func.now() - dt.timedelta(seconds=1),
            )
        )
    await add_whole_node(redis, free_kv=POSITIONS)
    async with dispatching(resources):
        await until(lambda: is_open(redis, job))


async def test_what_goes_wrong_with_one_job_keeps_no_other_from_ending(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, honest = await submit(resources), await submit(resources)
    for job in (broken, honest):
        await run(resources, job)

    async def fail(ctx: dict[str, Resources], request_id: str) -> None:
        if request_id == broken.request_id:
            raise ZeroDivisionError
        await supervise(ctx, request_id)

    monkeypatch.setattr("workers.supervisor.task.supervise", fail)
    async with resources.sessions.begin() as db:
        await db.execute(update(Job).values(cancel_requested=True))
    dispatcher = Dispatcher(resources)
    await dispatcher.dispatch()
    await dispatcher.finish()
    assert (await reload(resources, honest)).finish_reason == "cancelled"


async def lose_route(resources: Resources, redis: Redis, job: Job, tokens: int = 0) -> None:
    """The job's one node stops answering to it, so that it waits in the middle of its text."""
    await until(lambda: is_open(redis, job))
    if tokens:
        await write_tokens(redis, job, 1, tokens)
    refusal = wire.GenerationRefused(job.request_id, 1, "node_0", "flood")
    await messaging.publish_event(redis, refusal, sender="node_0")
    await until(lambda: waits(resources, job))


async def test_a_job_that_waited_in_its_middle_goes_on_where_it_was(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await lose_route(resources, redis, job, tokens=5)
        edge = node(0, node_id="other", start_layer=0, end_layer=LAYERS)
        await live_registry.put(redis, edge, ttl=3600)
        await redis.set(redis_keys.keepalive("other"), POSITIONS, ex=3600)

        async def is_open_on_the_other() -> bool:
            return await opened_requests(redis, "other") == [job.request_id]

        await until(is_open_on_the_other)
    row = await reload(resources, job)
    assert (row.epoch, row.waiting_since, row.waiting_state) == (2, None, None)
    (opened,) = [each for each in await messages(redis, "other") if isinstance(each, wire.OpenEdge)]
    assert opened.prompt.generated == [7] * 5


async def test_what_led_to_the_wait_is_acted_on_once(resources: Resources, redis: Redis) -> None:
    """A refusal is not held against its node again by each supervisor that is woken."""
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await lose_route(resources, redis, job)
        state = (await reload(resources, job)).waiting_state
        assert state is not None
        assert state["failures"] == 1
        assert set(state["avoidance"]["nodes"]) == {"node_0"}
        await redis.delete(redis_keys.cooldown("node_0"))
        await asyncio.sleep(1)
        assert await is_open(redis, job), "the job itself still avoids it"
        await run(resources, job)
        assert not await redis.exists(redis_keys.cooldown("node_0"))
        assert (await reload(resources, job)).waiting_state == state


async def test_kept_kv_cache_is_given_back_after_a_while(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.dispatch.dispatcher.KEEP_KV_SECONDS", 2.0)
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await lose_route(resources, redis, job)

        async def is_closed() -> bool:
            return isinstance((await messages(redis))[-1], wire.Close)

        assert not await is_closed()
        await until(is_closed)

        async def keeps_none() -> bool:
            state = (await reload(resources, job)).waiting_state
            return state is not None and state["hops"] == []

        await until(keeps_none)
        closed = [each for each in await messages(redis) if isinstance(each, wire.Close)]
        await asyncio.sleep(0.6)
        assert len(closed) == 1
    assert len([each for each in await messages(redis) if isinstance(each, wire.Close)]) == 1


async def test_a_route_that_keeps_kv_cache_may_complete_the_job_meanwhile(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await lose_route(resources, redis, job)
        await write_tokens(redis, job, 1, 5)
        ended = wire.Ended(job.request_id, 1, "stop", 5)
        await messaging.publish_event(redis, ended, sender="node_0")

        async def is_completed() -> bool:
            return (await reload(resources, job)).status == "completed"

        await until(is_completed)
    assert (await reload(resources, job)).token_count == 5


async def test_jobs_that_have_had_a_route_come_first(resources: Resources, redis: Redis) -> None:
    """Their users have a part of the text."""
    new = [await submit(resources, wallet=OTHER) for _ in range(2)]
    began = await submit(resources)
    for job in new:
        await run(resources, job)
    async with resources.sessions.begin() as db:
        await db.execute(
            update(Job)
            .where(Job.id == began.id)
            .values(
                epoch=1,
                status="active",
                waiting_since=func.now(),
                waiting_state=WaitingState(reason="silent").to_json(),
            )
        )
    await add_whole_node(redis, free_kv=POSITIONS)
    await Dispatcher(resources).dispatch()
    assert await queued(resources) == [began.request_id]


async def test_a_job_that_waits_starts_soon_after_there_is_room(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    await add_whole_node(redis, free_kv=0)
    async with supervised(resources, job):
        await until(lambda: waits(resources, job))
        began = asyncio.get_running_loop().time()
        await redis.set(redis_keys.keepalive("node_0"), POSITIONS, ex=3600)
        await until(lambda: is_open(redis, job))
        took = asyncio.get_running_loop().time() - began
    assert took < 5 * epochs.SEARCH_SECONDS, "it is not left to a cron"
