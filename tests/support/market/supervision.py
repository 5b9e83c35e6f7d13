"""A job under supervision, and its nodes, which the test plays."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal

from redis.asyncio import Redis

from market import ledger
from market.jobs import messaging
from market.jobs.tables import Job
from market.nodes import live_registry
from market.prompt_vault import PromptText
from market.resources import Resources
from mesh import redis_keys, token_stream, wire
from tests.support.factories import fund, session
from tests.support.gateway.api import LAYERS, node
from tests.support.working import dispatching
from workers.supervisor.task import supervise

WHOLE = {"start_layer": 0, "end_layer": LAYERS}


POSITIONS = 103
"""Of one generation: the prompt's 3 and 100 new ones."""


async def submit(resources: Resources, *, seconds: float = 60, prompt_tokens: int = 3) -> Job:
    """A job as the gateway leaves it, with its deadline in ``seconds``."""
    job = session(status="pending", lease_counter=0)
    job.prompt_tokens = prompt_tokens
    job.epoch, job.lease_expires_at = 0, None
    job.deadline_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    prompt = PromptText(list(range(1, prompt_tokens + 1)), [])
    job.request_cipher = resources.vault.encrypt(job.request_id, prompt)
    async with resources.sessions.begin() as db:
        db.add(job)
        await fund(db, wallet=job.user_wallet, amount=job.hold_far)
        await ledger.hold(db, job=job.request_id, wallet=job.user_wallet, amount=job.hold_far)
    return job


async def reload(resources: Resources, job: Job) -> Job:
    async with resources.sessions() as db:
        return await db.get_one(Job, job.id)


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


async def add_whole_node(redis: Redis, *, free_kv: int) -> None:
    """One node for all layers, with a keep-alive that lasts an hour."""
    await live_registry.put(redis, node(0, **WHOLE), ttl=3600)
    await redis.set(redis_keys.keepalive("node_0"), free_kv, ex=3600)


async def opened_requests(redis: Redis, node_id: str = "node_0") -> list[str]:
    """Request ids that the node, an edge, was asked to open."""
    entries = await redis.xrange(redis_keys.inbox(node_id))
    messages = [wire.decode(fields) for _, fields in entries]
    return [message.request_id for message in messages if isinstance(message, wire.OpenEdge)]


async def wait_for(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    give_up = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < give_up
        await asyncio.sleep(0.02)


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

    await wait_for(is_over)


async def wait_for_first_epoch(resources: Resources, redis: Redis, job: Job) -> None:
    async def is_open() -> bool:
        return job.request_id in await opened_requests(redis)

    await wait_for(is_open)


@asynccontextmanager
async def served(resources: Resources, redis: Redis) -> AsyncIterator[Job]:
    """A job under supervision, in its first epoch on the one node."""
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        yield job


async def write(redis: Redis, job: Job, epoch: int, count: int) -> None:
    """Tokens, as the edge writes them."""
    keys = (redis_keys.live_record(job.request_id), redis_keys.tokens(job.request_id))
    for index in range(count):
        assert await redis.eval(token_stream.APPEND_TOKEN, 2, *keys, epoch, index, 7, "x") == 1


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
    await write(redis, job, epoch, 3)
    ended = wire.Ended(job.request_id, epoch, "stop", 3)
    await messaging.publish_event(redis, ended, sender="honest")
    await wait_for_completion(resources, job)
