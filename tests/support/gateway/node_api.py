"""Registrations and heartbeats of nodes, over HTTP."""

from typing import Any

import httpx
from sqlalchemy import func, select

from market.nodes.tables import RegisteredNode
from mesh import signed_texts
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    LAYERS,
    PROVIDER,
    Gateway,
)
from tests.support.gateway.signing import challenge

REGISTRATION_PATH = "/api/nodes/register-distributed"


HEARTBEAT_PATH = "/api/nodes/heartbeat"


TTL = 77


async def registration(
    gateway: Gateway, signer: Any = PROVIDER, platform: str = "", **changes: Any
) -> dict[str, Any]:
    """A registration's body, signed over what it says; ``changes`` may leave a field out (None).
    ``platform``: for which it is signed, if not for the gateway."""
    signed = await challenge(gateway.client)
    values: dict[str, Any] = {
        "wallet_address": PROVIDER.address,
        "model_id": MODEL_ID,
        "gpu_model": "NVIDIA RTX 4090",
        "vram_gb": 24,
        "public_addr": "192.0.2.1:31330",
        "location": "US-East",
        "start_layer": 0,
        "end_layer": LAYERS,
        "edge": True,
        "nonce": signed["nonce"],
        "expires_at": signed["expires_at"],
    } | changes
    message = signed_texts.registration_message(
        platform=platform or signed["platform"],
        wallet_address=values["wallet_address"],
        model_id=values["model_id"],
        start_layer=values["start_layer"],
        end_layer=values["end_layer"] or LAYERS,
        edge=values["edge"],
        nonce=values["nonce"],
        expires_at=values["expires_at"],
    )
    values["signature"] = changes.get("signature", signed_texts.sign(message, signer.key))
    return {name: value for name, value in values.items() if value is not None}


async def register(gateway: Gateway, **changes: Any) -> httpx.Response:
    return await gateway.client.post(REGISTRATION_PATH, json=await registration(gateway, **changes))


async def registered(gateway: Gateway, **changes: Any) -> tuple[str, dict[str, str]]:
    """A new node's id, and the headers it authenticates with."""
    answer = await register(gateway, **changes)
    assert answer.status_code == 200, answer.text
    node = answer.json()
    return node["node_id"], {"Authorization": f"Bearer {node['node_token']}"}


async def heartbeat(
    gateway: Gateway, node_id: str, token: dict[str, str], **changes: Any
) -> httpx.Response:
    health = {
        "node_id": node_id,
        "is_healthy": True,
        "latency_ms": 45,
        "throughput_tokens_per_sec": 12,
        "current_requests": 3,
        "kv_positions": 4096,
    }
    return await gateway.client.post(HEARTBEAT_PATH, json=health | changes, headers=token)


async def node_count(gateway: Gateway) -> int:
    async with gateway.sessions() as db:
        return await db.scalar(select(func.count()).select_from(RegisteredNode)) or 0


async def row_of(gateway: Gateway, node_id: str) -> RegisteredNode:
    async with gateway.sessions() as db:
        return await db.get_one(RegisteredNode, node_id)
