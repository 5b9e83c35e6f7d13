"""A generation that its user's gateway stops in the live record: how it ends, whoever dies then."""

import asyncio
from contextlib import suppress
from decimal import Decimal

import pytest
from redis.asyncio import Redis
from sqlalchemy import update

from market.jobs import cancellation, messaging, stop
from market.jobs.reading.stored_tokens import StoredTokensReader
from market.jobs.stop import Reader
from market.jobs.tables import Job
from market.resources import Resources
from mesh import redis_keys, wire
from tests.support.factories import token_entries
from tests.support.jobs import (
    POSITIONS,
    add_whole_node,
    opened_requests,
    reload,
    submit,
    until,
    write_tokens,
)
from tests.support.market.supervision import (
    balances,
    served,
    supervised,
    wait_for_completion,
    wait_for_first_epoch,
)
from workers.supervisor import completion
from workers.supervisor.task import supervise

PRICE = Decimal("0.0001")
TTL = 3600


async def stop_at(redis: Redis, job: Job, sent: int) -> None:
    """What the gateway does first when the only reader of a job disconnects."""
    reader = Reader(sent=sent)
    await stop.note_reader(redis, job.request_id, reader, ttl=TTL)
    await stop.stop(redis, job.request_id, reader, ttl=TTL)


async def assert_ended(resources: Resources, job: Job, tokens: int) -> None:
    """Cancelled, stored, and paid for, with exactly so many tokens."""
    ended = await reload(resources, job)
    assert (ended.status, ended.finish_reason) == ("completed", "cancelled")
    assert ended.token_count == tokens
    stored = await StoredTokensReader(resources.sessions, resources.vault).all(job.request_id)
    assert stored == token_entries(tokens)
    assert await balances(resources, job) == (job.hold_far - tokens * PRICE, 0)


async def closed(redis: Redis, job: Job) -> bool:
    """Whether the node was told that it is not needed any more."""
    entries = await redis.xrange(redis_keys.inbox("node_0"))
    messages = [wire.decode(fields) for _, fields in entries]
    return any(isinstance(message, wire.Close) for message in messages)


async def test_a_gateway_that_dies_after_its_word_in_redis_has_cancelled(
    resources: Resources, redis: Redis
) -> None:
    """Postgres says nothing of it."""
    async with served(resources, redis) as job:
        await write_tokens(redis, job, 1, 5)
        await stop_at(redis, job, 3)
        await wait_for_completion(resources, job)
    assert not (await reload(resources, job)).cancel_requested
    await assert_ended(resources, job, 3)


async def test_the_end_that_the_edge_reports_is_not_waited_for(
    resources: Resources, redis: Redis
) -> None:
    """It counts tokens that were taken back."""
    async with served(resources, redis) as job:
        await write_tokens(redis, job, 1, 5)
        await stop_at(redis, job, 2)
        ended = wire.Ended(job.request_id, 1, "stop", 5)
        await messaging.publish_event(redis, ended, sender="node_0")
        await wait_for_completion(resources, job)
        assert await opened_requests(redis) == [job.request_id], "and nothing is generated again"
    await assert_ended(resources, job, 2)


async def test_a_job_that_is_stopped_before_it_began_asks_no_node(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    await stop_at(redis, job, 0)
    async with supervised(resources, job):
        await wait_for_completion(resources, job)
    assert await opened_requests(redis) == []
    await assert_ended(resources, job, 0)


async def test_a_job_that_waits_for_a_route_ends_when_it_is_stopped(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    async with supervised(resources, job):

        async def waits() -> bool:
            return (await reload(resources, job)).waiting_since is not None

        await until(waits)
        await stop_at(redis, job, 0)
        await cancellation.cancel(resources, job)
        await wait_for_completion(resources, job)
    await assert_ended(resources, job, 0)


async def test_without_redis_the_mark_in_postgres_is_enough(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ConnectionError

    async with served(resources, redis) as job:
        await write_tokens(redis, job, 1, 5)
        monkeypatch.setattr(stop, "stop", fail)
        await cancellation.cancel(resources, job, Reader(sent=3))
        await wait_for_completion(resources, job)
    await assert_ended(resources, job, 5)


async def test_redis_loses_the_stop_and_all_tokens(resources: Resources, redis: Redis) -> None:
    """Nobody can read them, so nobody pays."""
    async with served(resources, redis) as job:
        await write_tokens(redis, job, 1, 5)
        await cancellation.cancel(resources, job, Reader(sent=3))
        await redis.delete(
            redis_keys.tokens(job.request_id),
            redis_keys.live_record(job.request_id),
            redis_keys.events(job.request_id),
        )
        await wait_for_completion(resources, job)
    ended = await reload(resources, job)
    assert await balances(resources, job) == (job.hold_far - ended.token_count * PRICE, 0)
    assert ended.token_count in (0, 5), "whether the supervisor was quicker"


@pytest.mark.parametrize("committed", [False, True])
async def test_a_supervisor_that_dies_at_the_end_is_replaced_and_nobody_pays_twice(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """It dies before, or after, the transaction that charges."""
    end, dying = completion.end, asyncio.Event()

    async def die(*args: object, **kwargs: object) -> None:
        if committed:
            await end(*args, **kwargs)  # type: ignore[arg-type]
        dying.set()
        await asyncio.Event().wait()

    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    monkeypatch.setattr(completion, "end", die)
    first = asyncio.create_task(supervise({"resources": resources}, job.request_id))
    await wait_for_first_epoch(resources, redis, job)
    await write_tokens(redis, job, 1, 5)
    await stop_at(redis, job, 3)
    await dying.wait()
    assert await closed(redis, job), "KV cache is free before the bill is written"
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    monkeypatch.setattr(completion, "end", end)
    await supervise({"resources": resources}, job.request_id)
    await assert_ended(resources, job, 3)


@pytest.mark.parametrize("marked", [False, True])
async def test_before_the_first_token_what_was_computed_of_the_prompt_is_paid_for(
    resources: Resources, redis: Redis, marked: bool
) -> None:
    """The node says how far it is before it lets go, and knows nothing of the generation when the
    supervisor asks; whether Postgres says so as well or the gateway has died."""
    job = await submit(resources, prompt_tokens=50)
    await add_whole_node(redis, free_kv=2 * POSITIONS)
    async with resources.sessions.begin() as db:
        prices = {"price_per_prompt_token_far": PRICE}
        await db.execute(update(Job).where(Job.id == job.id).values(prices))

    async def play_node() -> None:
        after, positions = "0-0", 30
        while True:
            found = await redis.xread({redis_keys.inbox("node_0"): after}, block=200)
            for entry, fields in found[0][1] if found else ():
                after, message = entry.decode(), wire.decode(fields)
                if isinstance(message, wire.Ping):
                    pong = wire.Pong(job.request_id, message.epoch, "node_0", positions)
                    await messaging.publish_event(redis, pong, sender="node_0")
                elif isinstance(message, wire.Close):
                    positions = 0

    node = asyncio.create_task(play_node())
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        if marked:
            await cancellation.cancel(resources, job, Reader())
        else:
            await stop_at(redis, job, 0)
        await wait_for_completion(resources, job)
    node.cancel()
    ended = await reload(resources, job)
    assert (ended.token_count, ended.total_cost_far) == (0, 30 * PRICE)
    assert await balances(resources, job) == (job.hold_far - 30 * PRICE, 0)
