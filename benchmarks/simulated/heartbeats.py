"""Nodes without a model: they register, beat, leave and come back over real HTTP."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
from eth_account import Account

from mesh import signed_texts

PATIENCE = 30.0
"""Seconds for one answer."""


class Refused(httpx.HTTPError):
    """The gateway answered with an error; the message has what it said."""


@dataclass(slots=True)
class Tally:
    """What was sent and what came of it. Milliseconds; reasons of what was lost."""

    registrations_ms: list[float] = field(default_factory=list)
    beats_ms: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    joined: int = 0
    farewells: int = 0
    silences: int = 0


@dataclass(slots=True, eq=False)
class Simulated:
    """One node: a wallet, a device, an address, and where it is in its life."""

    number: int
    key: bytes
    wallet: str
    span: tuple[int, int]
    node_id: str = ""
    token: str = ""
    heard: float = 0.0
    """Monotonic seconds at which its last heartbeat was answered."""
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    silently: bool = False
    life: asyncio.Task[None] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """As a proxy passes a caller on: each node from an address of its own."""
        number = self.number
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        headers = {"X-Forwarded-For": address}
        return headers | {"Authorization": f"Bearer {self.token}"} if self.token else headers


class Crowd:
    """All nodes of a run. ``live`` beat; ``silent`` have stopped without a word, and since when."""

    def __init__(self, url: str, model_id: str, layers: int, rng: Random) -> None:
        # A node that beats every half minute finds its connection closed, and opens another.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=PATIENCE)
        self._model_id = model_id
        self._layers = layers
        self._rng = rng
        self._all: list[Simulated] = []
        self.tally = Tally()
        self.live: list[Simulated] = []
        self.silent: dict[str, float] = {}

    def invent(self) -> Simulated:
        """A node that was never there."""
        account = Account.from_key(self._rng.randbytes(32))
        start = self._rng.randrange(self._layers)
        end = self._rng.randint(start + 1, self._layers)
        number = len(self._all) + 1
        node = Simulated(number, bytes(account.key), account.address, (start, end))
        self._all.append(node)
        return node

    async def join(self, node: Simulated, interval: float) -> None:
        """Register, and beat from now on; the second time after a part of the interval, so that
        not all beat together."""
        if node.life is not None:
            await node.life  # its farewell, if that is under way
        began = time.perf_counter()
        node.token = ""
        node.leaving.clear()
        answer = await self._register(node)
        self.tally.registrations_ms.append(1000 * (time.perf_counter() - began))
        node.node_id, node.token = answer["node_id"], answer["node_token"]
        self.silent.pop(node.node_id, None)
        await self._beat(node)
        self.tally.joined += 1
        self.live.append(node)
        node.life = asyncio.create_task(self._live(node, interval))

    def leave(self, node: Simulated, *, silently: bool) -> None:
        """With a farewell, or without a word."""
        self.live.remove(node)
        node.silently = silently
        if silently:
            self.silent[node.node_id] = node.heard
            self.tally.silences += 1
        else:
            self.tally.farewells += 1
        node.leaving.set()

    async def close(self) -> None:
        """Everybody goes without a word."""
        for node in self.live:
            node.silently = True
            node.leaving.set()
        await asyncio.gather(*(node.life for node in self._all if node.life is not None))
        await self._http.aclose()

    async def listing(self) -> tuple[float, int]:
        """Milliseconds that the public list of nodes takes, and its bytes."""
        began = time.perf_counter()
        answer = await self._http.get(f"/api/discovery/nodes/active/{self._model_id}")
        answer.raise_for_status()
        return 1000 * (time.perf_counter() - began), len(answer.content)

    def missing(self, active: Collection[str]) -> list[str]:
        """Nodes that beat and are not on the routes."""
        return [node.node_id for node in self.live if node.node_id not in active]

    async def _live(self, node: Simulated, interval: float) -> None:
        wait = self._rng.uniform(0, interval)
        while not await _happens(node.leaving, wait):
            began = time.monotonic()
            await self._beat(node)
            wait = max(0.0, interval - (time.monotonic() - began))
        if not node.silently:
            await self._beat(node, healthy=False)

    async def _register(self, node: Simulated) -> Any:
        nonce = (await self._ask("GET", "/api/auth/nonce", node)).json()["nonce"]
        start, end = node.span
        signed = {
            "wallet_address": node.wallet,
            "model_id": self._model_id,
            "start_layer": start,
            "end_layer": end,
            "edge": False,
            "nonce": nonce,
        }
        signature = signed_texts.sign(signed_texts.registration_message(**signed), node.key)
        body = signed | {
            "signature": signature,
            "gpu_model": "NVIDIA GeForce RTX 4090",
            "vram_gb": 24,
            "public_addr": "192.0.2.1:31330",
            "location": "EU-West",
            "device_id": f"{node.number:032x}",
            "memory_bytes": 24 * 10**9,
        }
        return (await self._ask("POST", "/api/nodes/register-distributed", node, body)).json()

    async def _beat(self, node: Simulated, *, healthy: bool = True) -> None:
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
            await self._ask("POST", "/api/nodes/heartbeat", node, body)
        except httpx.HTTPError as error:
            self.tally.lost.append(str(error) or type(error).__name__)
            return
        self.tally.beats_ms.append(1000 * (time.perf_counter() - began))
        node.heard = time.monotonic()

    async def _ask(
        self, method: str, path: str, node: Simulated, body: Any = None
    ) -> httpx.Response:
        answer = await self._http.request(method, path, json=body, headers=node.headers)
        if answer.is_error:
            raise Refused(f"{path}: {answer.status_code} {answer.text[:200]}")
        return answer


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it happens within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
