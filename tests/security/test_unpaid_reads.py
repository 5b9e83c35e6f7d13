"""A stranger reads what is free, again and again, until nobody else is served."""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import fastapi.routing
import httpx
import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.routing import Mount, Route, WebSocketRoute

from api.http import read_cache
from market import db
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
    eventually,
    open_gateway,
    problem,
    request_body,
)
from tests.support.gateway.routes import routes_of

Request = tuple[str, str, dict[str, Any]]

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
CODE = {"user_code": "BCDF-GHJK"}
SIGNED = {"wallet_address": WALLET, "nonce": "n", "signature": "0x"}

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
    "wallet_address": PROVIDER_WALLET,
    "node_id": "node_1",
    "model_id:path": MODEL_ID,
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

FREE = [
    f"/api/nodes/earnings/{PROVIDER_WALLET}",
    f"/api/provider/stats?wallet_address={PROVIDER_WALLET}",
    f"/api/provider/earnings/history?wallet_address={PROVIDER_WALLET}&days=30",
]

LIVE = [
    "/api/inference/models",
    f"/api/discovery/nodes/active/{MODEL_ID}",
    f"/nodes/active/{MODEL_ID}",
    f"/api/discovery/dht/{MODEL_ID}",
]

AT_ONCE = 1000


@pytest.fixture
async def busy(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    """The gateway, whose limits are not what stops these strangers: they have many addresses."""
    limits = dict.fromkeys(RULES, "1000000/hour") | {"read_timeout": 0.5, "read_cache": 60}
    async with open_gateway(make_settings(limits=limits)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


def engine_of(sessions: db.Sessions) -> AsyncEngine:
    engine = sessions.kw["bind"]
    assert isinstance(engine, AsyncEngine)
    return engine


@contextmanager
def statements(sessions: db.Sessions) -> Iterator[list[str]]:
    """What is asked of Postgres by these sessions meanwhile."""
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    engine = engine_of(sessions).sync_engine
    event.listen(engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("path", FREE)
async def test_a_thousand_at_once_make_one_read(busy: Gateway, path: str) -> None:
    with statements(busy.services.reads) as alone:
        assert (await busy.client.get(path.replace(PROVIDER_WALLET, WALLET))).status_code == 200
    with statements(busy.services.reads) as asked, statements(busy.sessions) as elsewhere:
        answers = await asyncio.gather(*(busy.client.get(path) for _ in range(AT_ONCE)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(asked) == len(alone) > 0
    assert elsewhere == []


@pytest.mark.parametrize("path", LIVE)
async def test_a_thousand_at_once_make_one_look_at_the_nodes(
    busy: Gateway, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    smembers = busy.redis.smembers

    def counted(key: str) -> Any:
        nonlocal looked
        looked += 1
        return smembers(key)

    monkeypatch.setattr(busy.redis, "smembers", counted)
    answers = await asyncio.gather(*(busy.client.get(path) for _ in range(AT_ONCE)))
    assert {answer.status_code for answer in answers} == {200}
    assert looked == 1


async def test_a_read_that_takes_too_long_is_given_up(busy: Gateway) -> None:
    """Here because somebody holds the table; else because a wallet has millions of rows."""
    async with busy.sessions() as holding:
        await holding.execute(text("LOCK TABLE node_contributions IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        answer = await busy.client.get(FREE[1])
        problem(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert time.monotonic() - began < 10
    assert (await busy.client.get(FREE[1])).status_code == 200


async def test_slow_reads_of_many_wallets_leave_everybody_else_served(busy: Gateway) -> None:
    job = await busy.submit()
    async with busy.sessions() as holding:
        await holding.execute(text("LOCK TABLE node_registry IN ACCESS EXCLUSIVE MODE"))
        paths = [f"/api/provider/stats?wallet_address=0x{number:040x}" for number in range(300)]
        reading = [asyncio.create_task(busy.client.get(path)) for path in paths]
        await asyncio.sleep(0.1)
        assert (await busy.client.get(job.url)).status_code == 200
        assert (await busy.client.get("/api/auth/nonce")).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*reading)} == {503}
    assert (await busy.client.get(paths[0])).status_code == 200


@asynccontextmanager
async def client_at(gateway: Gateway, address: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(gateway.app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_slow_reads_of_strangers_keep_nobody_from_what_is_not_theirs(
    busy: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here from many addresses, and slow since somebody holds the table."""
    monkeypatch.setattr(read_cache, "MAX_READING", 8)
    monkeypatch.setattr(read_cache, "MAX_READING_OF_CALLER", 2)

    async def ask(number: int) -> int:
        path = f"/api/provider/earnings/history?wallet_address=0x{number:040x}"
        async with client_at(busy, f"198.51.100.{number % 50}") as client:
            return (await client.get(path)).status_code

    async with busy.sessions() as holding:
        await holding.execute(text("LOCK TABLE node_contributions IN ACCESS EXCLUSIVE MODE"))
        reading = [asyncio.create_task(ask(number)) for number in range(100)]
        await eventually(lambda: under_way(busy, "history", 8))
        ours = ("/readyz", METRICS, "/api/inference/models", "/api/billing/balance")
        for path in ours:
            answer = await busy.client.get(path)
            assert answer.status_code == 200, (path, answer.text)
        assert set(await asyncio.gather(*reading)) == {503}


async def test_one_address_has_few_reads_under_way(
    busy: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_cache, "MAX_READING_OF_CALLER", 2)
    paths = [f"/api/provider/stats?wallet_address=0x{number:040x}" for number in range(20)]
    async with busy.sessions() as holding:
        await holding.execute(text("LOCK TABLE node_contributions IN ACCESS EXCLUSIVE MODE"))
        reading = [asyncio.create_task(busy.client.get(path)) for path in paths]
        await eventually(lambda: under_way(busy, "stats", 2))
        for answer in await asyncio.gather(*reading):
            problem(answer, 503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
    assert (await busy.client.get(paths[0])).status_code == 200


async def under_way(gateway: Gateway, kind: str, number: int) -> bool:
    kinds = gateway.services.read_cache._kinds
    return kind in kinds and len(kinds[kind].reading) == number


async def test_the_history_of_a_wallet_is_one_read_for_all_spans(busy: Gateway) -> None:
    noon = dt.datetime.now(dt.UTC).replace(hour=12)
    for days_ago in (0, 3, 200):
        job = await busy.submit(max_tokens=1)
        await job.write("a")
        await job.complete()
        async with busy.sessions.begin() as session:
            row = await session.merge(await job.row())
            row.completed_at = noon - dt.timedelta(days=days_ago)
    path = f"/api/provider/earnings/history?wallet_address={PROVIDER_WALLET}&days="
    with statements(busy.services.reads) as asked:
        found = {days: (await busy.client.get(f"{path}{days}")).json() for days in range(1, 366)}
    assert len([each for each in asked if "node_contributions" in each]) == 1
    dates = [(noon - dt.timedelta(days=days_ago)).date().isoformat() for days_ago in (200, 3, 0)]
    for days, first in {1: 2, 2: 2, 3: 1, 199: 1, 200: 0, 365: 0}.items():
        assert [each["date"] for each in found[days]] == dates[first:]
    assert all(float(each["amount_exact"]) == each["amount"] > 0 for each in found[365])


@pytest.mark.parametrize("path", [*FREE, *LIVE, "/api/discovery/dht"])
async def test_an_answer_is_encoded_once(
    busy: Gateway, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await busy.client.get(path)

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("validated or encoded again")

    monkeypatch.setattr(fastapi.routing, "serialize_response", again)
    monkeypatch.setattr(BaseModel, "model_dump_json", again)
    second = await busy.client.get(path)
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["content-type"] == "application/json"


async def test_a_read_cannot_write(busy: Gateway) -> None:
    async with busy.services.reads() as session:
        with pytest.raises(DBAPIError, match="read-only transaction"):
            await session.execute(text("DELETE FROM machines"))


# ----- metrics

METRICS = "/metrics"


async def metrics_seen(gateway: Gateway, peer: str, *headers: tuple[str, str]) -> int:
    transport = httpx.ASGITransport(gateway.app, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get(METRICS, headers=list(headers))
    if answer.status_code != 200:
        problem(answer, 403, "forbidden")
        assert "far_mesh" not in answer.text
    return answer.status_code


@pytest.mark.parametrize("peer", ["198.51.100.1", "10.0.0.1", "2001:db8::1", "", "unknown"])
async def test_metrics_are_not_for_everybody(empty_gateway: Gateway, peer: str) -> None:
    assert await metrics_seen(empty_gateway, peer) == 403


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.1.2.3"])
async def test_metrics_are_for_this_machine(empty_gateway: Gateway, peer: str) -> None:
    assert await metrics_seen(empty_gateway, peer) == 200


@pytest.mark.parametrize(
    "header",
    [
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-For", "198.51.100.1"),
        ("Forwarded", "for=127.0.0.1"),
        ("Forwarded", "for=unknown"),
        ("X-Real-IP", "127.0.0.1"),
        ("Via", "1.1 proxy"),
    ],
)
async def test_what_comes_through_a_proxy_is_not_this_machine(
    empty_gateway: Gateway, header: tuple[str, str]
) -> None:
    assert await metrics_seen(empty_gateway, "127.0.0.1", header) == 403


async def test_metrics_behind_a_trusted_proxy(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    limits = {"trusted_proxies": 1, "metrics_networks": "10.1.0.0/16, 127.0.0.0/8"}
    async with open_gateway(make_settings(limits=limits)) as gateway:
        proxy = "127.0.0.1"
        stranger, prometheus = ("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "10.1.2.3")
        assert await metrics_seen(gateway, "10.1.2.3") == 200
        assert await metrics_seen(gateway, "10.2.2.3") == 403
        assert await metrics_seen(gateway, proxy, prometheus) == 200
        assert await metrics_seen(gateway, proxy, stranger) == 403
        assert await metrics_seen(gateway, proxy, ("X-Forwarded-For", "10.1.2.3, garbage")) == 403
        # A header of the other kind makes the address uncertain; it is then not the proxy's.
        for made_up in ("for=10.1.2.3", "for=127.0.0.1", "x"):
            assert await metrics_seen(gateway, proxy, stranger, ("Forwarded", made_up)) == 403
