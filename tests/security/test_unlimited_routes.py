"""A stranger asks a route that nobody has limited, again and again."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from starlette.routing import Mount, Route, WebSocketRoute

from market.settings import Settings
from market.settings.limits import LimitSettings
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    PROVIDER_WALLET,
    WALLET,
    Gateway,
    all_nodes,
    open_gateway,
    problem,
    request_body,
)
from tests.support.gateway.routes import routes_of

UNLIMITED = {
    "GET /healthz": "a constant",
    "GET /readyz": "one probe at a time, however many ask",
    "GET /metrics": "the operator's networks alone",
    "POST /api/relay/exchange": "four polls of a node at a time, throttled by bytes and messages",
    "GET /link": "without a code, a constant page; with one, limited",
    "GET /openapi.json": "a constant, built once",
    "GET /docs": "a constant",
    "GET /docs/oauth2-redirect": "a constant",
    "GET /redoc": "a constant",
    "/static": "a few small files",
}
"""Routes without a limit of their own, and what bounds them instead."""

LOGIN_BODY = {"wallet_address": WALLET, "message": "", "signature": ""}
REGISTRATION = {
    "wallet_address": WALLET,
    "model_id": "none",
    "gpu_model": "",
    "vram_gb": 0,
    "public_addr": "a:1",
    "location": "",
}
HEARTBEAT: dict[str, Any] = {"is_healthy": True, "latency_ms": 1, "throughput_tokens_per_sec": 1}
CHAT = {"model": "none", "messages": [{"role": "user", "content": "x"}]}
CODE = {"user_code": "BCDF-GHJK"}
SIGNED = {"wallet_address": WALLET, "nonce": "n", "expires_at": "", "signature": "0x"}

USER, NODE, NOBODY = "user", "node", "nobody"

REQUESTS: dict[str, tuple[str, Any]] = {
    f"POST {GENERATE}": (USER, request_body()),
    "GET /api/inference/jobs/{request_id}": (USER, None),
    "GET /api/inference/jobs/{request_id}/events": (USER, None),
    "DELETE /api/inference/jobs/{request_id}": (USER, None),
    "GET /api/inference/jobs/{request_id}/receipt": (USER, None),
    "GET /api/inference/models": (NOBODY, None),
    "GET /api/billing/balance": (USER, None),
    "GET /api/billing/usage.csv": (USER, None),
    "GET /api/auth/nonce": (NOBODY, None),
    "POST /api/auth/login": (NOBODY, LOGIN_BODY),
    "POST /api/keys": (USER, {"name": "app"}),
    "GET /api/keys": (USER, None),
    "PATCH /api/keys/{key_id}": (USER, {"name": "app"}),
    "DELETE /api/keys/{key_id}": (USER, None),
    "GET /v1/key": (USER, None),
    "POST /v1/chat/completions": (USER, CHAT),
    "POST /v1/completions": (USER, {"model": "none", "prompt": "x"}),
    "POST /v1/responses": (USER, {"model": "none", "input": "x"}),
    "GET /v1/responses/{response_id}": (USER, None),
    "POST /v1/responses/{response_id}/cancel": (USER, None),
    "GET /v1/models": (NOBODY, None),
    "GET /v1/models/{model_id:path}": (NOBODY, None),
    "POST /api/machines/device": (NOBODY, {"machine": "attic"}),
    "POST /api/machines/token": (NOBODY, {"device_code": "x"}),
    "POST /api/machines/message": (NOBODY, CODE | {"wallet_address": WALLET}),
    "POST /api/machines/approve": (NOBODY, CODE | {"wallet_address": WALLET, "signature": "0x"}),
    "POST /api/machines/deny": (NOBODY, CODE),
    "GET /api/machines": (USER, None),
    "DELETE /api/machines/{machine_id}": (USER, None),
    "POST /api/nodes/register-distributed": (NOBODY, REGISTRATION),
    "POST /api/nodes/heartbeat": (NODE, HEARTBEAT),
    "GET /api/nodes/earnings/{wallet_address}": (NOBODY, None),
    "GET /api/nodes/{node_id}": (USER, None),
    "GET /api/models/{model_id:path}/files": (NODE, None),
    "POST /api/models/{model_id:path}/files": (NOBODY, SIGNED),
    "GET /api/models/{model_id:path}/files/{name}": (NOBODY, None),
    "GET /api/provider/stats": (NOBODY, None),
    "GET /api/provider/earnings/history": (NOBODY, None),
    "GET /api/provider/earnings.csv": (USER, None),
    "GET /api/discovery/nodes/active/{model_id:path}": (NOBODY, None),
    "POST /nodes/register": (NOBODY, REGISTRATION),
    "POST /nodes/heartbeat": (NODE, HEARTBEAT),
    "GET /nodes/active/{model_id:path}": (NOBODY, None),
    "GET /api/discovery/dht": (NOBODY, None),
    "GET /api/discovery/dht/{model_id:path}": (NOBODY, None),
    "GET /api/discovery/probe": (NOBODY, None),
    "POST /api/discovery/probe": (NOBODY, {}),
    "GET /api/discovery/config/{model_id:path}": (NOBODY, None),
}
"""Who asks each route, and with what body. Whatever route is not here fails the test below."""

VALUES = {
    "request_id": "req_1",
    "machine_id": "machine_1",
    "key_id": "key_1",
    "response_id": "resp_1",
    "wallet_address": PROVIDER_WALLET,
    "node_id": "node_1",
    "model_id:path": MODEL_ID,
    "name": "config.json?token=t",
}

RULES = {name: "2/hour" for name, value in LimitSettings() if isinstance(value, str)}


@pytest.fixture
async def strict(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    """The gateway, each of whose limits allows two requests."""
    async with open_gateway(make_settings(limits=RULES)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


def routes(gateway: Gateway) -> dict[str, Any]:
    """All that the application has, by method and path."""
    found: dict[str, Any] = {}
    for route in routes_of(gateway.app):
        if isinstance(route, Mount):
            found[route.path] = route
        elif isinstance(route, WebSocketRoute):
            found[f"WS {route.path}"] = route
        else:
            assert isinstance(route, Route), route
            for method in (route.methods or set()) - {"HEAD"}:
                found[f"{method} {route.path}"] = route
    return found


def test_each_rule_is_a_limit_of_some_route() -> None:
    assert len(RULES) >= 15


async def test_every_route_is_limited(strict: Gateway) -> None:
    found = routes(strict)
    assert found.keys() == REQUESTS.keys() | UNLIMITED.keys() | {"WS /api/relay"}
    for number, (name, (who, body)) in enumerate(REQUESTS.items()):
        method, _, path = name.partition(" ")
        headers = await login(strict, who, number)
        if path.endswith("/heartbeat"):
            body["node_id"] = node_name(number)
        for each, value in VALUES.items():
            path = path.replace(f"{{{each}}}", value)
        if "provider" in path and who == NOBODY:
            path += f"?wallet_address={PROVIDER_WALLET}"
        transport = httpx.ASGITransport(strict.app, client=(f"198.51.{number}.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = [
                await client.request(method, path, json=body, headers=headers | ASYNC)
                for _ in range(4)
            ]
        statuses = [answer.status_code for answer in answers]
        assert statuses[-1] == 429, (name, statuses, answers[0].text)
        assert 429 not in statuses[:2], (name, statuses)
        problem(answers[-1], 429, "rate_limited")
        assert int(answers[-1].headers["retry-after"]) > 0


async def login(gateway: Gateway, who: str, number: int) -> dict[str, str]:
    """Headers of a caller who has asked nothing yet."""
    if who == USER:
        wallet = f"0x{number:040x}"
        await gateway.deposit("1", wallet)
        return gateway.login(wallet)
    return gateway.node_login(node_name(number)) if who == NODE else {}


def node_name(number: int) -> str:
    return f"node_{number}"


async def test_connections_to_the_relay_are_limited_before_a_row_is_read(strict: Gateway) -> None:
    headers = strict.node_login("node_of_nobody")
    assert [await connect(strict, headers) for _ in range(4)] == [401, 401, 429, 429]


async def connect(gateway: Gateway, headers: dict[str, str]) -> int:
    """The status that a WebSocket is refused with."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/api/relay",
        "raw_path": b"/api/relay",
        "query_string": b"",
        "root_path": "",
        "scheme": "ws",
        "subprotocols": [],
        "client": ("198.51.100.1", 1),
        "server": ("test", 80),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "extensions": {"websocket.http.response": {}},
    }
    await gateway.app(scope, receive, send)
    return int(sent[0]["status"])


# ----- one read for all who ask
