"""Simulated nodes that answer each step at once: what a hop costs when nobody computes.

Each pair is a node and an edge of its own, which sends it one step and waits for the answer; the
next follows at once. There is no torch in it, and all of them live in one process.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from eth_account import Account
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect

from api.relay.pipelined_connection import Command, PipelinedConnection
from mesh import redis_keys, relay, wire
from mesh.keepalive import RELAY_KEEPALIVE_INTERVAL
from mesh.node_api import NodeRegistration
from mesh.relay import Hello, InboxDelivery, KeepAlive, OutgoingMessage, Push
from mesh.route_record import RouteRecord
from mesh.wire import Step, Steps
from node_runner.platform_client.http import client
from node_runner.platform_client.registration import register as register_node

WIDTH = 2048
"""Values of a row; in 16 bits, 4 KiB."""

CAPACITY = 2**31


@dataclass(frozen=True, slots=True)
class Bounced:
    """Steps handed on in so many seconds, and the milliseconds that each hop took, sorted."""

    nodes: int
    seconds: float
    hops: list[float]

    @property
    def rate(self) -> float:
        """Steps a second, of all nodes together."""
        return 2 * len(self.hops) / self.seconds

    def at(self, share: float) -> float:
        return self.hops[min(int(share * len(self.hops)), len(self.hops) - 1)]


@dataclass(frozen=True, slots=True)
class Member:
    """A registered node: its id and its token."""

    node_id: str
    token: str


def register(url: str, model_id: str, count: int) -> list[Member]:
    """So many nodes, by HTTP and a wallet's signature."""
    account = Account.create()
    registration = NodeRegistration(
        wallet_address=account.address,
        model_id=model_id,
        end_layer=1,
        gpu_model="none",
        vram_gb=0,
        public_addr="192.0.2.1:31330",
        location="unknown",
    )
    with client(url) as http:
        nodes = [register_node(http, registration, bytes(account.key)) for _ in range(count)]
    return [Member(node.node_id, node.node_token) for node in nodes]


