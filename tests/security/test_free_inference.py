"""A user lets a generation end badly, at its deadline or after failures, to read it for nothing."""

import asyncio
import datetime as dt

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select, update

from market import ledger
from market.jobs import live_session, messaging
from market.jobs.tables import Job, NodeContribution
from market.ledger.integrity_check import check_integrity
from market.ledger.tables import LedgerTransaction
from market.nodes import live_registry
from market.resources import Resources
from mesh import redis_keys, token_stream, wire
from tests.conftest import MODEL_ID
from tests.support.gateway.api import GENERATE, Gateway, all_nodes, node, problem, request_body
from tests.support.jobs import POSITIONS, add_whole_node, reload, submit, until, write_tokens
from tests.support.market.leases import expire
from tests.support.market.supervision import supervised, wait_for_first_epoch
from workers.crons.job_sweeper import sweep
from workers.supervisor import completion
from workers.supervisor.task import supervise


class Killed(Exception):
    """The worker dies here."""


async def stream_until_refused(redis: Redis, job: Job) -> int:
    """The edge writes tokens until nobody takes them; how many were taken."""
    keys = (redis_keys.live_record(job.request_id), redis_keys.tokens(job.request_id))
    index = 0
    while await redis.eval(token_stream.APPEND_TOKEN, 2, *keys, 1, index, 7, "x") == 1:
        index += 1
        await asyncio.sleep(0.05)
    return index


async def assert_paid(resources: Resources, job: Job, *, tokens: int, error: str | None) -> None:
    """The user has paid for so many tokens, once, the node has earned them, and all books agree."""
    ended = await reload(resources, job)
    cost = job.price_per_token_far * tokens
    assert (ended.error_code, ended.token_count, ended.total_cost_far) == (error, tokens, cost)
    entries = await live_session.read(resources.redis, job.request_id, token_stream.START)
    assert len([each for each in entries if isinstance(each, live_session.TokenEntry)]) == tokens
    async with resources.sessions() as db:
        assert await ledger.balance(db, ledger.available(job.user_wallet)) == job.hold_far - cost
        assert await ledger.balance(db, ledger.held(job.user_wallet)) == 0
        earned = await db.scalar(select(func.sum(NodeContribution.payment_far)))
        assert (earned or 0) + (ended.fee_far or 0) == cost
        ends = select(LedgerTransaction.kind).where(LedgerTransaction.kind != "hold")
        posted = [kind for kind in await db.scalars(ends) if kind in ("capture", "release")]
        assert posted == ["release" if error and not tokens else "capture"]
    assert (await check_integrity(resources.sessions)).findings == []


async def ended(resources: Resources, job: Job) -> None:
    async def look() -> bool:
        return (await reload(resources, job)).status in ("completed", "failed")

    await until(look)


async def test_a_job_that_streams_to_its_deadline_costs_what_was_delivered(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources, seconds=2)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        delivered = await stream_until_refused(redis, job)
        await ended(resources, job)
    assert delivered > 10
    await assert_paid(resources, job, tokens=delivered, error="deadline_exceeded")


async def test_a_job_whose_routes_all_failed_costs_what_was_delivered(
    resources: Resources, redis: Redis
) -> None:
    resources.settings.generation.max_failures = 1
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        await write_tokens(redis, job, 1, 5)
        refused = wire.GenerationRefused(job.request_id, 1, "node_0", "not_finite")
        await messaging.publish_event(redis, refused, sender="node_0")
        await ended(resources, job)
    await assert_paid(resources, job, tokens=5, error="stalled")


async def test_a_job_whose_nodes_are_gone_costs_what_was_delivered(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources, seconds=3)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        await write_tokens(redis, job, 1, 5)
        await live_registry.evict(redis, "node_0", MODEL_ID)
        await redis.delete(redis_keys.live_record(job.request_id))  # another epoch is needed
        await ended(resources, job)
    await assert_paid(resources, job, tokens=5, error="no_route")


