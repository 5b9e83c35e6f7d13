"""Peers of a DHT on loopback, and records of nodes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from mesh.dht import records
from mesh.dht.peer import Peer
from mesh.dht.signing_keys import SigningKey
from stack.servers import free_port
from tests.conftest import MODEL_ID
from tests.support.api import LAYERS

OPERATOR = SigningKey.from_hex("11" * 32)
NODE_KEY = SigningKey.from_hex("22" * 32)
STRANGER = SigningKey.from_hex("33" * 32)

SPANS = records.announcements_key(MODEL_ID)

PATIENCE = 60.0
"""Seconds: a process that imports torch starts in many on a busy machine."""

T = TypeVar("T")


async def soon(condition: Callable[[], Awaitable[T]]) -> T:
    """What ``condition`` gives as soon as that is true."""
    give_up = time.monotonic() + PATIENCE
    while not (found := await condition()):
        assert time.monotonic() < give_up, "it never became true"
        await asyncio.sleep(0.05)
    return found


@asynccontextmanager
async def full_peer(folder: Path, **options: Any) -> AsyncIterator[tuple[Peer, list[str]]]:
    """A full peer that knows the operator's key, and its addresses."""
    values = {"port": free_port(), "host": "127.0.0.1", "identity": folder / "identity"} | options
    peer = await Peer.serve(OPERATOR.public, **values)
    try:
        yield peer, await peer.addresses()
    finally:
        await peer.close()


@asynccontextmanager
async def client(addresses: list[str]) -> AsyncIterator[Peer]:
    """A peer as nodes have it."""
    peer = await Peer.join(OPERATOR.public, addresses)
    try:
        yield peer
    finally:
        await peer.close()


def announcement(**changes: Any) -> records.Announcement:
    """Of a node for the first two layers of the demo model."""
    values: dict[str, Any] = {
        "node_id": "node_0",
        "registration": 1,
        "model_id": MODEL_ID,
        "start_layer": 0,
        "end_layer": 2,
        "latency_ms": 7.0,
        "throughput_tokens_per_sec": 90.0,
        "current_requests": 1,
        "kv_positions": 512,
        "expires": time.time() + 60,
    }
    return records.Announcement(**(values | changes))


def record_of(
    announced: records.Announcement, key: SigningKey = NODE_KEY, operator: SigningKey = OPERATOR
) -> bytes:
    """The record that such a node writes, if it has a credential of such an operator."""
    credential = records.issue_credential(
        operator,
        node_id=announced.node_id,
        registration=announced.registration,
        model_id=announced.model_id,
        layers=LAYERS,
        public_key=key.public,
        expires=time.time() + 3600,
    )
    return records.sign_announcement(key, credential, announced)


async def announce(peer: Peer, announced: records.Announcement, **by: SigningKey) -> int:
    """How many peers have kept the record."""
    return await peer.store(SPANS, announced.node_id, record_of(announced, **by), announced.expires)


async def announcements_at(peer: Peer) -> dict[str, records.Announcement]:
    """What the peer reads of the demo model."""
    found = await peer.read(SPANS)
    return {
        node_id: records.read_announcement(record, OPERATOR.public)
        for node_id, record in found.items()
    }
