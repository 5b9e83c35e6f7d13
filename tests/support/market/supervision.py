"""A job under supervision, and its nodes, which the test plays."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

from redis.asyncio import Redis

from market import ledger
from market.jobs import messaging
from market.jobs.tables import Job
from market.nodes import live_registry
from market.resources import Resources
from mesh import redis_keys, wire
from tests.support.gateway.api import node
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
from workers.supervisor.task import supervise


@asynccontextmanager
async def supervised(resources: Resources, *jobs: Job) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(supervise({"resources": resources}, job.request_id)) for job in jobs
    ]
    try:
        async with dispatching(resources):
            yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def balances(resources: Resources, job: Job) -> tuple[Decimal, Decimal]:
    """What the job's wallet may spend, and what is held."""
    async with resources.sessions() as db:
        return (
            await ledger.balance(db, ledger.available(job.user_wallet)),
            await ledger.balance(db, ledger.held(job.user_wallet)),
        )


async def wait_for_completion(resources: Resources, job: Job) -> None:
    async def is_over() -> bool:
        return (await reload(resources, job)).status == "completed"

    await until(is_over)


async def wait_for_first_epoch(resources: Resources, redis: Redis, job: Job) -> None:
    async def is_open() -> bool:
        return job.request_id in await opened_requests(redis)

    await until(is_open)


@asynccontextmanager
async def served(resources: Resources, redis: Redis) -> AsyncIterator[Job]:
    """A job under supervision, in its first epoch on the one node."""
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        yield job


async def add_node(redis: Redis, node_id: str, span: tuple[int, int], *, ms: float) -> None:
    """A node that needs ``ms`` for a step, with KV cache for any generation, for an hour."""
    start, end = span
    edge = start == 0
    joined = node(
        0, node_id=node_id, start_layer=start, end_layer=end, edge=edge, trusted=edge, latency_ms=ms
    )
    await live_registry.put(redis, joined, ttl=3600)
    await redis.set(redis_keys.keepalive(node_id), 10_000, ex=3600)


async def refuse(resources: Resources, redis: Redis, job: Job, node_id: str, code: str) -> None:
    """``node_id`` refuses whatever is opened, until another edge completes the job."""
    refused = 0
    while not await opened_requests(redis, "honest"):
        epoch = (await reload(resources, job)).epoch
        if epoch > refused and len(await opened_requests(redis)) == epoch:
            refused = epoch
            refusal = wire.GenerationRefused(job.request_id, epoch, node_id, code)
            await messaging.publish_event(redis, refusal, sender=node_id)
        await asyncio.sleep(0.02)
    epoch = (await reload(resources, job)).epoch
    await write_tokens(redis, job, epoch, 3)
    ended = wire.Ended(job.request_id, epoch, "stop", 3)
    await messaging.publish_event(redis, ended, sender="honest")
    await wait_for_completion(resources, job)