async def test_tokens_that_redis_lost_are_not_charged(resources: Resources, redis: Redis) -> None:
    """Nobody can read them any more. What is written again is charged once."""
    job = await submit(resources)
    await add_whole_node(redis, free_kv=2 * POSITIONS)
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        await write_tokens(redis, job, 1, 5)
        keys = (redis_keys.live_record(job.request_id), redis_keys.tokens(job.request_id))
        await redis.delete(*keys)

        async def begun_again() -> bool:
            return (await reload(resources, job)).epoch == 2

        await until(begun_again)
        async with resources.sessions.begin() as db:
            await db.execute(update(Job).values(cancel_requested=True))
        await messaging.publish_event(redis, wire.Cancel(job.request_id, 2), sender=wire.PLATFORM)
        await ended(resources, job)
    await assert_paid(resources, job, tokens=0, error=None)


async def test_a_job_whose_prompt_was_erased_costs_what_was_delivered(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        await write_tokens(redis, job, 1, 5)
    async with resources.sessions.begin() as db:
        await db.execute(update(Job).values(request_cipher=None))
    await redis.delete(redis_keys.live_record(job.request_id))
    await redis.set(redis_keys.keepalive("node_0"), POSITIONS, ex=3600)
    await supervise({"resources": resources}, job.request_id)
    await assert_paid(resources, job, tokens=5, error="prompt_lost")


async def test_a_job_whose_worker_is_gone_costs_what_was_delivered(
    resources: Resources, redis: Redis
) -> None:
    """The sweeper finds it after its deadline."""
    job = await submit(resources, seconds=2)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        await write_tokens(redis, job, 1, 5)
    await asyncio.sleep((job.deadline_at - dt.datetime.now(dt.UTC)).total_seconds() + 0.1)
    await expire(resources, job)
    await sweep({"resources": resources})
    [task] = await resources.queue.queued_jobs()
    await supervise({"resources": resources}, *task.args)
    await assert_paid(resources, job, tokens=5, error="deadline_exceeded")


async def die(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.parametrize(
    "place",
    [
        (completion, "end"),
        (completion, "_post"),
        (completion, "_credit_nodes"),
        (live_session, "finish"),
    ],
    ids=["after the seal", "before the capture", "before the commit", "after the commit"],
)
async def test_a_worker_killed_while_it_ends_a_job_charges_once(
    resources: Resources,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[object, str],
) -> None:
    job = await submit(resources, seconds=2)
    await add_whole_node(redis, free_kv=POSITIONS)
    with monkeypatch.context() as dying:
        dying.setattr(*place, die)
        supervising = asyncio.create_task(supervise({"resources": resources}, job.request_id))
        await wait_for_first_epoch(resources, redis, job)
        delivered = await stream_until_refused(redis, job)
        with pytest.raises(Killed):
            await supervising
    await expire(resources, job)
    for _ in range(2):
        await supervise({"resources": resources}, job.request_id)
    await assert_paid(resources, job, tokens=delivered, error="deadline_exceeded")


async def test_what_cannot_end_in_time_is_refused_before_anything_is_held(
    gateway: Gateway,
) -> None:
    """100 s a token, and 900 s for a generation: 8 tokens and the prompt's step fit."""
    await gateway.announce(node(1, latency_ms=100_000 - 10))
    before = await gateway.books()
    body = request_body(max_tokens=64)
    said = problem(await gateway.client.post(GENERATE, json=body), 422, "deadline_unreachable")
    assert "8 tokens fit" in said["detail"]
    assert await gateway.books() == before
    await gateway.submit(max_tokens=8)


async def test_a_route_that_has_not_measured_its_speed_refuses_nothing(gateway: Gateway) -> None:
    await gateway.announce(*all_nodes(), node(1, latency_ms=0), node(2, latency_ms=10**9))
    await gateway.submit(max_tokens=64)
