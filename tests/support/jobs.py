"""Jobs as the gateway leaves them, a node that takes all of them, and what became of them."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from market import ledger
from market.jobs.tables import Job
from market.nodes import live_registry
from market.prompt_vault import PromptText
from market.resources import Resources
from mesh import redis_keys, token_stream, wire
from tests.support.factories import USER, fund, session
from tests.support.gateway.api import LAYERS, node

POSITIONS = 103
"""Of one generation: the prompt's 3 and 100 new ones."""


async def submit(
    resources: Resources,
    *,
    wallet: str = USER,
    prompt_tokens: int = 3,
    max_tokens: int = 100,
    seconds: float = 60,
) -> Job:
    """A job as the gateway leaves it, with its deadline in ``seconds``."""
    job = session(user=wallet, status="pending", lease_counter=0, max_tokens=max_tokens)
    job.prompt_tokens = prompt_tokens
    job.epoch, job.lease_expires_at = 0, None
    job.deadline_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    prompt = PromptText(list(range(1, prompt_tokens + 1)), [])
    job.request_cipher = resources.vault.encrypt(job.request_id, prompt.to_bytes())
    async with resources.sessions.begin() as db:
        db.add(job)
        await fund(db, wallet=job.user_wallet, amount=job.hold_far)
        await ledger.hold(db, job=job.request_id, wallet=job.user_wallet, amount=job.hold_far)
    return job


async def reload(resources: Resources, job: Job) -> Job:
    """The job as Postgres has it now."""
    async with resources.sessions() as db:
        return await db.get_one(Job, job.id)


async def add_whole_node(redis: Redis, *, free_kv: int) -> None:
    """One node for all layers, with a keep-alive that lasts an hour."""
    await live_registry.put(redis, node(0, start_layer=0, end_layer=LAYERS), ttl=3600)
    await redis.set(redis_keys.keepalive("node_0"), free_kv, ex=3600)


async def opened_requests(redis: Redis, node_id: str = "node_0") -> list[str]:
    """Request ids that the node, an edge, was asked to open."""
    entries = await redis.xrange(redis_keys.inbox(node_id))
    messages = [wire.decode(fields) for _, fields in entries]
    return [message.request_id for message in messages if isinstance(message, wire.OpenEdge)]


async def write_tokens(redis: Redis, job: Job, epoch: int, count: int) -> None:
    """Tokens, as the edge writes them."""
    keys = (redis_keys.live_record(job.request_id), redis_keys.tokens(job.request_id))
    for index in range(count):
        assert await redis.eval(token_stream.APPEND_TOKEN, 2, *keys, epoch, index, 7, "x") == 1


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 20) -> None:
    """Wait for a condition, at most so many seconds."""
    give_up = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < give_up, "it never became true"
        await asyncio.sleep(0.02)
