"""A stranger submits more jobs than there are routes for, so that they occupy all of a worker's
slots, and nothing else runs: no other job, no cancelling, no deposits, no settlement."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select, update

from market import queue
from market.jobs import queries
from market.jobs.tables import Job
from market.outbox import Outbox
from market.resources import Resources, open_resources
from market.settings import Settings
from mesh import redis_keys
from tests.conftest import generation
from tests.support.jobs import (
    POSITIONS,
    add_whole_node,
    opened_requests,
    reload,
    submit,
    until,
)
from tests.support.working import dispatching
from workers import worker
from workers.crons import schedule
from workers.supervisor.task import supervise

SLOTS = 2

ATTACKER = "0x" + "66" * 20


@pytest.fixture
async def resources(
    make_settings: Callable[..., Settings], redis: Redis
) -> AsyncIterator[Resources]:
    """A worker with few slots."""
    async with open_resources(
        make_settings(generation=generation(supervisors_per_worker=SLOTS, sweep_interval=1))
    ) as opened:
        yield opened


@asynccontextmanager
async def working(resources: Resources) -> AsyncIterator[None]:
    """All that a worker process does."""
    task = asyncio.create_task(worker.work(resources))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def queued(resources: Resources, **of_job: Any) -> Job:
    """A job that was submitted and queued for a worker."""
    job = await submit(resources, **of_job)
    await queue.enqueue(resources.queue, queries.SUPERVISE, job.request_id)
    return job


async def all_wait(resources: Resources, jobs: list[Job]) -> None:
    """Wait until the jobs wait, and no supervisor has one."""

    async def none_is_held() -> bool:
        async with resources.sessions() as db:
            waiting = await db.scalar(
                select(func.count()).where(
                    Job.id.in_([job.id for job in jobs]),
                    Job.waiting_since.is_not(None),
                    Job.lease_expires_at <= func.now(),
                )
            )
        return waiting == len(jobs)

    await until(none_is_held)


async def cancel(resources: Resources, job: Job) -> None:
    async with resources.sessions.begin() as db:
        await db.execute(update(Job).where(Job.id == job.id).values(cancel_requested=True))


async def ended(resources: Resources, job: Job) -> bool:
    return (await reload(resources, job)).status in queries.ENDED


async def test_jobs_without_a_route_keep_no_slot_from_one_that_has_a_route(
    resources: Resources, redis: Redis
) -> None:
    await add_whole_node(redis, free_kv=POSITIONS)
    async with dispatching(resources):
        waiting = [
            await queued(resources, wallet=ATTACKER, max_tokens=1000) for _ in range(3 * SLOTS)
        ]
        await all_wait(resources, waiting)
        honest = await queued(resources)

        async def is_open() -> bool:
            return await opened_requests(redis) == [honest.request_id]

        await until(is_open)


async def test_a_worker_full_of_generations_runs_its_crons(
    resources: Resources, redis: Redis
) -> None:
    """All slots are taken by generations that have a route and run."""
    await add_whole_node(redis, free_kv=SLOTS * POSITIONS)
    async with working(resources):
        for _ in range(SLOTS):
            await queued(resources, wallet=ATTACKER)

        async def are_open() -> bool:
            return len(await opened_requests(redis)) == SLOTS

        await until(are_open)
        async with resources.sessions.begin() as db:
            db.add(Outbox(task=queries.SUPERVISE, argument="req_of_a_gateway_that_failed"))

        async def is_sent() -> bool:
            async with resources.sessions() as db:
                return not await db.scalar(select(func.count()).where(Outbox.sent_at.is_(None)))

        await until(is_sent)


async def test_a_slow_settlement_keeps_no_deposit_from_running(
    make_settings: Callable[..., Settings], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = settlements = 0

    async def never_ends(ctx: dict[str, Any]) -> None:
        nonlocal settlements
        settlements += 1
        await asyncio.Event().wait()

    async def look(ctx: dict[str, Any]) -> None:
        nonlocal looks
        looks += 1

    monkeypatch.setattr(schedule, "settle", never_ends)
    monkeypatch.setattr(schedule, "follow_chain", look)
    payments = {"settlement_interval": 1, "deposit_interval": 1}
    async with open_resources(make_settings(payments=payments)) as resources, working(resources):
        slots = schedule.cron_worker(resources).max_jobs

        async def all_slots_would_be_taken() -> bool:
            return looks > slots + 1

        await until(all_slots_would_be_taken, seconds=60)
    assert settlements == 1


async def test_a_job_that_waits_is_cancelled_while_all_slots_are_taken(
    resources: Resources, redis: Redis
) -> None:
    await add_whole_node(redis, free_kv=SLOTS * POSITIONS)
    async with dispatching(resources):
        for _ in range(SLOTS):
            await queued(resources, wallet=ATTACKER)

        async def are_open() -> bool:
            return len(await opened_requests(redis)) == SLOTS

        await until(are_open)
        honest = await queued(resources)
        await cancel(resources, honest)
        await until(lambda: ended(resources, honest))
    assert (await reload(resources, honest)).finish_reason == "cancelled"


async def test_a_job_ends_at_its_deadline_while_all_slots_are_taken(
    resources: Resources, redis: Redis
) -> None:
    await add_whole_node(redis, free_kv=SLOTS * POSITIONS)
    async with dispatching(resources):
        for _ in range(SLOTS):
            await queued(resources, wallet=ATTACKER)

        async def are_open() -> bool:
            return len(await opened_requests(redis)) == SLOTS

        await until(are_open)
        honest = await queued(resources, seconds=1)
        await until(lambda: ended(resources, honest))
    assert (await reload(resources, honest)).status == "failed"


async def test_one_wallets_many_jobs_do_not_come_before_anothers_first(
    resources: Resources, redis: Redis
) -> None:
    await add_whole_node(redis, free_kv=0)
    async with dispatching(resources):
        flood = [await queued(resources, wallet=ATTACKER) for _ in range(5)]
        honest = await queued(resources)
        await all_wait(resources, [*flood, honest])
        await redis.set(redis_keys.keepalive("node_0"), 2 * POSITIONS, ex=3600)

        async def two_are_open() -> bool:
            return len(await opened_requests(redis)) == 2

        await until(two_are_open)
    assert set(await opened_requests(redis)) == {flood[0].request_id, honest.request_id}


async def test_a_new_job_does_not_overtake_those_that_wait(
    resources: Resources, redis: Redis
) -> None:
    """Else whoever submits at the moment in which KV cache comes free would always get it."""
    await add_whole_node(redis, free_kv=0)
    early = await submit(resources)
    await supervise({"resources": resources}, early.request_id)
    await redis.set(redis_keys.keepalive("node_0"), POSITIONS, ex=3600)
    late = await submit(resources, wallet=ATTACKER)
    await supervise({"resources": resources}, late.request_id)
    await all_wait(resources, [early, late])
    async with dispatching(resources):

        async def is_open() -> bool:
            return await opened_requests(redis) == [early.request_id]

        await until(is_open)
