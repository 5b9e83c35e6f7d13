"""A generation under supervision, whose nodes the test plays."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import patch

from redis.asyncio import Redis
from sqlalchemy import select

from market.jobs import messaging
from market.jobs.tables import Job, RouteHop
from market.nodes import live_registry
from market.resources import Resources
from mesh import redis_keys, token_stream, wire
from tests.support.factories import USER
from tests.support.gateway.api import LAYERS, node
from tests.support.jobs import submit, until
from workers.supervisor import epochs
from workers.supervisor.task import supervise

PATIENCE = 20.0
"""Seconds."""


async def join(
    redis: Redis,
    node_id: str,
    span: tuple[int, int] = (0, LAYERS),
    *,
    wallet: str = "",
    ms: float = 1.0,
    free_kv: int = 10_000,
) -> None:
    """A node that needs ``ms`` for a step, for an hour; its wallet is its own unless given."""
    start, end = span
    edge = start == 0
    joined = node(
        0,
        node_id=node_id,
        wallet_address=wallet or f"wallet of {node_id}"[:42],
        start_layer=start,
        end_layer=end,
        edge=edge,
        trusted=edge,
        latency_ms=ms,
    )
    await live_registry.put(redis, joined, ttl=3600)
    await redis.set(redis_keys.keepalive(node_id), free_kv, ex=3600)


async def cools_down(redis: Redis, *node_ids: str) -> list[bool]:
    """Whether each node gets no new generation."""
    return [bool(await redis.exists(redis_keys.cooldown(each))) for each in node_ids]


class Generation:
    """A supervised generation. ``epoch``: the newest whose route the test has seen."""

    def __init__(self, resources: Resources, job: Job, supervising: asyncio.Task[None]) -> None:
        self._resources, self._redis = resources, resources.redis
        self._supervising = supervising
        self.id, self.job, self.epoch = job.request_id, job, 0
        self._read: dict[str, str] = {}

    async def row(self) -> Job:
        async with self._resources.sessions() as db:
            return await db.get_one(Job, self.job.id)

    async def next_route(self) -> list[str]:
        """Nodes of the next epoch's route, once it has been opened on them."""
        epoch = self.epoch + 1

        async def is_open() -> bool:
            route = await self._route(epoch)
            return bool(route) and epoch in [each.epoch for each in await self.opened(route[0])]

        await until(is_open)
        self.epoch = epoch
        return await self._route(epoch)

    async def say(self, sender: str, message: wire.ControlMessage) -> None:
        """What the relay writes when a node sends an event, or sees something itself."""
        await messaging.publish_event(self._redis, message, sender=sender)

    async def accuse(self, sender: str, accused: str, code: str) -> None:
        refusal = wire.GenerationRefused(self.id, self.epoch, accused, code)
        await self.say(sender, refusal)

    async def refuse(self, sender: str, code: str) -> None:
        await self.accuse(sender, sender, code)

    async def write(self, first: int, count: int) -> None:
        """Tokens, as the edge writes them."""
        keys = (redis_keys.live_record(self.id), redis_keys.tokens(self.id))
        for index in range(first, first + count):
            written = await self._redis.eval(  # type: ignore[misc]
                token_stream.APPEND_TOKEN,
                2,
                *keys,
                str(self.epoch),
                str(index),
                "7",
                "x",
            )
            assert written == 1

    async def finish(self, tokens: int = 1, *, first: int = 0) -> None:
        """The edge of the newest route completes the generation."""
        route = await self._route(self.epoch)
        await self.write(first, tokens)
        await self.say(route[0], wire.Ended(self.id, self.epoch, "stop", first + tokens))
        await self.ended()

    async def ended(self) -> Job:
        async def is_over() -> bool:
            return (await self.row()).status in ("completed", "failed")

        await until(is_over)
        await asyncio.wait([self._supervising], timeout=PATIENCE)  # what it notes after the end
        return await self.row()

    async def pings(self, node_id: str) -> list[int]:
        """Epochs of the pings that came to a node since this was asked last."""
        inbox, after = redis_keys.inbox(node_id), self._read.get(node_id, "-")
        entries = await self._redis.xrange(inbox, after)
        if entries:
            self._read[node_id] = "(" + entries[-1][0].decode()
        messages = [wire.decode(fields) for _, fields in entries]
        pings = (each for each in messages if isinstance(each, wire.Ping))
        return [each.epoch for each in pings if each.request_id == self.id]

    async def _route(self, epoch: int) -> list[str]:
        async with self._resources.sessions() as db:
            hops = await db.scalars(
                select(RouteHop)
                .where(RouteHop.session_id == self.job.id, RouteHop.epoch == epoch)
                .order_by(RouteHop.stage)
            )
            return [hop.node_id for hop in hops]

    async def opened(self, node_id: str) -> list[wire.OpenEdge]:
        """What an edge was asked to open of this generation."""
        entries = await self._redis.xrange(redis_keys.inbox(node_id))
        messages = [wire.decode(fields) for _, fields in entries]
        opened = (each for each in messages if isinstance(each, wire.OpenEdge))
        return [each for each in opened if each.request_id == self.id]


@asynccontextmanager
async def generation(
    resources: Resources, *, prompt_tokens: int = 3, user: str = USER
) -> AsyncIterator[Generation]:
    """A generation of up to 100 tokens, and its supervisor for as long. That does not leave it to
    a dispatcher, since there is none."""
    with patch.object(epochs, "SEARCH_SECONDS", PATIENCE):
        async with _supervised(resources, prompt_tokens, user) as made:
            yield made


@asynccontextmanager
async def _supervised(
    resources: Resources, prompt_tokens: int, user: str
) -> AsyncIterator[Generation]:
    job = await submit(resources, wallet=user, prompt_tokens=prompt_tokens, seconds=300)
    task = asyncio.create_task(supervise({"resources": resources}, job.request_id))
    try:
        yield Generation(resources, job, task)
    finally:
        task.cancel()
        [error] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(error, Exception):
            raise error
