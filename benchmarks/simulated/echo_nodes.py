"""Simulated nodes that answer each step at once: the cost of a hop without any computing.

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
class EchoResult:
    """Seconds that a run took, and the milliseconds of each hop, sorted. ``nodes`` without
    edges."""

    nodes: int
    seconds: float
    hop_ms: list[float]

    @property
    def rate(self) -> float:
        """Steps a second, of all nodes together."""
        return 2 * len(self.hop_ms) / self.seconds

    def at(self, share: float) -> float:
        """Milliseconds of the hop at this share of the sorted ones: 0.5 is the median."""
        return self.hop_ms[min(int(share * len(self.hop_ms)), len(self.hop_ms) - 1)]


@dataclass(frozen=True, slots=True)
class EchoNode:
    """A registered node: its id and its token."""

    node_id: str
    token: str


def register(url: str, model_id: str, count: int) -> list[EchoNode]:
    """Register ``count`` nodes by HTTP, with a wallet's signature."""
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
    return [EchoNode(node.node_id, node.node_token) for node in nodes]


async def run_echo(
    redis_url: str, relay_url: str | None, nodes: Sequence[EchoNode], seconds: float
) -> EchoResult:
    """Send steps from each edge to its node and back for some seconds.

    By Redis if ``relay_url`` is None. ``nodes``: an edge, its node, the next edge, and so on.
    """
    hop_ms: list[float] = []
    async with AsyncExitStack() as stack, Redis.from_url(redis_url) as redis:
        pairs = []
        for number, (edge, node) in enumerate(zip(nodes[::2], nodes[1::2], strict=True)):
            route = RouteRecord(WIDTH, CAPACITY, [edge.node_id, node.node_id])
            name = f"echo_{number}"
            await redis.hset(
                redis_keys.live_record(name), mapping={"epoch": 1, "route": route.pack()}
            )
            # As if each step had its token: the relay counts them.
            await redis.delete(redis_keys.tokens(name))
            await redis.xadd(redis_keys.tokens(name), {"i": 0, "t": ""}, id=f"{CAPACITY}-0")
            channels = [
                await stack.enter_async_context(_open_channel(redis, relay_url, each))
                for each in (edge, node)
            ]
            pairs.append((name, edge, node, channels))
        began = time.perf_counter()
        end = began + seconds
        tasks = [
            task
            for name, edge, node, (edge_channel, node_channel) in pairs
            for task in (
                _send_steps(edge_channel, node, name, end, hop_ms),
                _answer_steps(node_channel, edge, name),
            )
        ]
        async with asyncio.timeout(seconds + 20):
            await asyncio.gather(*tasks)
        took = time.perf_counter() - began
    return EchoResult(len(nodes) // 2, took, sorted(hop_ms))


async def _send_steps(
    channel: "_Channel", node: EchoNode, name: str, end: float, hop_ms: list[float]
) -> None:
    step = _step(name)
    while True:
        now = time.perf_counter()
        if now > end:
            await channel.send(node.node_id, _step(name, last=True))
            await channel.flush()
            return
        await channel.send(node.node_id, step)
        await channel.receive()
        hop_ms.append(500 * (time.perf_counter() - now))


async def _answer_steps(channel: "_Channel", edge: EchoNode, name: str) -> None:
    answer = _step(name)
    while await channel.receive():
        await channel.send(edge.node_id, answer)


def _step(name: str, *, last: bool = False) -> OutgoingMessage:
    """A step of one row. The last one is marked as a replay, at which the node stops."""
    rows = [Step(name, 1, 0, 1, 0 if last else 1, last)]
    fields = wire.encode(Steps(rows, "bfloat16", WIDTH, bytes(2 * WIDTH)))
    return OutgoingMessage("", bytes(fields[wire.HEADER]), bytes(fields[wire.TENSOR]))


def _goes_on(header: bytes) -> bool:
    message = wire.decode({wire.HEADER: header, wire.TENSOR: bytes(2 * WIDTH)})
    return isinstance(message, Steps) and not message.steps[0].replay


class _Channel(Protocol):
    """A simulated node's connection for messages, by Redis or by the relay."""

    async def send(self, to: str, sent: OutgoingMessage) -> None: ...

    async def receive(self) -> bool:
        """Wait for a message; whether more will follow it."""
        ...

    async def flush(self) -> None:
        """Send what is buffered, when nothing more will be received."""


class _RedisChannel:
    def __init__(self, connection: PipelinedConnection, node_id: str, after: bytes) -> None:
        self._connection = connection
        self._inbox = redis_keys.inbox(node_id)
        self._after = after
        self._unsent: list[Command] = []

    async def send(self, to: str, sent: OutgoingMessage) -> None:
        # Goes out with the next read, as real nodes do it.
        entry = (wire.HEADER, sent.header, wire.TENSOR, sent.tensor)
        self._unsent.append(("XADD", redis_keys.inbox(to), "*", *entry))

    async def flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        await self._connection.call(unsent)

    async def receive(self) -> bool:
        while True:
            unsent, self._unsent = self._unsent, []
            read = ("XREAD", "BLOCK", 4000, "STREAMS", self._inbox, self._after)
            answer = (await self._connection.call([*unsent, read]))[-1]
            if answer:
                self._after, fields = answer[0][1][-1]
                return _goes_on(fields[1])


class _RelayChannel:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self._after = ""

    async def handshake(self) -> None:
        await self._connection.send(relay.encode(Hello(relay.VERSION, "echo", "")))
        welcome = relay.decode(_binary(await self._connection.recv()))
        assert isinstance(welcome, relay.Welcome)
        self._after, self._number = welcome.after, welcome.number

    async def send_keep_alives(self) -> None:
        """Send keep-alives as real nodes do, until cancelled."""
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
        """Nothing is buffered here."""


@asynccontextmanager
async def _open_channel(
    redis: Redis, relay_url: str | None, node: EchoNode
) -> AsyncIterator[_Channel]:
    if relay_url is None:
        pipelined = PipelinedConnection(redis.connection_pool)
        # From the newest entry on: what follows is not missed, whichever side begins.
        newest = await redis.xrevrange(redis_keys.inbox(node.node_id), count=1)
        try:
            yield _RedisChannel(pipelined, node.node_id, newest[0][0] if newest else b"0-0")
        finally:
            await pipelined.close()
        return
    async with connect(
        relay_url.replace("http", "ws", 1) + relay.WEBSOCKET_PATH,
        additional_headers={"Authorization": f"Bearer {node.token}"},
        compression=None,
        proxy=None,
        ping_interval=None,
    ) as connection:
        channel = _RelayChannel(connection)
        await channel.handshake()
        keeping_alive = asyncio.create_task(channel.send_keep_alives())
        try:
            yield channel
        finally:
            keeping_alive.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping_alive


def _binary(message: str | bytes) -> bytes:
    assert isinstance(message, bytes)
    return message
