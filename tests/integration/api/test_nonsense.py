"""Every field of every body, in turn, with values that no client would send: never an error of
ours, and never a value sent back."""

import json
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from market.settings import Settings
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    WALLET,
    Gateway,
    all_nodes,
    open_gateway,
    request_body,
)

MARK = "wombat"
"""In every text below, and in no sentence of ours."""

VALUES = [
    "null",
    "true",
    "0",
    "-0.0",
    "-1",
    "1e-400",
    "1e400",
    "NaN",
    "-Infinity",
    "9" * 25,
    "9" * 4000,
    "[]",
    "{}",
    "[[[[]]]]",
    '""',
    '" "',
    f'"{MARK}"',
    f'"{MARK}\\u0000"',
    f'"{MARK}\\ud800"',
    f'"\\udc00{MARK}"',
    f'"{MARK}\\n\\r\\u2028\\u0085"',
    f'"{MARK}\\uffff\\u202e\\ufeff"',
    f'"{MARK}\'; SELECT 1; --"',
    f'"{MARK}{{}}%s%n${{x}}"',
    f'"{MARK * 1000}"',
    f'["{MARK}"]',
    f'{{"{MARK}": "{MARK}"}}',
    f'["{MARK}", null, 1, {{}}]',
]

BODIES: dict[str, dict[str, object]] = {
    GENERATE: request_body(
        temperature=0.5, top_p=0.5, stream=False, tier="standard", seed=1, stop=["x"]
    ),
    "/api/auth/login": {"wallet_address": WALLET, "message": "", "signature": "0x"},
    "/api/nodes/register-distributed": {
        "wallet_address": WALLET,
        "model_id": MODEL_ID,
        "gpu_model": "",
        "vram_gb": 0,
        "public_addr": "localhost:1",
        "location": "",
        "start_layer": 0,
        "end_layer": 1,
        "edge": True,
        "node_id": "node_0",
        "layers_served": [0],
        "device_id": "device",
        "gpu_index": 0,
        "latitude": 1.5,
        "longitude": 1.5,
        "quantization": "none",
        "memory_bytes": 1,
        "max_sessions": 1,
        "min_price": "0.1",
        "nonce": "",
        "signature": "0x",
    },
    "/api/nodes/heartbeat": {
        "node_id": "node_0",
        "model_id": MODEL_ID,
        "is_healthy": True,
        "latency_ms": 1,
        "throughput_tokens_per_sec": 1,
        "current_requests": 0,
        "gpu_utilization_percent": 0,
        "vram_used_gb": 0,
        "hop_ms": 1,
        "memory_bytes": 1,
        "load_bytes_per_second": 1,
        "last_seen": "2025-01-01T00:00:00Z",
    },
}

FIELDS = [(path, field) for path, body in BODIES.items() for field in body]

ECHOED = {("model_id", "model_not_found")}
"""A model's name is no secret, and its reader wants to see his typing error."""


@pytest.fixture
async def gateway(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    """The gateway, without limits of rate."""
    often = "100000/hour"
    limits = dict.fromkeys(
        ("generations_per_ip", "generations_per_wallet", "logins_per_ip", "registrations_per_ip"),
        often,
    )
    async with open_gateway(make_settings(limits=limits)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


@pytest.mark.parametrize(("path", "field"), FIELDS)
async def test_nonsense_in_a_field(gateway: Gateway, path: str, field: str) -> None:
    kind = "node" if "nodes" in path else "user"
    login = gateway.node_login("node_0") if kind == "node" else gateway.login()
    headers = ASYNC | login | {"Content-Type": "application/json"}
    for value in VALUES:
        body = json.dumps(BODIES[path] | {field: "@"}).replace('"@"', value)
        answer = await gateway.client.post(path, content=body, headers=headers)
        assert answer.status_code < 500, (value, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            code = answer.json()["code"]
            assert MARK not in answer.text or (field, code) in ECHOED, (value, answer.text)
    assert await gateway.redis.ping()
