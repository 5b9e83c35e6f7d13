"""Machines that log in, over HTTP."""

from typing import Any

import httpx

from mesh import signed_texts
from tests.conftest import MODEL_ID
from tests.support.api import (
    LAYERS,
    PROVIDER,
    PROVIDER_WALLET,
    Gateway,
    eventually,
)

BEGIN = "/api/machines/device"


TOKEN = "/api/machines/token"


MESSAGE = "/api/machines/message"


APPROVE = "/api/machines/approve"


DENY = "/api/machines/deny"


INTERVAL = 0.05
"""Seconds between polls: five in the world."""


AUTH = {
    "jwt_secret": "a secret for the tests, long enough",
    "domain": "mesh.example",
    "device_poll_interval": INTERVAL,
}


async def begin(gateway: Gateway, machine: str = "attic") -> dict[str, Any]:
    answer = await gateway.client.post(BEGIN, json={"machine": machine})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def poll(gateway: Gateway, codes: dict[str, Any]) -> httpx.Response:
    return await gateway.client.post(TOKEN, json={"device_code": codes["device_code"]})


async def message(
    gateway: Gateway, user_code: str, wallet: str = PROVIDER_WALLET
) -> httpx.Response:
    body = {"user_code": user_code, "wallet_address": wallet}
    return await gateway.client.post(MESSAGE, json=body)


async def approve(
    gateway: Gateway, user_code: str, signer: Any = PROVIDER, wallet: str = PROVIDER_WALLET
) -> httpx.Response:
    """What the page does: have the wallet sign, and send that."""
    text = (await message(gateway, user_code, wallet)).json()["message"]
    body = {
        "user_code": user_code,
        "wallet_address": wallet,
        "signature": signed_texts.sign(text, signer.key),
    }
    return await gateway.client.post(APPROVE, json=body)


async def let_in(gateway: Gateway, machine: str = "attic") -> dict[str, Any]:
    """A machine's token."""
    codes = await begin(gateway, machine)
    assert (await approve(gateway, codes["user_code"])).status_code == 200
    answer = await poll(gateway, codes)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def decided(gateway: Gateway, codes: dict[str, Any]) -> httpx.Response:
    """The first answer other than "not yet" to a machine that polls as often as it may."""

    async def look() -> httpx.Response | None:
        answer = await poll(gateway, codes)
        return None if answer.json().get("code") in UNDECIDED else answer

    return await eventually(look)


UNDECIDED = ("authorization_pending", "slow_down")


def bearer(token: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {token['access_token']}"}


async def register(gateway: Gateway, token: dict[str, Any], **changes: Any) -> httpx.Response:
    body = {
        "wallet_address": PROVIDER.address,
        "model_id": MODEL_ID,
        "gpu_model": "CPU",
        "vram_gb": 0,
        "public_addr": "0.0.0.0:31330",
        "location": "unknown",
        "start_layer": 0,
        "end_layer": LAYERS,
    } | changes
    path = "/api/nodes/register-distributed"
    return await gateway.client.post(path, json=body, headers=bearer(token))


async def heartbeat(gateway: Gateway, node: dict[str, Any]) -> httpx.Response:
    health = {
        "node_id": node["node_id"],
        "is_healthy": True,
        "latency_ms": 5,
        "throughput_tokens_per_sec": 1,
    }
    headers = {"Authorization": f"Bearer {node['node_token']}"}
    return await gateway.client.post("/api/nodes/heartbeat", json=health, headers=headers)
