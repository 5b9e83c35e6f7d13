"""Simulated nodes without a model, which register, send heartbeats and leave over real HTTP."""

import asyncio
import datetime as dt
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
from eth_account import Account

from mesh import signed_texts

REQUEST_TIMEOUT = 30.0
"""Seconds for one answer."""


class GatewayRefused(httpx.HTTPError):
    """The gateway answered with an error; the message has the status and its text."""


@dataclass(slots=True)
class Counts:
    """Requests of a run: milliseconds of those answered, reasons of heartbeats that were lost, and
    nodes that joined, deregistered (``departures``) or fell silent."""

    registrations_ms: list[float] = field(default_factory=list)
    heartbeats_ms: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    joined: int = 0
    departures: int = 0
    silences: int = 0


@dataclass(slots=True, eq=False)
class SimulatedNode:
    """One node: a wallet, a device, an address, and the state of its registration."""

    number: int
    key: bytes
    wallet: str
    span: tuple[int, int]
    node_id: str = ""
    token: str = ""
    last_heartbeat: float = 0.0
    """Monotonic seconds at which its last heartbeat was answered."""
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    silently: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """As a proxy passes a caller on: each node from an address of its own."""
        number = self.number
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        headers = {"X-Forwarded-For": address}
        return headers | {"Authorization": f"Bearer {self.token}"} if self.token else headers


class NodeFleet:
    """All nodes of a run. ``live`` ones send heartbeats; ``silent`` ones have stopped without
    deregistering: by node id, when their last heartbeat was answered (monotonic)."""

    def __init__(self, url: str, model_id: str, layers: int, rng: Random) -> None:
        # With a heartbeat every half minute a node finds its connection closed, and opens another.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=REQUEST_TIMEOUT)
        self._model_id = model_id
        self._layers = layers
        self._rng = rng
        self._all: list[SimulatedNode] = []
        self.counts = Counts()
        self.live: list[SimulatedNode] = []
        self.silent: dict[str, float] = {}

    def new_node(self) -> SimulatedNode:
        """A node that has not registered before."""
        account = Account.from_key(self._rng.randbytes(32))
        start = self._rng.randrange(self._layers)
        end = self._rng.randint(start + 1, self._layers)
        number = len(self._all) + 1
        node = SimulatedNode(number, bytes(account.key), account.address, (start, end))
        self._all.append(node)
        return node

    async def join(self, node: SimulatedNode, interval: float) -> None:
        """Register, and send heartbeats from now on; the second one after a random part of the
        interval, so that nodes do not send theirs together."""
        if node.task is not None:
            await node.task  # its last heartbeat, if that is under way
        began = time.perf_counter()
        node.token = ""
        node.leaving.clear()
        answer = await self._register(node)
        self.counts.registrations_ms.append(1000 * (time.perf_counter() - began))
        node.node_id, node.token = answer["node_id"], answer["node_token"]
        self.silent.pop(node.node_id, None)
        await self._heartbeat(node)
        self.counts.joined += 1
        self.live.append(node)
        node.task = asyncio.create_task(self._run(node, interval))

    def leave(self, node: SimulatedNode, *, silently: bool) -> None:
        """Stop a node's heartbeats; unless ``silently``, after one that says it is not healthy."""
        self.live.remove(node)
        node.silently = silently
        if silently:
            self.silent[node.node_id] = node.last_heartbeat
            self.counts.silences += 1
        else:
            self.counts.departures += 1
        node.leaving.set()

    async def close(self) -> None:
        """Stop all heartbeats silently, and close the connections."""
        for node in self.live:
            node.silently = True
            node.leaving.set()
        await asyncio.gather(*(node.task for node in self._all if node.task is not None))
        await self._http.aclose()

    async def listing(self) -> tuple[float, int]:
        """Milliseconds that the public list of nodes takes, and the size of the list in bytes."""
        began = time.perf_counter()
        answer = await self._http.get(f"/api/discovery/nodes/active/{self._model_id}")
        answer.raise_for_status()
        return 1000 * (time.perf_counter() - began), len(answer.content)

    def missing(self, active: Collection[str]) -> list[str]:
        """Live nodes that are not among the ``active`` ids."""
        return [node.node_id for node in self.live if node.node_id not in active]

    async def _run(self, node: SimulatedNode, interval: float) -> None:
        wait = self._rng.uniform(0, interval)
        while not await _set_within(node.leaving, wait):
            began = time.monotonic()
            await self._heartbeat(node)
            wait = max(0.0, interval - (time.monotonic() - began))
        if not node.silently:
            await self._heartbeat(node, healthy=False)

    async def _register(self, node: SimulatedNode) -> Any:
        challenge = (await self._request("GET", "/api/auth/nonce", node)).json()
        expires_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=challenge["expires_in"])
        start, end = node.span
        signed = {
            "wallet_address": node.wallet,
            "model_id": self._model_id,
            "start_layer": start,
            "end_layer": end,
            "edge": False,
            "nonce": challenge["nonce"],
            "expires_at": signed_texts.format_instant(expires_at),
        }
        message = signed_texts.registration_message(platform=challenge["domain"], **signed)
        signature = signed_texts.sign(message, node.key)
        body = signed | {
            "signature": signature,
            "gpu_model": "NVIDIA GeForce RTX 4090",
            "vram_gb": 24,
            "public_addr": "192.0.2.1:31330",
            "location": "EU-West",
            "device_id": f"{node.number:032x}",
            "memory_bytes": 24 * 10**9,
        }
        return (await self._request("POST", "/api/nodes/register-distributed", node, body)).json()

    async def _heartbeat(self, node: SimulatedNode, *, healthy: bool = True) -> None:
        began = time.perf_counter()
        body = {
            "node_id": node.node_id,
            "is_healthy": healthy,
            "latency_ms": self._rng.uniform(5, 50),
            "throughput_tokens_per_sec": self._rng.uniform(10, 100),
            "current_requests": self._rng.randrange(8),
            "kv_positions": 16384,
            "hop_ms": self._rng.uniform(5, 150),
            "gpu_utilization_percent": self._rng.uniform(0, 100),
            "vram_used_gb": self._rng.uniform(10, 24),
        }
        try:
            await self._request("POST", "/api/nodes/heartbeat", node, body)
        except httpx.HTTPError as error:
            self.counts.lost.append(str(error) or type(error).__name__)
            return
        self.counts.heartbeats_ms.append(1000 * (time.perf_counter() - began))
        node.last_heartbeat = time.monotonic()

    async def _request(
        self, method: str, path: str, node: SimulatedNode, body: Any = None
    ) -> httpx.Response:
        answer = await self._http.request(method, path, json=body, headers=node.headers)
        if answer.is_error:
            raise GatewayRefused(f"{path}: {answer.status_code} {answer.text[:200]}")
        return answer


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event is set within ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