async def bounce(
    redis_url: str, relay_url: str | None, members: Sequence[Member], seconds: float
) -> Bounced:
    """Let pairs of the members bounce steps; by Redis if there is no relay."""
    hops: list[float] = []
    async with AsyncExitStack() as stack, Redis.from_url(redis_url) as redis:
        pairs = []
        for number, (edge, node) in enumerate(zip(members[::2], members[1::2], strict=True)):
            route = RouteRecord(WIDTH, CAPACITY, [edge.node_id, node.node_id])
            name = f"bounce_{number}"
            await redis.hset(
                redis_keys.live_record(name), mapping={"epoch": 1, "route": route.pack()}
            )
            ways = [
                await stack.enter_async_context(_way(redis, relay_url, each))
                for each in (edge, node)
            ]
            pairs.append((name, edge, node, ways))
        began = time.perf_counter()
        end = began + seconds
        work = [
            task
            for name, edge, node, (up, down) in pairs
            for task in (_lead(up, node, name, end, hops), _follow(down, edge, name))
        ]
        async with asyncio.timeout(seconds + 20):
            await asyncio.gather(*work)
        took = time.perf_counter() - began
    return Bounced(len(members) // 2, took, sorted(hops))


async def _lead(way: "_Way", node: Member, name: str, end: float, hops: list[float]) -> None:
    step = _step(name)
    while True:
        now = time.perf_counter()
        if now > end:
            await way.send(node.node_id, _step(name, last=True))
            await way.flush()
            return
        await way.send(node.node_id, step)
        await way.receive()
        hops.append(500 * (time.perf_counter() - now))


async def _follow(way: "_Way", edge: Member, name: str) -> None:
    answer = _step(name)
    while await way.receive():
        await way.send(edge.node_id, answer)


def _step(name: str, *, last: bool = False) -> OutgoingMessage:
    """One row; the last one is a replay, which the follower takes as the end."""
    rows = [Step(name, 1, 0, 1, 0 if last else 1, last)]
    fields = wire.encode(Steps(rows, "bfloat16", WIDTH, bytes(2 * WIDTH)))
    return OutgoingMessage("", bytes(fields[wire.HEADER]), bytes(fields[wire.TENSOR]))


def _goes_on(header: bytes) -> bool:
    message = wire.decode({wire.HEADER: header, wire.TENSOR: bytes(2 * WIDTH)})
    return isinstance(message, Steps) and not message.steps[0].replay


class _Way(Protocol):
    """How a simulated node exchanges messages."""

    async def send(self, to: str, sent: OutgoingMessage) -> None: ...

    async def receive(self) -> bool:
        """Whether there is more to come after this."""
        ...

    async def flush(self) -> None:
        """What was sent is on its way, though nothing more will be received."""


class _RedisWay:
    def __init__(self, line: PipelinedConnection, node_id: str, after: bytes) -> None:
        self._line = line
        self._inbox = redis_keys.inbox(node_id)
        self._after = after
        self._unsent: list[Command] = []

    async def send(self, to: str, sent: OutgoingMessage) -> None:
        # Goes out with the next read, as real nodes do it.
        entry = (wire.HEADER, sent.header, wire.TENSOR, sent.tensor)
        self._unsent.append(("XADD", redis_keys.inbox(to), "*", *entry))

    async def flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        await self._line.call(unsent)

    async def receive(self) -> bool:
        while True:
            unsent, self._unsent = self._unsent, []
            read = ("XREAD", "BLOCK", 4000, "STREAMS", self._inbox, self._after)
            answer = (await self._line.call([*unsent, read]))[-1]
            if answer:
                self._after, fields = answer[0][1][-1]
                return _goes_on(fields[1])


class _RelayWay:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self._after = ""

    async def greet(self) -> None:
        await self._connection.send(relay.encode(Hello(relay.VERSION, "bounce", "")))
        welcome = relay.decode(_binary(await self._connection.recv()))
        assert isinstance(welcome, relay.Welcome)
        self._after, self._number = welcome.after, welcome.number

    async def beat(self) -> None:
        """Pulses, as real nodes send them."""
        while True:
            await self._connection.send(relay.encode(KeepAlive(1, 64, self._after)))
            await asyncio.sleep(RELAY_KEEPALIVE_INTERVAL)

    async def send(self, to: str, sent: OutgoingMessage) -> None:
        self._number += 1
        push = Push(self._number, [sent._replace(to=to)])
        await self._connection.send(relay.encode(push))

    async def receive(self) -> bool:
        while True:
            frame = relay.decode(_binary(await self._connection.recv()))
            if isinstance(frame, relay.PushAck) and frame.refused:
                raise RuntimeError(f"The relay refuses: {frame.refused}")
            if isinstance(frame, InboxDelivery):
                self._after = frame.after
                return _goes_on(frame.entries[-1].header)

    async def flush(self) -> None:
        """Nothing waits here."""


@asynccontextmanager
async def _way(redis: Redis, relay_url: str | None, member: Member) -> AsyncIterator[_Way]:
    if relay_url is None:
        line = PipelinedConnection(redis.connection_pool)
        # From the newest entry on: what follows is not missed, whoever begins.
        newest = await redis.xrevrange(redis_keys.inbox(member.node_id), count=1)
        try:
            yield _RedisWay(line, member.node_id, newest[0][0] if newest else b"0-0")
        finally:
            await line.close()
        return
    async with connect(
        relay_url.replace("http", "ws", 1) + relay.WEBSOCKET_PATH,
        additional_headers={"Authorization": f"Bearer {member.token}"},
        compression=None,
        proxy=None,
        ping_interval=None,
    ) as connection:
        speaking = _RelayWay(connection)
        await speaking.greet()
        beating = asyncio.create_task(speaking.beat())
        try:
            yield speaking
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating


def _binary(message: str | bytes) -> bytes:
    assert isinstance(message, bytes)
    return message
