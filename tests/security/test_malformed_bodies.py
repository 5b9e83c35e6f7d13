"""A stranger sends bodies that cost more to parse than to send, to routes that refuse them in the
end, and is counted by none of them."""

import gc
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from redis.asyncio import Redis

from api.app import GENERATION_PATHS
from api.middleware.body_limit import MAX_BRACKETS, BodyLimit
from api.middleware.body_sizes import SMALL_BODY_BYTES, BodySizes
from api.server.transfers import TransferBudget
from market.settings import Settings
from market.settings.limits import LimitSettings
from tests.support.gateway.api import GENERATE, Gateway, open_gateway, problem
from tests.support.gateway.routes import routes_of

JSON = {"Content-Type": "application/json"}
LARGE = {*GENERATION_PATHS, "/api/discovery/probe"}
OWN = "/api/relay/exchange"
"""Reads its bodies itself, of nodes alone."""


@pytest.fixture
async def strict(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    limits = {"bodies_per_ip": "3/hour", "requests_per_ip": "3/hour"}
    async with open_gateway(make_settings(limits=limits)) as opened:
        yield opened


def operations(gateway: Gateway) -> list[tuple[str, str]]:
    """Each method and path that the application has, with values for its parameters."""
    return [
        (method, route.path.replace(":path", "").replace("{", "").replace("}", ""))
        for route in routes_of(gateway.app)
        if isinstance(route, APIRoute)
        for method in route.methods
    ]


async def send(gateway: Gateway, method: str, path: str, size: int) -> httpx.Response:
    headers = JSON | gateway.login()
    return await gateway.client.request(method, path, content=b" " * size, headers=headers)


async def test_no_route_takes_a_longer_body_than_it_needs(empty_gateway: Gateway) -> None:
    found = operations(empty_gateway)
    assert len(found) > 25
    for method, path in found:
        if path == OWN or (path in LARGE and method == "POST"):
            continue
        limit = SMALL_BODY_BYTES if method in ("POST", "PATCH") else 0
        problem(await send(empty_gateway, method, path, limit + 1), 413, "body_too_large")
        if limit:
            assert (await send(empty_gateway, method, path, limit)).status_code != 413, path


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PUT", "PATCH"])
@pytest.mark.parametrize(
    "path", ["/nope", "/", "/api/auth/nonce", "/healthz", "/static/x", "/docs"]
)
async def test_where_there_is_no_body(empty_gateway: Gateway, method: str, path: str) -> None:
    for declared in ({}, {"Transfer-Encoding": "chunked"}):
        request = {"content": b"{}", "headers": JSON | declared}
        answer = await empty_gateway.client.request(method, path, **request)
        if method in ("GET", "HEAD"):
            assert answer.status_code == 413
        else:  # a mistake in the path or the method is told as such, and the body not read
            assert answer.status_code in (204, 404, 405, 413)
    assert (await empty_gateway.client.request(method, path)).status_code != 413


@pytest.mark.parametrize("part", ["[],", "{},", '{"a":[]},'])
async def test_a_body_of_many_parts_is_not_parsed(empty_gateway: Gateway, part: str) -> None:
    content = f"[{part * MAX_BRACKETS}0]".encode()
    answer = await empty_gateway.client.post(GENERATE, content=content, headers=JSON)
    assert "arrays and objects" in problem(answer, 400, "malformed_json")["detail"]


@pytest.mark.parametrize("content", [b"[[]]", b"{", b"", b"[" * 5000, b" " * 20_000, b"\xff"])
async def test_malformed_bodies_count(strict: Gateway, content: bytes) -> None:
    async with stranger(strict) as client:
        answers = [
            await client.post("/api/auth/login", content=content, headers=JSON) for _ in range(5)
        ]
        assert 429 not in [answer.status_code for answer in answers[:3]]
        problem(answers[3], 429, "rate_limited")
        problem(answers[4], 429, "rate_limited")
        other = await client.post("/nodes/heartbeat", content=content, headers=JSON)
        problem(other, 429, "rate_limited")  # one window for all of them


async def test_many_wallets_of_one_address_count_as_one(strict: Gateway) -> None:
    async with stranger(strict) as client:
        answers = [
            await client.get(f"/api/inference/jobs/req_{n}", headers=strict.login(f"0x{n:040x}"))
            for n in range(5)
        ]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 429, 429]


@pytest.mark.parametrize("token", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic x"}])
async def test_no_body_of_a_generation_is_read_without_a_token(
    empty_gateway: Gateway, token: dict[str, str]
) -> None:
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        taken += 1
        yield b"["

    async with stranger(empty_gateway) as client:
        answer = await client.post(GENERATE, content=pieces(), headers=JSON | token)
    assert answer.status_code == 401
    assert taken == 0


async def test_a_body_is_the_routes_alone(empty_gateway: Gateway) -> None:
    """A route that has parsed it, and answers for an hour, need not keep it."""
    seen: list[weakref.ref[dict[str, Any]]] = []

    class Message(dict[str, Any]):
        pass

    async def route(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert message["body"] == b"{}"
        seen.append(weakref.ref(message))
        del message
        gc.collect()
        assert seen[0]() is None

    class Kept(BodyLimit):
        async def _read(self, scope: Any, receive: Any) -> Any:
            return Message(await super()._read(scope, receive))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send_nothing(message: Any) -> None: ...

    sizes = BodySizes(0, {})
    sizes.of = lambda scope: 10  # type: ignore[method-assign]
    budget = TransferBudget(LimitSettings())
    app = Kept(route, sizes, budget, owner_of=lambda scope: "somebody")
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await app(scope, receive, send_nothing)
    assert len(seen) == 1


def stranger(gateway: Gateway) -> httpx.AsyncClient:
    """Without a token."""
    transport = httpx.ASGITransport(gateway.app, client=("198.51.100.1", 1))
    return httpx.AsyncClient(transport=transport, base_url="http://test")
